"""What the discovery sensor keeps from tick to tick."""

import logging
from dataclasses import astuple, dataclass, field
from enum import StrEnum

from eval_ingest.core.bounds import Count, Record, kept, read_kept
from eval_ingest.redaction import in_lines

MAX_REST_S = 3600


class Step(StrEnum):
    """How far a dataset has come."""

    TOLD = "told"
    """It can't be ingested, or not yet; the reason was logged."""
    WAITING = "waiting"
    """New or changed; the next look decides whether it is still being written."""
    REQUESTED = "requested"
    """A run was asked for."""
    REGISTERED = "registered"


@dataclass(frozen=True)
class Seen:
    """A dataset as it was when it was looked at last."""

    version: str
    """See `Sighting.version`."""
    step: Step
    stamp: str = ""
    """See `Judgement.stamp`."""
    since: int = 0
    """When that stamp was seen first, in seconds since 1970."""
    tick: int = 0
    """Number of the tick that looked at it."""
    looked: int = 0
    """When that was."""

    def is_due(self, now: float) -> bool:
        """True if what could not be ingested is to be looked at again: the longer it has been so,
        the later.
        """
        return not 0 <= now - self.looked < min((self.looked - self.since) / 4, MAX_REST_S)


class _Kept(Record):
    root: str
    tick: Count
    seen: dict[str, tuple[str, Step] | tuple[str, Step, str, Count, Count, Count]]
    told: dict[str, str]


@dataclass
class Cursor:
    """What earlier ticks have seen and told."""

    root: str = ""
    """The eval root, for which `seen` holds."""
    tick: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    """By dataset."""
    told: dict[str, str] = field(default_factory=dict)
    """Folder that can't be ingested, root that is down, or dataset whose run failed, to the
    reason as it was told."""

    @classmethod
    def parse(cls, text: str | None, root: str = "") -> "Cursor":
        """The cursor of the last tick.

        One that is of another eval root, or can't be read, begins anew; what is registered is
        found to be so.
        """
        found = read_kept(_Kept, text)
        if found is None or found.root != root:
            return cls(root)
        seen = {name: Seen(*values) for name, values in found.seen.items()}
        return cls(root, found.tick, seen, found.told)

    def dump(self) -> str:
        """As Dagster keeps it, and as the sensor's page shows it."""
        seen = {name: _short(found) for name, found in self.seen.items()}
        return kept({"root": self.root, "tick": self.tick, "seen": seen, "told": self.told})

    def tell(
        self, log: logging.Logger, where: str, reason: str, fault: Exception | None = None
    ) -> None:
        """Log a problem, once; a fault with its traceback."""
        if self.told.get(where) != reason:
            self.told[where] = reason
            log.warning(in_lines(reason), exc_info=fault)


def _short(seen: Seen) -> list[str | int]:
    """A dataset that is registered takes 40 bytes: there may be thousands."""
    if seen.step is Step.REGISTERED:
        return [seen.version, seen.step]
    return list(astuple(seen))
