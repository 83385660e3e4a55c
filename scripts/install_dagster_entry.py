"""Makes the `dagster` command of this environment at home in the checkout. The Makefile runs it.

- `dagster asset ...` finds our definitions without -m. It reads neither pyproject.toml nor
  workspace.yaml, only DAGSTER_MODULE_NAME; and with that variable set for good, `dagster dev`
  doesn't start. So it is set for `dagster asset` alone.
- Where there is a dagster.yaml and no DAGSTER_HOME, .dagster/ is the home. Else `dagster dev` says
  that it keeps everything in a temporary folder, though dagster.yaml says where.
- Nobody is told to use `dg` instead, which these definitions don't need.
"""

import stat
import sys
from pathlib import Path

ENTRY = """\
#!{python}
# Written by eval_ingest's scripts/install_dagster_entry.py: see there.
import logging
import os
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

if __name__ == "__main__":  # worker processes import this file, too
    if sys.argv[1:2] == ["asset"] and not {{"-m", "--module-name", "-f"}} & set(sys.argv):
        os.environ.setdefault("DAGSTER_MODULE_NAME", "eval_ingest.definitions")
    if "DAGSTER_HOME" not in os.environ and Path("dagster.yaml").is_file():
        home = Path(".dagster").absolute()
        home.mkdir(exist_ok=True)
        if not (home / "dagster.yaml").is_symlink():
            (home / "dagster.yaml").symlink_to(Path("..", "dagster.yaml"))
        os.environ["DAGSTER_HOME"] = str(home)
        logging.getLogger("dagster").addFilter(  # it is the same file
            lambda record: "dagster.yaml) in the current folder" not in str(record.msg)
        )
    warnings.filterwarnings("ignore", message=".*is superseded and its usage is discouraged")
    (command,) = entry_points(group="console_scripts", name="dagster")
    sys.exit(command.load()())
"""

if __name__ == "__main__":
    command = Path(sys.executable).with_name("dagster")
    command.write_text(ENTRY.format(python=sys.executable))
    command.chmod(command.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
