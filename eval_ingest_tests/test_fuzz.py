"""Damaged input gives right values or an error of ours: the short form of `make torture`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_ingest_tests.support import fuzz

CASES = {
    "windows with raster labels": 1,
    "config.json, model.yaml, olmoearth_run.yaml": 40,
    "numbers of a configuration": 12,
    "poisoned configurations and windows": 1,
    "windows in a database": 30,
    "catalog entries": 60,
    "archives": 30,
    "archives with one byte flipped": 3,
    "metadata.json, registry.json": 1,
    "Parquet of an eval root": 1,
    "packed samples": 1,
    "copied labels": 2,
    "files of somebody else's dataset": 2,
    "what is shared, and what is remembered": 1,
    "what a stopped ingest left": 2,
}
"""Few, and not of every kind: `make torture` tries others each time, and thousands."""


@pytest.fixture(scope="module")
def exits() -> Iterator[fuzz.Exits]:
    with fuzz.forking() as found:
        yield found


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_told_or_harmless(kind: str, exits: fuzz.Exits, tmp_path: Path) -> None:
    report = fuzz.run(kind, tmp_path / "fuzz", seed=1, cases=CASES[kind], exits=exits)
    assert list(fuzz.failures(report)) == []
    assert report.tried == CASES[kind]
    assert report.slowest_s < fuzz.LONGEST_S
