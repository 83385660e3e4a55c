"""Lets `dagster asset ...` find our definitions without -m, in this environment.

That command reads neither pyproject.toml nor workspace.yaml, only DAGSTER_MODULE_NAME; and with
that variable set for good, `dagster dev` doesn't start. So the environment's `dagster` command
sets it for `dagster asset` alone. Run by the environment's Python: see the Makefile.
"""

import stat
import sys
from pathlib import Path

ENTRY = """\
#!{python}
# Written by eval_ingest's scripts/install_dagster_entry.py: see there.
import os
import sys
from importlib.metadata import entry_points

if __name__ == "__main__":  # worker processes import this file, too
    if sys.argv[1:2] == ["asset"] and not {{"-m", "--module-name", "-f"}} & set(sys.argv):
        os.environ.setdefault("DAGSTER_MODULE_NAME", "eval_ingest.definitions")
    (command,) = entry_points(group="console_scripts", name="dagster")
    sys.exit(command.load()())
"""

if __name__ == "__main__":
    command = Path(sys.executable).with_name("dagster")
    command.write_text(ENTRY.format(python=sys.executable))
    command.chmod(command.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
