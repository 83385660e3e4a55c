"""The command line as a person uses it: what is printed, and how it fails."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eval_ingest import cli
from eval_ingest.core.spec import DatasetSpec, SplitPolicy
from eval_ingest.flags import add_spec_flags, given_fields


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    return tmp_path / "evals"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_ingest_tells_what_it_did_and_the_second_that_nothing_was_to_be_done(
    run: Run, written: Callable[[str], Path]
) -> None:
    source = str(written("segmentation"))
    code, out, err = run("ingest", "--name", "crops", "--source", source)
    assert (code, err) == (0, "")
    assert "window_index" in out and "0 invalid" in out
    assert "crops is registered" in out
    assert 'EvalDataset("crops", split="train")' in out
    code, out, _ = run("ingest", "--name", "crops")  # the catalog knows it by now
    assert code == 0
    assert out.count("up to date, nothing to do") == 5
    assert "crops is up to date: nothing was to be done" in out


def test_a_name_that_is_taken_is_not_given_to_another_source(
    run: Run, written: Callable[[str], Path]
) -> None:
    assert run("ingest", "--name", "crops", "--source", str(written("segmentation")))[0] == 0
    other = str(written("class_mapping"))
    code, _, err = run("ingest", "--name", "crops", "--source", other)
    assert code == 1
    assert "crops is ingested already, from" in err and "--overwrite" in err
    assert run("ingest", "--name", "crops", "--source", other, "--overwrite")[0] == 0


def test_the_commands_of_old_notes_work(run: Run, written: Callable[[str], Path]) -> None:
    source = written("segmentation")
    group = next((source / "windows").iterdir()).name
    code, out, err = run(
        "ingest", "--name", "crops", "--source", str(source),
        "--olmoearth-run-config-path", str(source), "--groups", group, "--register",
        "--overwrite", "--max-samples=8", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert sum(json.loads(out)["counts"].values()) == 8


def test_validate_shows_values_and_origins_and_writes_nothing(
    run: Run, root: Path, written: Callable[[str], Path]
) -> None:
    code, out, _ = run("validate", "--source", str(written("segmentation")))
    assert code == 0
    assert "segmentation, " in out and "model.yaml" in out and "sentinel2_l2a" in out
    assert not root.exists()


def test_a_dry_run_tells_windows_and_bytes_and_writes_nothing(
    run: Run, root: Path, written: Callable[[str], Path]
) -> None:
    source = str(written("segmentation"))
    code, out, _ = run("ingest", "--name", "crops", "--source", source, "--dry-run")
    assert code == 0
    assert "windows in" in out and "nothing was written" in out
    assert not root.exists()


def test_list_info_verify_and_remove(run: Run, root: Path, written: Callable[[str], Path]) -> None:
    run("ingest", "--name", "crops", "--source", str(written("segmentation")))
    assert "crops" in run("list")[1]
    assert "tolbi_crops" in run("list")[1]
    assert json.loads(run("list", "--json")[1])["registered"]["crops"]["name"] == "crops"
    assert "segmentation" in run("info", "--name", "crops")[1]
    assert "everything is as it was written" in run("verify", "--name", "crops")[1]
    code, _, err = run("remove", "--name", "crops")
    assert code == 1 and "needs --yes" in err
    assert run("remove", "--name", "crops", "--yes")[0] == 0
    assert not (root / "crops").exists()
    assert "crops" not in json.loads((root / "registry.json").read_text())["datasets"]


def test_registry_rebuild_restores_a_lost_registry(
    run: Run, root: Path, written: Callable[[str], Path]
) -> None:
    run("ingest", "--name", "crops", "--source", str(written("segmentation")))
    before = json.loads((root / "registry.json").read_text())["datasets"]
    (root / "registry.json").unlink()
    assert run("registry", "rebuild")[0] == 0
    assert json.loads((root / "registry.json").read_text())["datasets"] == before


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["info", "--name", "tolbi_crop"], ["no dataset 'tolbi_crop'"]),
        (
            ["ingest", "--name", "tolbi_cropz"],
            ["did you mean tolbi_crop or tolbi_crops", "--source"],
        ),
        (["ingest", "--name", "x", "--source", "/no/where"], ["/no/where does not exist"]),
        (["ingest", "--name", "../x", "--source", "/tmp"], ["'../x' is not allowed"]),
        (["validate"], ["--source"]),
        (
            ["ingest", "--name", "x", "--source", "/tmp", "--ratios", "80", "10", "20"],
            ["add up to 110"],
        ),
        (
            ["ingest", "--name", "x", "--source", "/tmp", "--split-strategy", "lucky"],
            ["auto", "stratified"],
        ),
    ],
)
def test_wrong_input_is_one_message(run: Run, arguments: list[str], messages: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ") and "Traceback" not in err
    for message in messages:
        assert message in err


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv to drop rights")
def test_a_root_without_permission_is_one_message(
    tmp_path: Path, written: Callable[[str], Path]
) -> None:
    root = tmp_path / "locked"
    root.mkdir()
    command = [sys.executable, "-m", "eval_ingest.cli", "ingest", "--name", "x"]
    if os.geteuid() == 0:
        # root may write everywhere, unless the folder is another user's and that right is dropped
        os.chown(root, 65534, 65534)
        drop = "-dac_override,-dac_read_search,-fowner"
        command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
    root.chmod(0o555)
    found = subprocess.run(
        [*command, "--source", str(written("segmentation"))],
        capture_output=True,
        text=True,
        env={**os.environ, "OLMOEARTH_EVAL_DATASETS": str(root)},
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 1
    assert "Permission denied" in found.stderr and "OLMOEARTH_EVAL_DATASETS" in found.stderr
    assert "Traceback" not in found.stderr
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("case", ["per_pixel_regression", "scalar_regression"])
def test_a_new_process_has_imported_all_it_needs(
    case: str, tmp_path: Path, written: Callable[[str], Path]
) -> None:
    # In this process, other tests have imported what one module may have forgotten to.
    command = [sys.executable, "-m", "eval_ingest.cli", "ingest", "--name", "x"]
    found = subprocess.run(
        [*command, "--source", str(written(case))],
        capture_output=True,
        text=True,
        env={**os.environ, "OLMOEARTH_EVAL_DATASETS": str(tmp_path)},
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_help_and_list_answer_at_once(root: Path) -> None:
    for arguments in (["--help"], ["list"]):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "eval_ingest.cli", *arguments], check=True, capture_output=True
        )
        # A second is the aim; the bound is wide because the machine may be busy with other tests.
        assert time.monotonic() - started < 5


def test_every_field_of_a_spec_has_its_flag() -> None:
    """What a field of DatasetSpec takes can be said on the command line, with some help."""
    parser = argparse.ArgumentParser()
    add_spec_flags(parser)
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    fields = {field.alias or name for name, field in DatasetSpec.model_fields.items()}
    # How an eval is scored stands in the catalog; `correct` is adopt's.
    fields -= {"name", "splits", "eval", "correct"}
    assert flags.keys() == fields | SplitPolicy.model_fields.keys()
    assert all(action.help for action in flags.values())
    said = (
        "--source /data --groups a b --tags split=val oep_eval: --temporal-range 2023-01-01 "
        "2024-01-01 --crop-size 16 --all-crops none --ratios 80 10 10 --buffer 50 "
        "--split-strategy spatial --label-fractions few=0.01 --copy index --licence CC-BY-4.0"
    )
    given = given_fields(parser.parse_args(said.split()))
    spec = DatasetSpec.parse({"name": "crops", **given}, "the flags")
    assert (spec.groups, spec.tags) == (("a", "b"), {"split": "val", "oep_eval:": ""})
    assert (spec.temporal_range, spec.crop_size) == (("2023-01-01", "2024-01-01"), 16)
    assert (spec.all_crops, spec.label_fractions) == ((), {"few": 0.01})
    assert spec.splits == SplitPolicy(strategy="spatial", ratios=(0.8, 0.1, 0.1), buffer_m=50)
    assert (spec.copy_mode, spec.licence, spec.task_type) == ("index", "CC-BY-4.0", None)
