"""The command line as a person uses it: what is printed, and how it fails."""

import argparse
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_ingest import EvalDataset, __main__, cli, commands, pipeline
from eval_ingest.core.spec import DatasetSpec, SplitPolicy
from eval_ingest.core.suite import SuiteFields
from eval_ingest.errors import SpecError
from eval_ingest.flags import add_spec_flags, add_suite_flags, given_fields
from eval_ingest.settings import Settings
from eval_ingest.sweep.results import ResultTable


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
    told = run("info", "--name", "crops")[1]
    assert "segmentation" in told and "verdict: " in told
    assert re.search(r"class shares of val and train overlap by \d+%", told)
    assert "everything is as it was written" in run("verify", "--name", "crops")[1]
    code, _, err = run("remove", "--name", "crops")
    assert code == 1 and "needs --yes" in err
    assert run("remove", "--name", "crops", "--yes")[0] == 0
    assert not (root / "crops").exists()
    assert "crops" not in json.loads((root / "registry.json").read_text())["datasets"]


def test_code_that_is_printed_runs_when_it_is_pasted(
    run: Run, written: Callable[[str], Path], tmp_path: Path
) -> None:
    printed = run("ingest", "crops", "--source", str(written("segmentation")))[1]
    printed += run("info", "crops")[1]
    printed += run("export", "crops", "--to", str(tmp_path / "out"), "--no-windows")[1]
    code = re.findall(r"EvalDataset\(.*\)", printed)
    assert len(code) == 3
    for line in code:
        assert len(eval(line, {"EvalDataset": EvalDataset})) > 0


def test_what_the_catalog_knows_and_cannot_be_had_from_here_is_listed_as_such(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_ROOT", "/no/where")
        out = run("list")[1]
    here, _, elsewhere = out.partition("in the catalog, with sources that are not here: ")
    assert "tolbi_crops, " in elsewhere and "tolbi_crops" not in here
    assert "gs://oil_spill_detection/dataset.tar.gz" in here and "${" not in out


def test_a_path_that_nobody_typed_is_told_with_where_it_comes_from(
    run: Run, copied: Callable[[str], Path]
) -> None:
    source = copied("segmentation")
    assert "the catalog" not in run("validate", "crops", "--source", "/no/where")[2]
    assert run("ingest", "crops", "--source", str(source))[0] == 0
    source.rename(source.with_name("moved"))
    told = run("ingest", "crops")[2]
    assert f"{source} does not exist" in told and f"the catalog says, {source}; another" in told


def test_validate_says_that_val_is_divided(run: Run, written: Callable[[str], Path]) -> None:
    lines = run("validate", str(written("segmentation")))[1].splitlines()
    told = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "divided: a part of these windows, test has the others" in told["val"]
    assert "divided: a part of these windows, val has the others" in told["test"]


@pytest.mark.parametrize(
    ("stopped", "again"),
    [
        ("assign_splits", ["--overwrite"]),
        ("write_copy_files", ["--overwrite"]),
        ("write_copy_files", ["--split-strategy", "random"]),
    ],
)
def test_verify_after_a_stopped_ingest_says_so_and_what_to_do(
    stopped: str,
    again: list[str],
    run: Run,
    root: Path,
    written: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = str(written("segmentation"))
    assert run("ingest", "crops", "--source", source)[0] == 0

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, stopped, stop)
        assert run("ingest", "crops", *again)[0] == 130
    code, out, err = run("verify", "crops")
    assert (code, out) == (1, "") and "it goes on where it stopped: eval-ingest ingest crops" in err
    assert len(EvalDataset("crops", "train")) > 0
    assert run("ingest", "crops")[0] == 0
    assert "everything is as it was written" in run("verify", "crops")[1]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "did you mean list?"),
        (["registry", "rebuid"], "did you mean rebuild?"),
        (["info"], "it needs the NAME of a dataset"),
        (["info", "crops", "rice"], "'rice' is not understood"),
        (["info", "crops", "--name", "rice"], "give one name, and not both crops and rice"),
        (["ingest", "crops", "--sorce", "x"], "did you mean --source?"),
        (["adopt"], "it needs the NAME"),
        (["adopt", "crops", "--all"], "give a NAME or --all"),
    ],
)
def test_a_line_that_is_not_understood_is_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    assert message in captured.err and len(captured.err.splitlines()) == 1


def test_names_stand_alone_before_or_after_flags(run: Run, written: Callable[[str], Path]) -> None:
    source = str(written("segmentation"))
    assert run("ingest", "--source", source, "--max-samples", "8", "crops")[0] == 0
    assert run("info", "crops")[:2] == run("info", "--name", "crops")[:2]
    assert run("validate", source)[1].startswith("segmentation  ")  # a path is no name


def test_the_command_that_was_meant_is_printed(run: Run, reference: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLMOEARTH_EVAL_DATASETS", str(reference))
        for arguments in (["info", "cropz"], ["verify", "--name=cropz"], ["remove", "cropz"]):
            code, _, err = run(*arguments)
            assert code == 1 and "did you mean crops?" in err
            assert "cropz" not in err.partition("did you mean")[2]
            corrected = " ".join(arguments).replace("cropz", "crops")
            assert err.splitlines()[-1] == f"try: eval-ingest {corrected}"


def start(root: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OLMOEARTH_EVAL_DATASETS": str(root)} | more.pop("env", {})
    command = [sys.executable, "-m", "eval_ingest.cli", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_an_ingest_that_nobody_listens_to_goes_on_and_says_so(
    root: Path, written: Callable[[str], Path]
) -> None:
    process = start(root, "ingest", "crops", "--source", str(written("segmentation")))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == "nobody reads this any more; it goes on to its end\n"
    assert process.wait() == 0
    assert "crops" in json.loads((root / "registry.json").read_text())["datasets"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_what_is_printed_stops_no_ingest_and_is_one_message(
    root: Path, written: Callable[[str], Path]
) -> None:
    environment = os.environ | {"OLMOEARTH_EVAL_DATASETS": str(root)}
    for arguments, code, told in (
        (["ingest", "crops", "--source", str(written("segmentation"))], 0, "it goes on to its end"),
        (["list"], 1, "free some space, or print elsewhere"),
    ):
        command = [sys.executable, "-m", "eval_ingest.cli", *arguments]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert "can't be written: No space left" in done.stderr and told in done.stderr
    assert "crops" in json.loads((root / "registry.json").read_text())["datasets"]


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}])
def test_a_shell_that_is_not_utf_8_is_told_all_the_same(
    environment: dict[str, str], root: Path, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "d\u00f6rfer \u0416\u6797"
    shutil.copytree(written("segmentation"), source)
    process = start(root, "ingest", "crops", "--source", str(source), env=environment)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "crops is registered" in out
    process = start(root, "info", "crops", env=environment)
    assert "rfer" in process.communicate()[0] and process.returncode == 0


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    tmp_path: Path, written: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(written("segmentation"), tmp_path / "studio" / "crops")
    for name, value in (
        ("OLMOEARTH_EVAL_DATASETS", "~/evals"),
        ("EVAL_INGEST_CATALOG", "~/catalog"),
        ("EVAL_INGEST_STUDIO_ROOTS", "~/studio"),
        ("EVAL_INGEST_CACHE", "~/cache"),
    ):
        monkeypatch.setenv(name, value)
    assert Settings.load().studio_roots == (str(tmp_path / "studio"),)
    assert f"{tmp_path}/studio/crops" in run("discover")[1]
    source = ("--source=~/studio/crops", "--olmoearth-run-config-path=~/studio/crops")
    assert run("ingest", "crops", *source)[0] == 0
    assert (tmp_path / "evals" / "crops" / "metadata.json").exists()
    spec = yaml.safe_load((tmp_path / "catalog" / "crops.yaml").read_text())
    assert spec["source"] == spec["config"] == f"{tmp_path}/studio/crops"
    assert run("export", "crops", "--to=~/out", "--no-windows")[0] == 0
    assert (tmp_path / "out" / "crops" / "metadata.json").exists()


def test_sigterm_ends_an_ingest_as_ctrl_c_does(root: Path, written: Callable[[str], Path]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        evals = root / number.name
        process = start(evals, "ingest", "crops", "--source", str(written("segmentation")))
        while process.poll() is None and not evals.exists():
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "stopped; run the same command again" in err and "Traceback" not in err


def test_ctrl_c_while_the_program_is_being_imported_ends_it_without_a_traceback() -> None:
    code = (
        "import importlib.abc, os, signal, sys\n"
        "class Press(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'eval_ingest.flags': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "from eval_ingest.__main__ import main\n"
        "sys.argv[1:] = ['list']\n"
        "sys.exit(main())\n"
    )
    # Before anything of it is there the system ends it; from cli.py's own imports on it does.
    for module, status in {"cli": -signal.SIGINT, "flags": 130}.items():
        early = code.replace("eval_ingest.flags", f"eval_ingest.{module}")
        done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert "Traceback" not in done.stderr


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
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "eval_ingest.cli", *arguments], check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor's time: the machine may be busy with other tests.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


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


def test_every_field_of_a_suite_has_its_flag() -> None:
    parser = argparse.ArgumentParser()
    add_suite_flags(parser)
    assert all(action.help for action in parser._actions)
    said = "--encoder pixels random --label-fraction 10% few --seeds 1 2 --max-train-samples 5"
    given = vars(parser.parse_args(said.split()))
    assert given.keys() == SuiteFields.model_fields.keys()
    suite = SuiteFields(**{name: value for name, value in given.items() if value is not None})
    assert (suite.encoders, suite.label_fractions) == (("pixels", "random"), (0.1, "few"))
    assert (suite.seeds, suite.max_train_samples, suite.split) == ((1, 2), 5, "test")


def test_a_path_that_can_not_be_looked_at_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("eval_ingest.sweep.results.read_rows", denied)
    assert cli.main(["leaderboard", "--out", str(tmp_path / "x")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: looking at {tmp_path}/x failed: Permission denied; check who")


@pytest.mark.parametrize("command", [["sweep"], ["leaderboard", "--plots"]])
def test_what_pictures_lack_is_told_with_flags_that_the_command_has(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("eval_ingest.sweep.run.run_sweep", lambda *_, **__: ResultTable([], 1))
    monkeypatch.setattr("eval_ingest.api.leaderboard", lambda _: [])
    monkeypatch.delitem(sys.modules, "eval_ingest.sweep.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert cli.main([*command, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert (
        "needs matplotlib.axes; run, in a checkout of eval_ingest: pip install '.[ingest]'" in told
    )
    flags = set(re.findall(r"--[a-z][a-z-]*", told))
    with pytest.raises(SystemExit):
        cli.main([command[0], "--help"])
    assert flags and flags <= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def test_flags_that_are_given_twice_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def given(*words: str) -> dict[str, Any]:
        return given_fields(cli._parse(["ingest", "crops", *words]))

    assert given("--groups", "a", "--groups", "b", "c") == {"groups": ["a", "b", "c"]}
    assert given("--tags", "a=1", "--tags", "b=2", "d") == {"tags": {"a": "1", "b": "2", "d": ""}}
    ratios = given("--ratios", "7", "2", "1", "--ratios", "8", "1", "1")  # as elsewhere, the last
    assert ratios == {"splits": {"ratios": [8, 1, 1]}}
    assert given("--modalities", "x", "--modalities", "y") == {"modalities": ["x", "y"]}
    for twice in (["--tags", "split=1", "split=2"], ["--tags", "split=1", "--tags", "split=1"]):
        with pytest.raises(SpecError, match="--tags has split more than once"):
            given(*twice)
    with pytest.raises(SpecError, match="--label-fractions has few more than once"):
        given("--label-fractions", "few=0.1", "few=0.2")
    words = ["--encoder", "pixels", "--encoder", "noise", "--datasets", "a", "--datasets", "b"]
    sweep = cli._parse(["sweep", *words, "--seeds", "1", "--seeds", "2"])
    assert (sweep.encoders, sweep.datasets) == (["pixels", "noise"], ["a", "b"])
    assert sweep.seeds == [1, 2]
    tasks = cli._parse(["tasks", "--datasets", "a", "--datasets", "b"])
    assert tasks.datasets == ["a", "b"] and cli._parse(["tasks"]).datasets == []


def test_a_citation_is_a_text_or_the_file_of_that_name(tmp_path: Path) -> None:
    text = "Jane Doe et al.: " + "a long title of what was found " * 20
    assert commands._text_or_file(text) == text
    for plain in ("", "~word of a title", "~nobody-is-called-so", "A. B./C. D.", "x" * 5000):
        assert commands._text_or_file(plain) == plain
    cite = tmp_path / "cite.bib"
    cite.write_bytes("\ufeff@misc{M\u00fcller}".encode())
    assert commands._text_or_file(str(cite)) == "@misc{M\u00fcller}"
    cite.write_bytes("@misc{M\u00fcller}".encode("latin-1"))
    with pytest.raises(SpecError, match=r"cite\.bib is not UTF-8 text .* save it as such"):
        commands._text_or_file(str(cite))


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler])
def test_a_program_that_was_begun_with_ctrl_c_ignored_ignores_it(
    before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `trap '' INT`, or by a script in the background."""
    found: list[Any] = []
    monkeypatch.setattr(cli, "main", lambda: found.append(signal.getsignal(signal.SIGINT)) or 0)
    ours = signal.signal(signal.SIGINT, before)
    try:
        assert __main__.main() == 0
    finally:
        signal.signal(signal.SIGINT, ours)
    assert found == [signal.SIG_IGN if before is signal.SIG_IGN else signal.SIG_DFL]
