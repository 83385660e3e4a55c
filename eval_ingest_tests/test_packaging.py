"""What is installed: a plain `pip install` loads datasets; hooks and lint agree."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools
import torch
import yaml

from eval_ingest.engine import executor
from eval_ingest.errors import SettingsError, SweepError, cure_by
from eval_ingest.settings import Settings
from eval_ingest.sweep.encoders.olmoearth import load_olmoearth
from eval_ingest_tests.support.plain_install import only_with

REPOSITORY = Path(__file__).parents[1]


def test_a_plain_install_loads_datasets(ingested: Callable[[str], Path]) -> None:
    code = only_with() + (
        "from eval_ingest import EvalDataset\n"
        f"data = EvalDataset('segmentation', 'val', root={str(ingested('segmentation'))!r})\n"
        "next(data.batches(2)), next(iter(data.loader(2)))\n"
        "assert {'dagster', 'rslearn', 'google_crc32c', 'gcsfs'} <= hidden\n"
        "print(data[0]['sentinel2_l2a'].ndim)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_what_a_plain_install_lacks_is_told_by_every_command(
    ingested: Callable[[str], Path], tmp_path: Path
) -> None:
    root = shutil.copytree(ingested("segmentation"), tmp_path / "evals")
    commands = [
        "list", "info segmentation", "verify segmentation", "report segmentation",
        "ingest x --source /nowhere", "validate /nowhere", "discover --root /nowhere",
        "adopt --all", "registry rebuild", "sweep --encoder pixels --datasets all", "leaderboard",
        "export segmentation --to out", "pull hf://a/b/c", "tasks", "signal segmentation",
        "remove segmentation --yes",
    ]  # fmt: skip
    code = only_with() + (
        "from eval_ingest.cli import main\n"
        f"for command in {commands!r}:\n"
        "    code = main(command.split())\n"
        "    print(f'{command}: exit {code}', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "OLMOEARTH_EVAL_DATASETS": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    codes = dict(line.split(": exit ") for line in lines if ": exit " in line)
    works = {name.split()[0] for name, status in codes.items() if status == "0"}
    assert list(codes) == commands
    assert works == {"list", "info", "registry", "leaderboard", "tasks", "signal", "remove"}
    told = [line for line in lines if ": exit " not in line]
    assert len(told) == sum(status == "1" for status in codes.values())
    assert all("error: " in line and "pip install '.[ingest]'" in line for line in told)


def test_whatever_an_extra_brings_is_told_as_missing_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("distributed", "olmoearth_pretrain_minimal"):
        monkeypatch.setitem(sys.modules, module, None)
    asks: dict[str, Callable[[], object]] = {
        "dask": lambda: executor(Settings(engine="tcp://127.0.0.1:9"), 4000).__enter__(),
        "olmoearth": lambda: load_olmoearth("olmoearth:nano@random", 4, torch.device("cpu")),
    }
    for extra, ask in asks.items():
        with pytest.raises((SettingsError, SweepError)) as error:
            ask()
        assert str(error.value).endswith(cure_by(extra))
        assert f"[{extra}]" in cure_by(extra) and "checkout" in cure_by(extra)


def test_no_test_is_left_out_for_lack_of_what_setup_installs() -> None:
    for path in (REPOSITORY / "eval_ingest_tests").rglob("*.py"):
        assert path == Path(__file__) or "importorskip" not in path.read_text(), path


def test_a_commit_runs_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]  # nothing is fetched
    entries = [hook["entry"].split()[0] for hook in hooks[0]["hooks"]]
    dry = ["make", "--dry-run", "--always-make", "--no-print-directory", "lint"]
    lines = subprocess.run(dry, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    linters = ("ruff", "mypy", "lint-imports")
    commands = [line.split()[0] for line in lines.splitlines()]
    assert [c for c in commands if Path(c).name in linters] == entries


def make(at: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(REPOSITORY / "Makefile"), *arguments]
    return subprocess.run(command, cwd=at, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("first_line", "scored", "left"),
    [
        ("# Written by make demo: all", ["1a"], ["evals"]),
        ("# Written by make demo: all", ["1a", "2b"], ["evals", "sweep_results"]),
        ("STUDIO_ROOT=/mine", ["1a"], [".env", "evals", "sweep_results"]),
    ],
)
def test_make_clean_removes_the_demo_and_nothing_of_a_user(
    first_line: str, scored: list[str], left: list[str], tmp_path: Path
) -> None:
    assert "# Written by make demo" in (REPOSITORY / "scripts/demo.sh").read_text()
    for folder in (".demo/eval_datasets/tolbi_crops", ".dagster", "sweep_results/rows", "evals"):
        (tmp_path / folder).mkdir(parents=True)
    known = json.dumps({"fingerprint": "1a"}, indent=2)
    (tmp_path / ".demo/eval_datasets/tolbi_crops/metadata.json").write_text(known)
    for version in scored:
        row = json.dumps({"dataset": "tolbi_crops", "dataset_version": version}, indent=2)
        (tmp_path / f"sweep_results/rows/{version}.json").write_text(row)
    (tmp_path / ".env").write_text(first_line + "\n")
    done = make(tmp_path, "clean")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert ("sweep_results stays" in done.stdout) is (len(scored) == 2)


def test_make_clean_leaves_what_a_running_page_shows(tmp_path: Path) -> None:
    (tmp_path / ".dagster").mkdir()
    page = [sys.executable, "-c", "input()", "dagster", "dev"]  # looks like one
    with subprocess.Popen(page, cwd=tmp_path, stdin=subprocess.PIPE) as running:
        done = make(tmp_path, "clean")
        assert done.returncode != 0
        assert f"end process {running.pid}, then run make clean again" in done.stderr
        assert (tmp_path / ".dagster").exists()
        running.communicate(b"\n")
    assert make(tmp_path, "clean").returncode == 0
    assert not (tmp_path / ".dagster").exists()


def test_make_help_tells_what_can_be_set(tmp_path: Path) -> None:
    lines = make(tmp_path, "help").stdout.splitlines()
    lines = [line for line in lines if not line.startswith("make[")]  # within another make
    told = " ".join(" ".join(lines).split())
    for text in (
        "PORT=3001",
        "TEST_WORKERS=2",
        "WINDOWS=1000",
        "make demo a small rslearn dataset",
    ):
        assert text in told
    assert max(map(len, lines)) <= 80


def test_a_port_that_is_taken_is_told_with_another(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        at = f"VENV={sys.prefix}"
        done = make(tmp_path, "-o", f"{sys.prefix}/.ready", "ui", at, f"PORT={port}")
    assert done.returncode != 0 and not list(tmp_path.iterdir())
    assert f"port {port} is taken; take another: make ui PORT={port + 1}" in done.stderr


def test_sdist_and_wheel_hold_every_file_of_the_package(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    made = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    shutil.copytree(REPOSITORY / "eval_ingest", checkout / "eval_ingest", ignore=made)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, checkout)
    wanted = {str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_file()}
    command = [sys.executable, "-W", "ignore", "-c", "import setuptools; setuptools.setup()"]
    done = subprocess.run(
        [*command, "-q", "sdist", "--dist-dir", "../sdist", "build_py", "--build-lib", "../wheel"],
        cwd=checkout, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (setuptools.__version__, done.stderr)
    [sdist] = (tmp_path / "sdist").glob("eval_ingest-*.tar.gz")
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted - there == set()
    wheel = tmp_path / "wheel"
    there = {str(p.relative_to(wheel)) for p in wheel.rglob("*") if p.is_file()}
    assert there == {name for name in wanted if "/" in name}


def test_every_pin_is_made_once() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in lines if line and not line.startswith("#")]
    assert names == sorted(set(names))
