"""How much memory something takes at its worst: this process, and all that it starts.

Each process's peak is the kernel's own (VmHWM), so that none is missed between two looks. Their sum
is an upper bound: they need not be at their peaks at the same time, and share their libraries. What
this process sees of memory that it shares with one of them is that one's.

    python -m eval_ingest_tests.support.peaks

prints the table of the threat model: what each hostile window takes above an ordinary ingest.
"""

import ast
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

_LOOK_EVERY_S = 0.01


class Peak:
    """What `peak_of` has seen."""

    def __init__(self) -> None:
        self.by_process: dict[int, int] = {}
        self.shared = 0

    @property
    def n_bytes(self) -> int:
        """The processes' peaks together."""
        return sum(self.by_process.values()) - self.shared

    def look(self) -> None:
        """Take note of the peaks of this process and of those below it."""
        for pid in _tree(os.getpid()):
            self.by_process[pid] = _bytes(pid, "VmHWM") or self.by_process.get(pid, 0)
        self.shared = max(self.shared, _bytes(os.getpid(), "RssShmem"))


@contextlib.contextmanager
def peak_of_all() -> Iterator[Peak]:
    """Measure from here on, with what is there already; Linux alone."""
    for pid in _tree(os.getpid()):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            peak.look()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        stop.set()
        watching.join()
        peak.look()


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _bytes(pid: int, what: str) -> int:
    """0 of a process that has gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split(f"{what}:")[1].split()[0]) << 10
    return 0


_MEASURED = "is_one_invalid_window or largest_raster"


def _table() -> Iterator[str]:
    """As Markdown, measured by the test that holds the limit."""
    test = Path(__file__).parents[1] / "test_hostile.py"
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--junitxml={told}"]
        subprocess.run([*command, str(test), "-k", _MEASURED], stdout=sys.stderr)
        rows = [
            ast.literal_eval(found.get("value", "")) for found in ET.parse(told).iter("property")
        ]
    yield from ("| window | is | MiB above |", "| --- | --- | --- |")
    for kind, code, mib in sorted(rows, key=lambda row: -row[2]):
        yield f"| {kind} | {code} | {max(mib, 0)} |"


if __name__ == "__main__":
    print(*_table(), sep="\n")
