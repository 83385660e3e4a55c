"""`make torture`: ingests are killed, starved and lied to for a while, and nothing may be lost.

    MINUTES=10 SEED=1 make torture

Faults and damaged inputs are tried side by side, other ones with each seed, until the time is
over and each kind has had its turn. What was lost is told with all that is needed to have it
again, and the exit code is 1. The short form, in CI, is test_faults.py and test_fuzz.py.
"""

import argparse
import contextlib
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from eval_ingest_tests.support import factories, faults, fuzz, stopping, stress
from eval_ingest_tests.support.faults import BucketScenario, ChangingSource, Scenario
from eval_ingest_tests.support.servers import gcs_server, s3_server
from eval_ingest_tests.support.stopping import Kind

LEAST_KILLS = 50
"""Kills that are made of an ingest into a folder, however little time there is."""

_ROUND_S = 45.0
"""Time for one kind of damaged inputs before the next one's turn comes."""

Case = Callable[[random.Random], bool | None]
"""One case; False if it came to nothing, such as a kill of a run that was done already."""


@dataclass
class Row:
    """What became of all cases of one thing."""

    what: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""

    def try_one(self, case: Case, seed: str) -> None:
        """One case more."""
        try:
            if case(random.Random(seed)) is False:
                return
            self.survived += 1
        except faults.CannotMount as error:
            self.note = str(error)
            return
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            self.lost.append(f"{self.what}, seed {seed}:\n{text}")
        self.tried += 1


class Faults:
    """Cases of every fault, in turn until the time is over."""

    def __init__(self, folder: Path, seed: int, stack: contextlib.ExitStack) -> None:
        self._folder, self._seed, self._stack, self._number = folder, seed, stack, 0
        self._small = factories.segmentation(folder / "small", windows=10, timesteps=2)
        self._makers = dict(faults.scenarios(folder / "scenarios"))
        self._made: dict[str, Scenario] = {}
        self._buckets: dict[str, BucketScenario] = {}
        self._stalled: stress.StalledScenario | None = None
        self._works: dict[str, stopping.Case] = {}
        self.rows: list[Row] = []

    def run(self, until: float) -> None:
        """Try all of them in turn, each at least once, and a kill of an ingest beside each."""
        kills = {
            "killed before a random change, of 8 kinds of ingests": self._kill_at,
            "killed after a random time, threads": lambda rng: self._kill_after(rng, "threads"),
            "killed after a random time, processes": lambda rng: self._kill_after(rng, "processes"),
            "one worker process killed": self._kill_worker,
        }
        others = {
            "killed after a random time, root in S3": lambda rng: self._kill_in("s3", rng),
            "killed after a random time, root in GCS": lambda rng: self._kill_in("gs", rng),
            "eight ingests at once into one root": lambda _: faults.many_at_once(*self._fresh()),
            "two ingests of one dataset at once": lambda _: self._two_at_once(),
            **{f"no {lack}": self._lacks(lack) for lack in stress.LACKS},
            "a signal from outside": self._stop_from_outside,
            "windows that end whoever reads them": self._crash,
            "a writer to S3 that stands still": self._stall,
            **{f"killed at a change, {kind}": self._stopped(kind) for kind in get_args(Kind)},
            "disk full, then more room": self._fill_disk,
            "read-only root": lambda _: self._read_only(),
            "source changes while it is read": self._changing,
            "clock goes back": self._clock,
            "reader holds a version that is replaced": self._reader,
        }
        kill_rows = [(Row(what), case) for what, case in kills.items()]
        other_rows = [(Row(what), case) for what, case in others.items()]
        self.rows = [row for row, _ in (*kill_rows, *other_rows)]
        for k in range(10**9):
            local = sum(row.tried for row, _ in kill_rows[:3])
            everything = k >= len(other_rows) and local >= LEAST_KILLS
            if time.monotonic() > until and everything:
                return
            for row, case in (kill_rows[k % len(kill_rows)], other_rows[k % len(other_rows)]):
                row.try_one(case, f"{self._seed}.{k}")
                tell(row)

    def _fresh(self) -> tuple[Path, Path]:
        """The source, and an empty folder; what was in the last one is gone."""
        shutil.rmtree(self._folder / f"case_{self._number}", ignore_errors=True)
        self._number += 1
        folder = self._folder / f"case_{self._number}"
        folder.mkdir()
        return self._small, folder

    def _scenario(self, rng: random.Random, engine: str = "threads") -> Scenario:
        return self._scenario_named(rng.choice(list(self._makers))).run_by(engine)

    def _scenario_named(self, name: str) -> Scenario:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def _kill_at(self, rng: random.Random) -> None:
        case = self._scenario(rng)
        case.kill_at(rng.randint(1, case.changes))

    def _kill_after(self, rng: random.Random, engine: str) -> bool:
        case = self._scenario(rng, engine)
        return case.kill_after(rng.uniform(0, case.seconds if engine == "threads" else 4))

    def _kill_worker(self, rng: random.Random) -> bool:
        return self._scenario(rng, "processes").kill_worker(rng.uniform(0, 0.5))

    def _kill_in(self, kind: str, rng: random.Random) -> bool:
        if kind not in self._buckets:
            server = self._stack.enter_context(s3_server() if kind == "s3" else gcs_server())
            folder = self._folder / kind
            folder.mkdir()
            self._buckets[kind] = BucketScenario(server, self._small, folder)
        case = self._buckets[kind]
        return case.kill_after(rng.uniform(0, case.seconds))

    def _lacks(self, lack: str) -> Case:
        return lambda rng: stress.starve(self._scenario(rng), lack, rng)

    def _stop_from_outside(self, rng: random.Random) -> bool:
        case = copy.copy(self._scenario_named("first"))
        case.same_bytes = False  # in larger steps than those that are killed
        return any(stress.stop_from_outside(case, rng) for _ in range(5))  # until one is in time

    def _crash(self, rng: random.Random) -> None:
        stress.crash_windows(*self._fresh(), rng)

    def _stall(self, rng: random.Random) -> bool:
        if self._stalled is None:
            server = self._stack.enter_context(s3_server())
            folder = self._folder / "stalled"
            folder.mkdir()
            self._stalled = stress.StalledScenario(server, self._small, folder)
        return self._stalled.stall(rng)

    def _stopped(self, kind: Kind) -> Case:
        """An adoption, a removal, or an adopted dataset given back."""

        def case(rng: random.Random) -> None:
            if kind not in self._works:
                folder = self._folder / f"stopped {kind}"
                folder.mkdir()
                self._works[kind] = stopping.Case(kind, folder)
            work = self._works[kind]
            work.kill(rng.randint(1, work.changes))

        return case

    def _two_at_once(self) -> None:
        faults.two_at_once(*self._fresh())

    def _fill_disk(self, rng: random.Random) -> None:
        case = self._scenario(rng)
        room = (faults.pages(case.base) + rng.randint(2, 150)) * 4096
        with faults.mounted(self._fresh()[1] / "disk") as mount:
            faults.fill_disk(case, mount(f"size={room}"))

    def _read_only(self) -> None:
        source, folder = self._fresh()
        with faults.mounted(folder / "disk") as mount:
            faults.write_to_read_only(source, mount)

    def _changing(self, rng: random.Random) -> None:
        source, folder = self._fresh()
        changing = ChangingSource(source, folder, rng.randrange(10**6))
        changing.ingest_while_changing(rng.choice((0.001, 0.02, 0.2)))

    def _clock(self, rng: random.Random) -> None:
        faults.clock_goes_back(*self._fresh(), rng.choice((60, 86_400, 10**8)))

    def _reader(self, rng: random.Random) -> None:
        faults.read_while_replaced(*self._fresh(), rng.sample(range(100), 3))


class Fuzz:
    """Damaged inputs of every kind, in turn until the time is over."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self.rows = {kind: Row(kind) for kind in fuzz.KINDS}
        self.slowest_s, self.peak_bytes = 0.0, 0

    def run(self, until: float) -> None:
        """Each kind gets as much time as another."""
        begun = dict.fromkeys(self.rows, 0)
        while time.monotonic() < until:
            for kind, row in self.rows.items():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._round(row, begun, min(_ROUND_S, max(left / len(self.rows), 5.0)), kind)

    def _round(self, row: Row, begun: dict[str, int], seconds: float, kind: str) -> None:
        folder = self._folder / "fuzz"
        found = fuzz.run(kind, folder, self._seed, 10**6, seconds, first=begun[kind])
        shutil.rmtree(folder, ignore_errors=True)
        begun[kind] += found.tried
        row.tried += found.inputs
        row.lost += [f"{kind}, {text}" for text in fuzz.failures(found)]
        row.survived = row.tried - len(row.lost)
        self.slowest_s = max(self.slowest_s, found.slowest_s)
        self.peak_bytes = max(self.peak_bytes, found.peak_bytes)
        tell(row)


def tell(row: Row) -> None:
    """Show on the terminal, if there is one, how far it is."""
    with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
        terminal.write(f"\r\033[K{row.what}: {row.tried:,} tried, {len(row.lost)} lost")


def table(rows: list[Row]) -> Iterator[str]:
    """The rows in Markdown."""
    yield "| | tried | survived | lost |"
    yield "|---|---|---|---|"
    for row in rows:
        note = f" ({row.note})" if row.note else ""
        yield f"| {row.what}{note} | {row.tried:,} | {row.survived:,} | {len(row.lost)} |"


@contextlib.contextmanager
def _output_into(file: int) -> Iterator[None]:
    """Have all that this process and its children say go into a file."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    for stream in kept:
        os.dup2(file, stream)
    try:
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


def main() -> int:
    """Try for some minutes; 1 if something was lost."""
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    os.environ["PYTHONWARNINGS"] = "ignore"  # of Python's helpers, about what the killed have left
    with (
        tempfile.TemporaryDirectory(prefix="torture_") as name,
        open(Path(name, "log"), "w") as log,
        _output_into(log.fileno()),  # what servers and stopped processes say
        contextlib.ExitStack() as stack,
    ):
        kills = Faults(Path(name), options.seed, stack)
        inputs = Fuzz(Path(name), options.seed)
        fuzzing = threading.Thread(target=inputs.run, args=(until,))
        fuzzing.start()
        kills.run(until)
        fuzzing.join()
    print()
    print("\n".join(table(kills.rows)), end="\n\n")
    print("\n".join(table(list(inputs.rows.values()))), end="\n\n")
    print(f"the slowest input took {inputs.slowest_s:.1f} s, the largest "
          f"{inputs.peak_bytes / 2**20:,.0f} MiB")  # fmt: skip
    lost = [text for row in (*kills.rows, *inputs.rows.values()) for text in row.lost]
    print("\n".join(lost), file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
