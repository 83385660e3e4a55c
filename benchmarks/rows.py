"""`make bench-rows ROWS=1000000`: so many generated rows, indexed, split, judged and written.

No pixel is read: a small dataset is ingested, and the rows of its index are repeated under other
names and at other places, as if a run had been stopped when it had judged them all. The stages go
on with them as they always do, each in a process of its own. What is compared: seconds, and the
memory above that of the small dataset.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.bench import CACHE, GROUP, dataset, machine, open_job
from eval_ingest.indexing.build import partial_rows
from eval_ingest.indexing.partial import ARRIVED, PARTIAL_ROWS
from eval_ingest.indexing.work import IndexedShard
from eval_ingest.sources.base import Listed
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.index_file import read_index

STAGES = ("window_index", "split_assignment", "norm_stats", "weka_copy", "registry_entry")


def main() -> int:
    """Print a line a stage."""
    parser = argparse.ArgumentParser(prog="make bench-rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run(options.stage)))
        return 0
    print(machine())
    small = measured()
    prepare(options.rows)
    large, seconds = measured(), 0.0
    for stage in STAGES:
        above = (large[stage]["peak"] - small[stage]["peak"]) / options.rows
        seconds += large[stage]["seconds"]
        print(f"{stage:17} {large[stage]['seconds']:7.1f} s   {above:6.0f} bytes a row")
    print(f"{'together':17} {seconds:7.1f} s   {options.rows:,} rows")
    return 0


def root() -> Path:
    """The eval root."""
    return (CACHE / "rows").absolute()


def job() -> Any:
    """Samples are read from the source, so that there is nothing to pack."""
    return open_job(dataset(64, size=16, timesteps=4).absolute(), root(), copy="index")


def measured() -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each stage."""
    found = {}
    for stage in STAGES:
        command = [sys.executable, "-m", "benchmarks.rows", "--stage", stage]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[stage] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(stage: str) -> dict[str, float]:
    """Run one stage in this process."""
    from eval_ingest import pipeline

    work, rows = job(), root() / "rows.json"
    if rows.exists():
        work = replace(work, source=Generated(work.source.url, int(rows.read_text())))
    started = time.perf_counter()
    pipeline.run_stage(work, stage)
    seconds = time.perf_counter() - started
    # Not ru_maxrss: after fork and exec that counts what the starting process had in memory.
    [line] = [li for li in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in li]
    return {"seconds": seconds, "peak": int(line.split()[1]) * 1024}


def prepare(rows: int) -> None:
    """Leave so many rows as a stopped run would, instead of the small index."""
    work = job()
    index = read_index(work.layout.window_index)
    assert index is not None
    table, parts = index.table.whole(), partial_rows(work)
    parts.packing_key = ARRIVED
    for first in range(0, rows, PARTIAL_ROWS):
        shard = repeated(table, range(first, min(first + PARTIAL_ROWS, rows)))
        parts.add(IndexedShard(shard))
    parts.flush()
    work.layout.window_index.unlink()
    (root() / "rows.json").write_text(str(rows))


@dataclass(frozen=True)
class Generated(LocalSource):
    """So many windows, as far as a listing tells."""

    rows: int = 0

    def groups(self) -> list[str]:
        """The only one."""
        return [GROUP]

    def names(self, groups: list[str]) -> None:  # type: ignore[override]
        """Their digests are wanted."""

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        """All of them."""
        return (Listed(GROUP, f"window_{k:07d}", f"{k:032x}") for k in range(self.rows))


def repeated(table: pa.Table, rows: range) -> pa.Table:
    """The rows again and again, each under a name and at a place of its own."""
    times = -(-len(rows) // table.num_rows)
    table = pa.concat_tables([table] * times).slice(0, len(rows)).combine_chunks()
    changed = {
        "group": pa.array([GROUP] * len(rows)),
        "name": pa.array([f"window_{k:07d}" for k in rows]),
        "source_digest": pa.array([f"{k:032x}" for k in rows]),
        "pixel_digest": pa.array([f"{2 * k:016x}" for k in rows]),
        "bounds": pa.array(corners(np.array(rows)).tolist()),
    }
    for name, values in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), values)
    return table


def corners(k: np.ndarray) -> np.ndarray:
    """Bounds in pixels of 10 m, none over another: rows of them from the equator on."""
    left, bottom = 17_000 + 50 * (k % 1200), 50 * (k // 1200)
    return np.column_stack([left, -bottom - 48, left + 48, -bottom])


if __name__ == "__main__":
    sys.exit(main())
