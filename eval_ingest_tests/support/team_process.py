"""The existing OlmoEarth eval code as its users run it: it ingests, registers and reads.

Run by .venv-peers' Python, not by ours: see peer_process.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import peer_process
from benchmarks.peer import _use_these_workers, ingest


def ingest_all(sources, root):
    """Ingest and register datasets, by name; returns their entries."""
    for name, source in sources.items():
        ingest(source, root, name)
    return peer_process.configs(f"{root}/registry.json")


def read(registry, name, split, out, arguments=None):
    """Write a split's samples to a .npz; returns the windows in order."""
    _use_these_workers()
    return peer_process.read(registry, name, split, out, arguments)


python_tasks = peer_process.python_tasks
lookups = peer_process.lookups
own_tasks = peer_process.own_tasks


if __name__ == "__main__":
    sys.meta_path.append(peer_process._Absent())
    peer_process.serve(globals())
