"""`make bench`: how fast, beside rslearn and a plain numpy memory map, all in one run.

Times on shared machines are noisy: ratios between neighbours in one run are what to compare.
Every figure is a median of several repetitions.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path(".cache/bench")
GROUP = "20251210"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--windows", type=int, default=250)
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="e.g. 250 1000 4000")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--one-ingest", nargs=2, metavar=("SOURCE", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_ingest:
        print(json.dumps(_one_ingest(*options.one_ingest)))
        return 0
    warnings.simplefilter("ignore")
    source = dataset(options.windows)
    print(f"{options.windows} windows of 64 x 64 pixels, 12 timesteps, 12 bands; {machine()}")
    rows = [*ingest_rows(source, options.windows), *decode_rows(source), *load_rows(source)]
    if options.growth:
        rows += growth_rows(options.growth)
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        print(f"{row['what']:<{width}}  {row['ours']:>22}  {row['reference']:>36}  {row['ratio']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0


def machine() -> str:
    """The machine's size and the date, for the record."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    today = datetime.now(UTC).date()
    return f"{cores} cores, {memory:.0f} GiB, Python {platform.python_version()}, {today}"


def dataset(windows: int) -> Path:
    """A tolbi-like source dataset of that many windows, written once."""
    root = CACHE / f"source_{windows}"
    if not (root / ".complete").exists():
        from eval_ingest.demo import write_tolbi_like

        print(f"writing {windows} windows through rslearn (once) ...", file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
        write_tolbi_like(root, "tolbi", windows=windows, seed=1, broken=False, workers=2)
        (root / ".complete").touch()
    return root / "tolbi"


def row(what: str, ours: str, reference: str, ratio: str) -> dict[str, str]:
    """A line of the table."""
    return {"what": what, "ours": ours, "reference": reference, "ratio": ratio}


def median_seconds(work: Callable[[], Any], repeat: int = 5) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# ------------------------------------------------------------------------------------- ingest


def _one_ingest(source: str, root: str) -> dict[str, float]:
    """Ingest in this process; seconds, peak memory, seconds per stage."""
    from eval_ingest import pipeline
    from eval_ingest.core.spec import DatasetSpec
    from eval_ingest.settings import Settings

    spec = DatasetSpec(name="tolbi_crops", source=source)
    started = time.perf_counter()
    job = pipeline.open_job(spec, Settings.load({"OLMOEARTH_EVAL_DATASETS": root}, Path("none")))
    outcomes = pipeline.ingest(job)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # unlike getrusage, it forgets the parent's peak
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"seconds": seconds, "peak": peak, **{o.stage: o.seconds for o in outcomes}}


def run_ingest(source: Path, root: Path) -> dict[str, float]:
    """Ingest in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.bench", "--one-ingest", str(source), str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ingest_rows(source: Path, windows: int) -> list[dict[str, str]]:
    """A first ingest, one with nothing to do, one with another split policy."""
    root = CACHE / f"root_{windows}"
    shutil.rmtree(root, ignore_errors=True)
    first = run_ingest(source, root)
    again = min((run_ingest(source, root) for _ in range(3)), key=lambda found: found["seconds"])
    return [
        row(
            "whole ingest",
            f"{first['seconds']:.2f} s",
            f"{first['seconds'] / windows * 1e3:.1f} ms a window",
            f"index {first['window_index']:.2f} s, copy {first['weka_copy']:.2f} s",
        ),
        row(
            "second ingest, nothing changed",
            f"{again['seconds'] * 1e3:.0f} ms",
            f"the first {first['seconds']:.2f} s",
            f"{again['seconds'] / first['seconds']:.1%}",
        ),
    ]


def growth_rows(sizes: list[int]) -> list[dict[str, str]]:
    """How time and memory grow with the number of windows."""
    rows = []
    for windows in sizes:
        root = CACHE / f"growth_{windows}"
        shutil.rmtree(root, ignore_errors=True)
        found = run_ingest(dataset(windows), root)
        shutil.rmtree(root)
        rows.append(
            row(
                f"ingest of {windows} windows",
                f"{found['seconds']:.1f} s",
                f"{found['seconds'] / windows * 1e3:.1f} ms a window",
                f"peak {found['peak'] / 2**20:.0f} MiB",
            )
        )
    return rows


# ------------------------------------------------------------------------------------- decode


def decode_rows(source: Path, count: int = 60) -> list[dict[str, str]]:
    """Decode, judge and measure a window, beside rslearn's own sample."""
    from eval_ingest import pipeline
    from eval_ingest.core.spec import DatasetSpec
    from eval_ingest.indexing import IndexTask, WindowFilter
    from eval_ingest.settings import Settings

    job = pipeline.open_job(DatasetSpec(name="tolbi_crops", source=str(source)), Settings(), CACHE)
    names = list(job.source.names([GROUP]))[:count]
    task = IndexTask(job.source, job.config, WindowFilter())
    items = list(enumerate(names))
    task(items)  # the files are in the page cache from now on, for rslearn as well
    one = median_seconds(lambda: task(items), 3) / len(items)
    with ThreadPoolExecutor(2) as pool:
        halves = [items[::2], items[1::2]]
        two = median_seconds(lambda: list(pool.map(task, halves)), 3) / len(items)
    reference = model_dataset(source)
    step = max(len(reference) // count, 1)
    theirs = median_seconds(lambda: [reference[i * step] for i in range(20)], 3) / 20
    return [
        row(
            "decode, judge and measure a window",
            f"{one * 1e3:.1f} ms",
            f"rslearn ModelDataset {theirs * 1e3:.1f} ms",
            f"{theirs / one:.1f}x faster",
        ),
        row("  on two threads", f"{two * 1e3:.1f} ms", "", f"{one / two:.2f}x of one"),
    ]


def model_dataset(source: Path, index_mode: str = "off", tags: dict[str, str] | None = None) -> Any:
    """rslearn's ModelDataset over the same samples."""
    # rslearn's tasks import wandb to draw confusion matrices, but don't depend on it.
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))
    from rslearn.config import DType
    from rslearn.dataset import Dataset
    from rslearn.train.dataset import DataInput, IndexMode, ModelDataset, SplitConfig
    from rslearn.train.tasks.segmentation import SegmentationTask
    from upath import UPath

    from eval_ingest.core.modality import MODALITIES

    inputs = {
        "sentinel2_l2a": DataInput(
            "raster",
            ["sentinel2"],
            bands=list(MODALITIES["sentinel2_l2a"].bands),
            passthrough=True,
            load_all_layers=True,
            load_all_item_groups=True,
        ),
        "targets": DataInput(
            "raster", ["label_raster"], bands=["label"], is_target=True, dtype=DType.INT32
        ),
    }
    with contextlib.redirect_stderr(io.StringIO()):
        return ModelDataset(
            Dataset(UPath(source)),
            SplitConfig(groups=[GROUP], tags=tags),
            inputs,
            SegmentationTask(num_classes=7, zero_is_invalid=True),
            workers=0,
            index_mode=IndexMode(index_mode),
        )


# --------------------------------------------------------------------------------------- load


def load_rows(source: Path) -> list[dict[str, str]]:
    """Open a split, random samples, batches."""
    from eval_ingest.loading import EvalDataset

    root = CACHE / f"root_{source.parent.name.removeprefix('source_')}"

    def open_ours() -> Any:
        return EvalDataset("tolbi_crops", "train", root=root, crop=None)[0]

    tags = {"split": "train"}
    model_dataset(source, "use", tags)  # writes rslearn's index
    opened = median_seconds(open_ours)
    theirs = median_seconds(lambda: model_dataset(source, "use", tags)[0], 3)
    shutil.rmtree(source / ".rslearn_dataset_index", ignore_errors=True)

    dataset = EvalDataset("tolbi_crops", "train", root=root, crop=None, normalize=None)
    order = np.random.default_rng(0).integers(0, len(dataset), 300).tolist()
    for i in range(len(dataset)):
        dataset[i]
    ours = len(order) / median_seconds(lambda: [dataset[i] for i in order], 3)
    reference = model_dataset(source)
    rslearn = 20 / median_seconds(lambda: [reference[i] for i in range(20)], 3)

    normalized = EvalDataset("tolbi_crops", "train", root=root, crop=None)

    def run_batches(which: EvalDataset) -> None:
        for batch in which.batches(32):
            del batch

    plain = len(dataset) / median_seconds(lambda: run_batches(dataset), 3)
    normal = len(dataset) / median_seconds(lambda: run_batches(normalized), 3)
    stored = dataset._map(0, "sentinel2_l2a")

    def copy_plain() -> None:
        out = np.empty((32, *stored.shape[1:]), np.float32)
        for start in range(0, len(dataset) - 31, 32):
            np.copyto(out, stored[start : start + 32])

    memmap = (len(dataset) // 32 * 32) / median_seconds(copy_plain, 3)
    return [
        row(
            "open a split to its first sample",
            f"{opened * 1e3:.1f} ms",
            f"ModelDataset, index USE {theirs * 1e3:.0f} ms",
            f"{theirs / opened:.0f}x faster",
        ),
        row(
            "random samples a second",
            f"{ours:,.0f}",
            f"ModelDataset {rslearn:.0f}",
            f"{ours / rslearn:.0f}x",
        ),
        row(
            "batches of 32, samples a second",
            f"{plain:,.0f}",
            f"numpy memmap to float32 {memmap:,.0f}",
            f"{plain / memmap:.2f}",
        ),
        row(
            "  normalised",
            f"{normal:,.0f}",
            f"not normalised {plain:,.0f}",
            f"{normal / plain:.2f}",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
