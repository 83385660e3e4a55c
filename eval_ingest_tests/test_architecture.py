"""Which module may import which: the contracts of pyproject.toml."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_imports_go_down_only() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run(
        [command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_a_page_for_contributors_names_files_that_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    named = set(re.findall(r"`((?:[\w*]+/)*[\w*]+\.(?:py|c|yaml)|(?:\w+/)+)`", text))
    assert len(named) > 15
    inside = ("", "eval_ingest/", "eval_ingest/*/", "eval_ingest/*/*/")
    rooms = (*inside, "eval_ingest_tests/", "eval_ingest_tests/support/")
    there = {path for path in named for room in rooms if any(REPOSITORY.glob(room + path))}
    assert named - there == set()


def files(pattern: str, words: str) -> set[str]:
    """The files that match a pattern, with these words in them."""
    found = (path for path in REPOSITORY.glob(pattern) if re.search(words, path.read_text()))
    return {str(path.relative_to(REPOSITORY)) for path in found}


def test_private_names_of_dependencies_stand_in_one_file() -> None:
    private = r"dagster\._|\._call\b|_processes\b|\bfs\._|\._mmap\b|__main__\.__spec__"
    assert files("eval_ingest/**/*.py", private) == {"eval_ingest/objects/fsspec_backend.py"}


def test_a_local_root_and_a_remote_one_are_told_apart_in_one_room() -> None:
    assert all("/roots/" in path for path in files("eval_ingest/**/*.py", r"\bremote is\b"))


def test_no_benchmark_and_no_other_test_imports_a_test() -> None:
    assert files("benchmarks/*.py", r"(?m)^\s*(from|import) eval_ingest_tests") == set()


def test_what_scripts_import_of_the_package_is_there() -> None:
    folders = ("benchmarks", "scripts", "examples")
    for path in (p for folder in folders for p in REPOSITORY.glob(f"{folder}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if name == "eval_ingest.integrations.olmoearth_pretrain":
                continue  # it makes what one asks for, where that is installed
            if isinstance(node, ast.ImportFrom) and name.startswith("eval_ingest."):
                module = importlib.import_module(name)
                wanted = {alias.name for alias in node.names}
                lacking = {one for one in wanted if not hasattr(module, one)}
                lacking = {one for one in lacking if find_spec(f"{name}.{one}") is None}
                assert not lacking, f"{path.name} imports {lacking} from {name}"


def test_files_of_tests_have_less_than_six_hundred_lines() -> None:
    paths = REPOSITORY.glob("eval_ingest_tests/**/*.py")
    assert [p.name for p in paths if len(p.read_text().splitlines()) >= 600] == []
