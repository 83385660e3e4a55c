"""Our end of the pipe to the existing OlmoEarth eval code in .venv-peers."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"

PYTHON_COMMAND = [PYTHON, "-P"]
"""Without the script's folder on the path: a module beside it could hide one of Python's own."""


SCRIPT = Path(__file__).parent / "peer_process.py"


class PeerError(Exception):
    """What the other process raised."""


class Peer:
    """A process of .venv-peers that answers requests one by one; see peer_process.py."""

    def __init__(self, script: Path, log: Path, **environment: str) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [*PYTHON_COMMAND, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=log.parent,
            env={**os.environ, **environment},
        )

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Call a function there; arguments and result are JSON, paths become texts."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"do": do, "with": {k: _plain(v) for k, v in arguments.items()}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the other process ended:\n{self._log.read_text()[-3000:]}"
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(300)  # on a busy machine Python takes long to end


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
