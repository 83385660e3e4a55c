"""`make profile`: clocks stand where the code is, and what they say adds up."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from benchmarks.profile import PARTS, Clocks

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("place", [place for places in PARTS.values() for place in places])
def test_a_clock_stands_around_a_function_that_is_there(place: str) -> None:
    module, _, path = place.partition(":")
    assert callable(attrgetter(path)(importlib.import_module(module)))


def test_what_a_part_does_by_way_of_another_is_the_others(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clocks")

    def work() -> None:
        sum(range(300_000))

    inner = clocks.around(1, work)
    clocks.around(0, lambda: (work(), inner(), inner()))()
    outer, inside = clocks.seconds[0], clocks.seconds[1]
    assert 0 < outer < inside


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_profile_adds_up_and_knows_what_workers_do(
    engine: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.profile", "--repeat", "1",
               "--source", str(written("segmentation")), "--at", str(tmp_path)]  # fmt: skip
    environment = {**os.environ, "EVAL_INGEST_ENGINE": engine, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (.+) \| ([\d.]+) \| ([\d.]+) \| [\d.]+% \|$", done.stdout, re.M)
    parts = {name: (float(parent), float(workers)) for name, parent, workers in rows}
    whose = engine == "processes"
    for name in ("listing files", "reading files", "decoding", "packing", "writing files"):
        assert parts[name][whose] > 0, name
    assert parts["imports"][0] > 0
    total = float(re.search(r"^\| all, in [\d.]+ s \| ([\d.]+)", done.stdout, re.M)[1])  # type: ignore[index]
    assert sum(map(sum, parts.values())) == pytest.approx(total, rel=0.05)
    assert "The floor: " in done.stdout and list(tmp_path.iterdir()) == []
