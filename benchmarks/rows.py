"""`make bench-rows ROWS=1000000`: a generated index of so many windows, split, judged and written.

No pixel is read: a small dataset is ingested, the rows of its index are repeated under other names
and at other places, and the stages after the index run on them as they always do, each in a
process of its own. What is compared: seconds, and the memory above that of the small dataset.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.bench import CACHE, GROUP, dataset, machine, open_job

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
    for stage in STAGES[1:]:
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

    if stage == STAGES[0]:
        if (root() / "rows.json").exists():
            return {}  # it stays as it was made
        shutil.rmtree(root(), ignore_errors=True)
    started = time.perf_counter()
    pipeline.run_stage(job(), stage)
    seconds = time.perf_counter() - started
    # Not ru_maxrss: after fork and exec that counts what the starting process had in memory.
    [line] = [li for li in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in li]
    return {"seconds": seconds, "peak": int(line.split()[1]) * 1024}


def prepare(rows: int) -> None:
    """Write an index of so many rows in the place of the small one."""
    from dataclasses import replace

    from eval_ingest.job import write_config
    from eval_ingest.store.index_file import read_index, write_index

    work = job()
    index = read_index(work.layout.window_index)
    assert index is not None
    index = replace(
        index, table=repeated(index.table.whole(), rows), fingerprint=f"{time.time_ns():016x}"
    )
    write_index(work.layout.window_index, index)
    write_config(work, index.fingerprint)
    (root() / "rows.json").write_text(str(rows))


def repeated(table: pa.Table, rows: int) -> pa.Table:
    """The rows again and again, each under a name and at a place of its own."""
    times = -(-rows // table.num_rows)
    table = pa.concat_tables([table] * times).slice(0, rows).combine_chunks()
    changed = {
        "group": pa.array([GROUP] * rows),
        "name": pa.array([f"window_{k:07d}" for k in range(rows)]),
        "source_digest": pa.array([f"{k:032x}" for k in range(rows)]),
        "pixel_digest": pa.array([f"{2 * k:016x}" for k in range(rows)]),
        "geometry": pa.array(squares(rows)),
    }
    for name, values in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), values)
    return table


def squares(rows: int) -> list[bytes]:
    """As many squares of half a kilometre, none over another, as WKB."""
    k = np.arange(rows)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * 0.005
    lowest = np.column_stack([-170 + 0.01 * (k % 34_000), -60 + 0.01 * (k // 34_000)])
    points = (lowest[:, None, :] + corners).astype("<f8")
    head = struct.pack("<BIII", 1, 3, 1, 5)
    return [head + square.tobytes() for square in points]


if __name__ == "__main__":
    sys.exit(main())
