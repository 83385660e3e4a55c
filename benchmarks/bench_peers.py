"""`make bench-peers`: how fast, beside the existing OlmoEarth eval code, all in one run.

Both get the same generated dataset from the same warm page cache, as many workers, compiled
bytecode, and turns in alternating order. Every figure is a median; the spread is in the JSON.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.bench import CACHE, dataset, machine, remove
from benchmarks.peer_pipe import PYTHON, PYTHON_COMMAND, Peer

NAME = "tolbi_crops"
SCRIPT = Path(__file__).parent / "peer.py"


@dataclass
class Comparison:
    """One line of the table."""

    what: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    """How many times better ours is."""
    wanted: float | None = None
    """The ratio to reach."""
    ours_all: list[float] = field(default_factory=list)
    theirs_all: list[float] = field(default_factory=list)

    def line(self, width: int) -> str:
        """As text."""
        digits = 0 if self.unit == "/s" else 3
        wanted = f"(to reach: {self.wanted:g}x)" if self.wanted else ""
        return (
            f"{self.what:<{width}}  {self.ours:>10,.{digits}f} {self.unit:<2}  "
            f"{self.theirs:>10,.{digits}f} {self.unit:<2}  {self.ratio:>7,.1f}x {wanted}".rstrip()
        )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--windows", type=int, default=250)
    parser.add_argument("--repeat", type=int, default=3, help="turns of the ingest; default 3")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--at", type=Path, default=CACHE, help="where both write")
    parser.add_argument("--probe", action="store_true", help="a linear probe, too: many minutes")
    options = parser.parse_args()
    if not PYTHON.exists():
        print("there is no .venv-peers; run: make peers", file=sys.stderr)
        return 1
    source = dataset(options.windows).absolute()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{options.windows} windows of 64 x 64 pixels, 12 timesteps, 12 bands; {cores} workers "
        f"each; {machine()}; load {os.getloadavg()[0]:.1f} at the start"
    )
    base = (options.at / f"peers_{options.windows}").absolute()
    remove(base)
    environment = {"OLMOEARTH_INGEST_WORKERS": str(cores), "NUM_WORKERS": str(cores)}
    os.environ.update(environment)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows = [
        *ingests(source, base, options.repeat),
        *openings(base, options.repeat + 4, options.probe),
        *processes(base, options.repeat),
    ]
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}}  {'eval_ingest':>13}  {'existing code':>13}")
    for row in rows:
        print(row.line(width))
    if options.json:
        facts = {"windows": options.windows, "machine": machine(), "workers": cores}
        options.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=2))
    return 0


def alternate(
    repeat: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Run both in turns, the first one changing; what each returned."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeat):
        for k in (0, 1) if turn % 2 == 0 else (1, 0):
            found[k].append((ours, theirs)[k]())
    return found


def compared(
    what: str, both: tuple[list[float], list[float]], wanted: float | None = None
) -> Comparison:
    """Seconds of both, compared by their medians."""
    ours, theirs = map(statistics.median, both)
    return Comparison(what, "s", ours, theirs, theirs / ours, wanted, *both)


def timed(command: list[str | Path], **environment: str) -> tuple[float, float, str]:
    """Seconds of a process, CPU seconds of it and all its descendants, what it printed last."""
    adopt_orphans()
    others = _children()  # such as multiprocessing's resource tracker, which ends with us
    started, before = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    seconds = time.perf_counter() - started
    while orphans := _children() - others:
        os.waitpid(orphans.pop(), 0)
    used = _cpu_of_children() - before
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()
    return seconds, used, lines[-1] if lines else ""


def adopt_orphans() -> None:
    """Become the parent of descendants that outlive theirs: else their CPU time is nobody's.

    Workers are forked by a server process, which its own parent doesn't wait for.
    """
    set_child_subreaper = 36  # of linux/prctl.h
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ingests(source: Path, base: Path, repeat: int) -> list[Comparison]:
    """Whole ingests, each in a process of its own into an empty folder."""
    cpu: tuple[list[float], list[float]] = ([], [])
    roots = {"ours": 0, "theirs": 0}

    def fresh(whose: str) -> Path:
        # Another folder each time, and none is removed before the end: see `remove`.
        number, roots[whose] = roots[whose], roots[whose] + 1
        root = base / (f"{whose}_{number}" if number else whose)
        root.mkdir(parents=True)
        warm(source)
        os.sync()  # nobody pays for what another has written
        return root

    def ours() -> float:
        root = fresh("ours")
        code = "import sys; from eval_ingest.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "ingest", NAME, "--source", source]
        seconds, used, _ = timed(command, OLMOEARTH_EVAL_DATASETS=str(root))
        cpu[0].append(used)
        return seconds

    def theirs() -> float:
        root = fresh("theirs")
        seconds, used, _ = timed([*PYTHON_COMMAND, SCRIPT, "ingest", source, root, NAME])
        cpu[1].append(used)
        return seconds

    whole = alternate(repeat, ours, theirs)
    remove(*base.glob("*_*"))
    return [
        compared("whole ingest, as a process", whole, 12),
        compared("  CPU time of all its processes", cpu),
    ]


def warm(folder: Path) -> None:
    """Read every file, so that it is in the page cache."""
    for base, _, names in os.walk(folder):
        for name in names:
            (Path(base) / name).read_bytes()


def openings(base: Path, repeat: int, probe: bool = False) -> list[Comparison]:
    """Opening a split to its first sample, and random samples, both with everything imported."""
    from eval_ingest import EvalDataset

    with tempfile.TemporaryDirectory() as scratch:
        repository = str(Path(__file__).parents[1])
        peer = Peer(SCRIPT, Path(scratch) / "log", PYTHONPATH=repository)
        peer("warm")
        own, from_ours = base / "theirs" / "registry.json", base / "ours" / "registry.json"

        def dataset() -> EvalDataset:
            return EvalDataset(NAME, "train", root=base / "ours", normalize="pretrained")

        def first_sample() -> float:
            started = time.perf_counter()
            dataset()[0]
            return time.perf_counter() - started

        def opens(registry: Path, fresh: bool = False) -> Callable[[], float]:
            return lambda: float(
                peer("opened", registry=registry, name=NAME, split="train", fresh=fresh)
            )

        scan = alternate(3, first_sample, opens(own, fresh=True))
        opens(own)(), first_sample()
        again = alternate(repeat, first_sample, opens(own))
        theirs_on_ours = alternate(repeat, first_sample, opens(from_ours))
        rows = [
            compared("open a split to its first sample", again, 200),
            compared("  the first time: it scans the windows", scan),
            compared("  it on our copy, the first time too", theirs_on_ours),
            _samples(dataset(), peer, own),
            _fed(peer, base / "ours"),
            *(probes(peer, Path(scratch)) if probe else ()),
        ]
        peer.close()
    return rows


def _samples(ours: Iterable[object], peer: Peer, registry: Path) -> Comparison:
    """Random samples a second, cropped and normalised."""
    import random

    def sample_ours(count: int = 3000) -> float:
        order = random.Random(0).choices(range(len(ours)), k=count)  # type: ignore[arg-type]
        started = time.perf_counter()
        for i in order:
            ours[i]  # type: ignore[index]
        return count / (time.perf_counter() - started)

    def sample_theirs(count: int = 60) -> float:
        arguments = {"registry": registry, "name": NAME, "split": "train"}
        return count / float(peer("sampled", **arguments, count=count, seed=0))

    sample_ours(), sample_theirs()
    both = alternate(5, sample_ours, sample_theirs)
    own, theirs = map(statistics.median, both)
    what = "random samples, one process"
    return Comparison(what, "/s", own, theirs, own / theirs, 150, *both)


def probes(peer: Peer, folder: Path, windows: int = 120, repeat: int = 3) -> list[Comparison]:
    """A linear probe of pixels' classes: all eight learning rates, test score and interval.

    Embeddings of 16 x 16 patches of 128 values, as OlmoEarth nano gives of a window.
    """
    import numpy as np
    import torch

    from eval_ingest.core.task import Task, TaskKind
    from eval_ingest.sweep.embed import Embedded
    from eval_ingest.sweep.probes import EPOCHS, LEARNING_RATES, run_linear
    from eval_ingest.sweep.rows import Rows

    side, patch, width, classes = 16, 4, 128, 7
    rng, arrays, rows = np.random.default_rng(0), {}, []
    mixing = rng.normal(size=(classes, width)).astype(np.float32)
    for split, n in (("train", windows), ("val", windows // 4), ("test", windows // 4)):
        labels = rng.integers(0, classes, (n, side, side))
        features = mixing[labels] + rng.normal(0, 3, (n, side, side, width)).astype(np.float32)
        arrays[f"{split}_embeddings"] = features
        arrays[f"{split}_labels"] = labels.repeat(patch, 1).repeat(patch, 2)
        target = np.repeat(labels.reshape(-1, 1), patch**2, 1).astype(np.int16)
        size = np.full(n, side)
        places = np.stack([side**2 * np.arange(n), size**2, size, size], axis=1)
        rows.append(Rows.of(Embedded(features.reshape(-1, width), target, places, 0.0)))
    np.savez(folder / "probe.npz", **arrays)
    cpu: tuple[list[float], list[float]] = ([], [])
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=classes)

    def ours() -> float:
        torch.set_num_threads(1)
        wall, own = time.perf_counter(), time.process_time()
        run_linear(task, *rows, torch.device("cpu"), 0).test.interval()
        cpu[0].append(time.process_time() - own)
        return time.perf_counter() - wall

    def theirs() -> float:
        wall, own = peer(
            "probed", arrays=folder / "probe.npz", num_classes=classes,
            learning_rates=LEARNING_RATES, epochs=EPOCHS,
        )  # fmt: skip
        cpu[1].append(own)
        return float(wall)

    both = alternate(repeat, ours, theirs)
    return [
        compared("linear probe, eight rates, test and interval", both, 6),
        compared("  its CPU time", cpu, 6),
    ]


def _fed(peer: Peer, root: Path) -> Comparison:
    """What OlmoEarth's evaluator is fed with from our copy, with and without our module."""

    def fed(through: bool) -> float:
        arguments = {"root": root, "name": NAME, "batches": 100 if through else 1}
        return float(peer("fed", **arguments, through=through))

    fed(True)
    both = alternate(3, lambda: fed(True), lambda: fed(False))
    own, theirs = map(statistics.median, both)
    what = "its evaluator's data path, with our module and without"
    return Comparison(what, "/s", own, theirs, own / theirs, 100, *both)


def processes(base: Path, repeat: int) -> list[Comparison]:
    """A fresh process to its first sample: imports and all."""
    root = str(base / "ours")
    code = f"from eval_ingest import EvalDataset; EvalDataset({NAME!r}, 'train', root={root!r})[0]"
    registry = base / "theirs" / "registry.json"

    def ours() -> float:
        return timed([sys.executable, "-c", code])[0]

    def theirs() -> float:
        return timed([*PYTHON_COMMAND, SCRIPT, "first", registry, NAME, "train"])[0]

    ours(), theirs()
    return [compared("a new process to its first sample", alternate(repeat, ours, theirs))]


if __name__ == "__main__":
    sys.exit(main())
