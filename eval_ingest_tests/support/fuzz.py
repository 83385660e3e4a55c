"""Thousands of damaged inputs: each gives right values or an error of ours, soon and in bounds.

A kind is a class whose instances try one case after the other. `run` does so in a process of its
own: a case that takes too long ends it, and so does one that fills the memory. The short form is
test_fuzz.py, the long one `make torture`.
"""

import faulthandler
import json
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from eval_ingest_tests.support import (
    fuzz_archives,
    fuzz_forged,
    fuzz_hostile,
    fuzz_shared,
    fuzz_sources,
    fuzz_stored,
    killing,
    rasters,
)
from eval_ingest_tests.support.fuzz_kinds import Kind

LONGEST_S = 60.0
"""A case that takes longer hangs, on a quiet machine."""

MOST_BYTES = 3 << 30
"""Private memory that a process with one case may have, the libraries' own included."""


@dataclass
class Report:
    """What became of the cases of one kind."""

    kind: str
    tried: int = 0
    inputs: int = 0
    """Damaged inputs in these cases: some have several."""
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """What should not have happened, with the seed of the case."""
    slowest_s: float = 0.0
    peak_bytes: int = 0
    """Of resident memory, the libraries' own included."""


KINDS: dict[str, type[Kind]] = {
    "windows with raster labels": fuzz_sources.Windows,
    "windows with vector labels": fuzz_sources.VectorWindows,
    "windows with three modalities": fuzz_sources.ManyModalities,
    "windows with float labels": fuzz_sources.RegressionWindows,
    "rasters beside rslearn": rasters.Rasters,
    "windows in a database": fuzz_hostile.SqliteWindows,
    "what lies beside rasters": fuzz_hostile.Sidecars,
    "poisoned configurations and windows": fuzz_hostile.Poisoned,
    "numbers of a configuration": fuzz_hostile.Numbers,
    "config.json, model.yaml, olmoearth_run.yaml": fuzz_sources.Configs,
    "catalog entries": fuzz_sources.Specs,
    "archives": fuzz_archives.Archives,
    "archives with one byte flipped": fuzz_archives.Flipped,
    "metadata.json, registry.json": fuzz_stored.StoredMetadata,
    "other JSON, YAML of an eval root": fuzz_stored.StoredJson,
    "Parquet of an eval root": fuzz_stored.StoredTables,
    "packed samples": fuzz_stored.StoredSamples,
    "copied windows": fuzz_stored.StoredWindows,
    "copied labels": fuzz_stored.StoredLabels,
    "files of somebody else's dataset": fuzz_forged.Forged,
    "what is shared, and what is remembered": fuzz_shared.Shared,
    "what a stopped ingest left": fuzz_stored.Stopped,
}


Exits = Callable[[tuple[Any, ...], float], int | None]
"""Tries cases in a process of its own, for so many seconds at most: its exit code."""


def _alone(arguments: tuple[Any, ...], patience_s: float, context: Any = None) -> int | None:
    process = (context or killing.context()).Process(target=_try_cases, args=arguments)
    process.start()
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join()
    code: int | None = process.exitcode
    return code


@contextmanager
def forking() -> Iterator[Exits]:
    """Processes are forked from one that has imported all that kinds need: they begin at once."""
    ours, theirs = multiprocessing.Pipe()
    process = killing.context().Process(target=_fork_each, args=(theirs,))
    process.start()
    theirs.close()

    def exits(arguments: tuple[Any, ...], patience_s: float) -> int | None:
        ours.send((arguments, patience_s))
        code: int | None = ours.recv()
        return code

    try:
        yield exits
    finally:
        ours.close()
        process.join()


def _fork_each(pipe: Connection) -> None:
    with suppress(EOFError):
        while True:
            pipe.send(_alone(*pipe.recv(), multiprocessing.get_context("fork")))


def run(
    kind: str, folder: Path, seed: int, cases: int, seconds: float = 1e9, first: int = 0,
    exits: Exits = _alone,
) -> Report:  # fmt: skip
    """Try cases of a kind, in processes of their own.

    Args:
        kind: one of KINDS.
        folder: an empty folder to work in.
        seed: of all cases; case k is drawn by seed, kind and k.
        cases: how many.
        seconds: stop before, when this time is over.
        first: the number of the first case.
        exits: starts the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "report.json", folder / "log.txt"
    arguments = kind, folder / "work", path, log, seed, cases, seconds, first
    code = exits(arguments, min(seconds, 1e6) + 5 * LONGEST_S * killing.slower())
    report = Report(**json.loads(path.read_text())) if path.exists() else Report(kind)
    if code != 0:
        said = log.read_text()[-3000:] if log.exists() else ""
        report.faults.append(
            f"seed {seed} case {first + report.tried}: the process ended with {code}, "
            f"after a crash, a case of more than {LONGEST_S:.0f} s, or one that filled the memory: "
            f"{said}"
        )
    return report


def _try_cases(
    kind: str, folder: Path, path: Path, log: Path, seed: int, cases: int, seconds: float,
    first: int,
) -> None:  # fmt: skip
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    deadline = time.monotonic() + seconds
    with open(log, "w") as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        report = Report(kind)
        tries = KINDS[kind](folder)
        outcomes: Counter[str] = Counter()
        for k in range(first, first + cases):
            if time.monotonic() > deadline:
                break
            faulthandler.dump_traceback_later(LONGEST_S * killing.slower(), exit=True, file=stream)
            started = time.monotonic()
            try:
                outcomes += tries.try_one(random.Random(f"{seed} {kind} {k}"))
            except Exception as error:
                text = "".join(traceback.format_exception(error)[-12:])
                report.faults.append(f"seed {seed} case {k}: {text}")
            report.slowest_s = max(report.slowest_s, time.monotonic() - started)
            faulthandler.cancel_dump_traceback_later()
            report.tried = k + 1 - first
            report.inputs += tries.inputs_per_case
            report.outcomes = dict(outcomes.most_common())
            report.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            path.write_text(json.dumps(asdict(report)))


def failures(report: Report) -> Iterator[str]:
    """The faults, short enough to read."""
    for text in report.faults:
        yield text if len(text) < 4_000 else f"{text[:1_500]}\n...\n{text[-2_500:]}"
