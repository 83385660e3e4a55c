"""What all kinds of damaged inputs share: see fuzz.py."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import EvalIngestError
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings


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


def make_job(source: Path, root: Path, name: str, **spec: Any) -> Job:
    parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "fuzz")
    return open_job(parsed, Settings(eval_root=str(root), workers=1))


def check_message(error: EvalIngestError) -> None:
    """A message is for a person: it says something, and not a page of it."""
    text = str(error)
    if not 10 < len(text) < 6_000:
        raise Fault(f"a message of {len(text)} characters: {text[:300]}") from error
