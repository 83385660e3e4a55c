"""What all kinds of damaged inputs share: see fuzz.py."""

import contextlib
import io
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import EvalIngestError
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest_tests.support import poison


class Fault(AssertionError):
    """A case went wrong."""


class Kind:
    """Damages one kind of input, and looks at what happens."""

    inputs_per_case = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def try_one(self, rng: random.Random) -> Counter[str]:
        """One case; returns how many inputs came to which end.

        Raises:
            Fault: something happened that must not.
        """
        raise NotImplementedError


class Watched(Kind):
    """What wants something of whoever uses it: nothing is run, opened, fetched or written outside.

    Each input lies in `work`; what uses it writes to `out` alone.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.work, self.out = folder / "work", folder / "out"

    def change(self, rng: random.Random, watch: poison.Watch) -> tuple[str, Callable[[], str]]:
        """Lay an input into `work`; returns what is odd about it, and what uses it to which end."""
        raise NotImplementedError

    def try_one(self, rng: random.Random) -> Counter[str]:
        outside = self.folder / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outcome: Counter[str] = Counter()
        try:
            with poison.watched(outside) as watch:
                for _ in range(self.inputs_per_case):
                    outcome[self._use(rng, watch)] += 1
        except AssertionError as error:
            raise Fault(str(error)) from error
        return outcome

    def _use(self, rng: random.Random, watch: poison.Watch) -> str:
        for folder in (self.work, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        before = {*self.folder.iterdir(), self.work, self.out}
        told, use = self.change(rng, watch)
        try:
            end = use()
        except Exception as error:
            raise Fault(f"{told}: {type(error).__name__}: {error}") from error
        written = {*self.folder.iterdir()} - before
        if watch.noticed or written:
            raise Fault(f"{told}: {watch.noticed} {written}")
        return end


def make_job(source: Path, root: Path, name: str, **spec: Any) -> Job:
    parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "fuzz")
    return open_job(parsed, Settings(eval_root=str(root), workers=1))


def check_message(error: EvalIngestError) -> None:
    """A message is for a person: it says something, and not a page of it."""
    text = str(error)
    if not 10 < len(text) < 6_000:
        raise Fault(f"a message of {len(text)} characters: {text[:300]}") from error


def is_refused(use: Callable[[], str]) -> bool:
    """Do what a user does; a terminal must not obey what is said."""
    said, refused = io.StringIO(), False
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            text = use()
    except EvalIngestError as error:
        check_message(error)
        text, refused = str(error), True
    if "\x1b[31m" in text + said.getvalue() or "\x07" in text:
        raise Fault(f"a terminal would obey what is said: {text[:300]!r}")
    return refused
