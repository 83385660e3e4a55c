"""The `dagster` command of this environment, at home in the checkout.

scripts/install_dagster_entry.py puts it in place of Dagster's own, which it calls.

- `dagster asset ...` finds our definitions without -m. It reads neither pyproject.toml nor
  workspace.yaml, only DAGSTER_MODULE_NAME; and with that variable set for good, `dagster dev`
  doesn't start. So it is set for `dagster asset` alone.
- Where there is a dagster.yaml and no DAGSTER_HOME, .dagster/ is the home. Else `dagster dev` says
  that it keeps everything in a temporary folder, though dagster.yaml says where.
- What went wrong is said once more after the traceback, where people look.
- Nobody is told to use `dg` instead, which these definitions don't need.
"""

import logging
import os
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

MODULE = "eval_ingest.definitions"


def main() -> NoReturn:
    """Run Dagster's command with the arguments of this process."""
    if sys.argv[1:2] == ["asset"] and not {"-m", "--module-name", "-f"} & set(sys.argv):
        os.environ.setdefault("DAGSTER_MODULE_NAME", MODULE)
    if "DAGSTER_HOME" not in os.environ and Path("dagster.yaml").is_file():
        os.environ["DAGSTER_HOME"] = str(_home(Path(".dagster").absolute()))
    warnings.filterwarnings("ignore", message=".*is superseded and its usage is discouraged")
    (command,) = entry_points(group="console_scripts", name="dagster")
    try:
        sys.exit(command.load()())
    except SystemExit as stop:
        failures = sys.modules.get("eval_ingest.defs.failures")
        if stop.code and failures is not None and failures.told:
            print(failures.told[-1], file=sys.stderr)
        raise
    except Exception as error:
        if type(error).__name__ != "DagsterInvalidSubsetError":  # importing it takes a second
            raise
        sys.exit(
            f"{error}\nWhich datasets there are: eval-ingest list. "
            "To add one: eval-ingest ingest --name NAME --source PATH_OR_URL"
        )


def _home(home: Path) -> Path:
    """Make a folder Dagster's home that goes by the dagster.yaml above it."""
    home.mkdir(exist_ok=True)
    if not (home / "dagster.yaml").is_symlink():
        (home / "dagster.yaml").symlink_to(Path("..", "dagster.yaml"))
    logging.getLogger("dagster").addFilter(_is_news)
    return home


def _is_news(record: logging.LogRecord) -> bool:
    """False for the warning that there are two dagster.yaml: one is a link to the other."""
    return "dagster.yaml) in the current folder" not in str(record.msg)
