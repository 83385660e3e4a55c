"""Puts eval_ingest/dagster_command.py in place of the environment's `dagster` command.

Run by the environment's Python: see the Makefile.
"""

import stat
import sys
from pathlib import Path

ENTRY = """\
#!{python}
# Written by eval_ingest's scripts/install_dagster_entry.py.
if __name__ == "__main__":  # worker processes import this file, too
    from eval_ingest.dagster_command import main

    main()
"""

if __name__ == "__main__":
    command = Path(sys.executable).with_name("dagster")
    command.write_text(ENTRY.format(python=sys.executable))
    command.chmod(command.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
