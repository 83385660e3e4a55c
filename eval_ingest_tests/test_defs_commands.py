"""The commands themselves: `dagster asset materialize`, `dg launch`, `dagster definitions`."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from eval_ingest import pipeline
from eval_ingest_tests.support.checkout import REPOSITORY, environment


@pytest.fixture
def home(tmp_path: Path, written: Callable[[str], Path]) -> Path:
    """A folder like the repository's: dagster.yaml, workspace.yaml, and .env with the settings."""
    home = tmp_path / "home"
    (home / "catalog").mkdir(parents=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, home)
    (home / ".env").write_text(
        f"OLMOEARTH_EVAL_DATASETS={home}/evals\nEVAL_INGEST_CATALOG={home}/catalog\n"
        "EVAL_INGEST_WORKERS=2\n"
    )
    for name, source in (("crops", written("segmentation")), ("nowhere", home / "nothing")):
        spec = {"name": name, "source": str(source), "max_invalid_fraction": 0.5}
        (home / "catalog" / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    return home


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=120
    )


def dagster(*arguments: str, home: Path, module: bool = True) -> subprocess.CompletedProcess[str]:
    more = {"DAGSTER_MODULE_NAME": "eval_ingest.definitions"} if module else {}
    return run([sys.executable, "-m", "dagster", *arguments], home, **more)


@pytest.mark.slow
def test_dagster_asset_materialize_does_the_whole_job_and_then_nothing(home: Path) -> None:
    first = dagster("asset", "materialize", "--select", "crops", home=home)
    assert first.returncode == 0, first.stderr
    for stage in pipeline.STAGES:
        assert f"- {stage}: " in first.stderr
    assert "DEBUG" not in first.stderr
    second = dagster("asset", "materialize", "--select", "crops", home=home)
    assert second.returncode == 0, second.stderr
    assert "crops: up to date, nothing to do" in second.stderr
    assert second.stderr.count("up to date, nothing to do") == 6
    assert json.loads((home / "evals" / "registry.json").read_text())["datasets"]["crops"]
    kept = {".dagster", ".env", "catalog", "dagster.yaml", "evals", "workspace.yaml"}
    assert {path.name for path in home.iterdir()} == kept
    assert list((home / ".dagster" / "compute_logs").iterdir())


@pytest.mark.slow
def test_dagster_asset_materialize_takes_a_partition_that_nobody_has_added(home: Path) -> None:
    select = ("asset", "materialize", "--select", "window_index", "--partition")
    done = dagster(*select, "crops", home=home)
    assert done.returncode == 0, done.stderr
    assert (home / "evals" / "crops" / "window_index.parquet").exists()


@pytest.mark.slow
def test_what_is_exported_wins_over_what_stands_in_env(home: Path) -> None:
    listed = ("asset", "list", "--select", "crops")
    for more in ({}, {"OLMOEARTH_EVAL_DATASETS": f"{home}/other"}):
        root = more.get("OLMOEARTH_EVAL_DATASETS", f"{home}/evals")
        command = [sys.executable, "-m", "dagster", *listed, "-m", "eval_ingest.definitions"]
        done = run(command, home, **more)
        assert f"eval root: {root}\n" in done.stderr


@pytest.mark.slow
def test_a_failure_is_one_sentence_without_tracebacks(home: Path) -> None:
    failed = dagster("asset", "materialize", "--select", "nowhere", home=home)
    assert failed.returncode == 1
    sentence = f"source {home}/nothing does not exist; give the folder"
    assert failed.stderr.count(sentence) == 1
    assert failed.stderr.strip().splitlines()[-1].startswith(sentence)
    assert "Stack Trace" not in failed.stderr and "Not executing" not in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_command_that_is_stopped_early_ends_at_once(home: Path) -> None:
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", "crops"]
    process = subprocess.Popen(
        [*command, "-m", "eval_ingest.definitions"],
        cwd=home, env=environment(), text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while "eval root" not in process.stderr.readline():  # the definitions are being loaded
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Stack Trace" not in err
    with sqlite3.connect(home / ".dagster" / "history" / "runs.db") as runs:
        found = runs.execute("select status from runs").fetchall()
    assert found in ([], [("CANCELED",)])


@pytest.fixture
def in_checkout(tmp_path: Path) -> list[str]:
    """A Python that starts as in a .venv of `make setup`; code and arguments are to follow."""
    script = str(REPOSITORY / "scripts" / "name_definitions.py")
    subprocess.run([sys.executable, script, str(tmp_path)], check=True)
    (pth,) = tmp_path.glob("*.pth")
    (line,) = (line for line in pth.read_text().splitlines() if line.startswith("import"))
    return [sys.executable, "-c", f"{line}\nexec(sys.argv.pop(1))"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selected", "said", "last"),
    [
        (("crop",), '["crops"]', "Which datasets there are: eval-ingest list. To add one:"),
        (("window_index",), "no '--partition'", "A stage is run for one dataset: add --partition"),
    ],
)
def test_dagster_asset_materialize_says_at_the_end_what_to_do(
    selected: tuple[str, ...], said: str, last: str, home: Path, in_checkout: list[str]
) -> None:
    code = "import runpy; runpy.run_module('dagster', run_name='__main__', alter_sys=True)"
    failed = run([*in_checkout, code, "asset", "materialize", "--select", *selected], home)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith(last)
    assert said in failed.stderr
    assert failed.stderr.count("Traceback") == 0


@pytest.mark.slow
def test_dg_launches_a_dataset_and_then_does_nothing(home: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", home)
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--assets", "crops"]
    for said in ("crops: registered in", "crops: up to date, nothing to do"):
        done = run(launch, home)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "found"),
    [("dev", False), ("asset materialize", True), ("asset materialize -f other.py", False)],
)
def test_other_definitions_can_be_named_where_ours_are_found_by_themselves(
    arguments: str, found: bool, in_checkout: list[str], tmp_path: Path
) -> None:
    code = "print('DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME' in os.environ)"
    command = [sys.executable, "-m", "dagster", *arguments.split()]
    done = run([*in_checkout, code, *command], tmp_path)
    assert done.stdout.strip() == str(found), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", [True, False])
def test_dagster_definitions_validate_passes(home: Path, module: bool) -> None:
    checked = dagster("definitions", "validate", home=home, module=module)
    assert checked.returncode == 0, checked.stderr


def test_loading_the_code_location_imports_nothing_slow() -> None:
    code = (
        "import sys; from eval_ingest.definitions import defs; defs().resolve_asset_graph()\n"
        "slow = {'torch', 'rslearn', 'dagster_gcp', 'gcsfs', 'matplotlib', 'sklearn'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    assert run([sys.executable, "-c", code], Path.cwd()).stdout.strip() == "[]"
