"""Has `dagster asset materialize --select NAME` find our definitions without a flag, in this .venv.

`name_definitions.py [FOLDER]`, run by the environment's Python: see the Makefile. It is no part of
the package.

Dagster 1.13 finds definitions by workspace.yaml or pyproject.toml in all of its commands but
`dagster asset`, which wants -m or DAGSTER_MODULE_NAME; and with that variable set for good,
`dagster dev` doesn't start. But every option of Dagster's commands may be given by a variable that
is named after the command (click's auto_envvar_prefix), so the option of these two is. Python reads
the .pth file when it starts, in this environment alone. Once `dagster asset` reads pyproject.toml,
as `dagster dev` and `dg launch` do, this file is needless.
"""

import sys
import sysconfig
from pathlib import Path

MODULE = "eval_ingest.definitions"
COMMANDS = ("MATERIALIZE", "LIST")
LINES = """\
# Written by eval_ingest's scripts/name_definitions.py, which says why. Other definitions: -m, -f.
import os, sys; "asset" in sys.orig_argv and {{*{other}}}.isdisjoint(sys.orig_argv) and {set_all}
"""
OTHER = {"-f", "--python-file", "--package-name", "--autoload-defs-module-name"}


def main(folder: Path) -> None:
    """Write the .pth file."""
    names = [f"DAGSTER_CLI_ASSET_{command}_MODULE_NAME" for command in COMMANDS]
    set_all = f"[os.environ.setdefault(name, {MODULE!r}) for name in {names}]"
    (folder / "eval_ingest_definitions.pth").write_text(
        LINES.format(other=sorted(OTHER), set_all=set_all)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("purelib")))
