"""Which module may import which: the contracts of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_imports_go_down_only() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run(
        [command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


def test_the_readme_names_files_that_exist() -> None:
    import re

    readme = (REPOSITORY / "README.md").read_text()
    named = re.findall(r"`(eval_ingest/[\w/.*]+)`", readme)
    assert named
    for path in named:
        assert list(REPOSITORY.glob(path.rstrip("/"))), f"README names {path}"
