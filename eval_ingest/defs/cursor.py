"""What the discovery sensor keeps from tick to tick."""

import json
import logging
from dataclasses import astuple, dataclass, field
from enum import StrEnum


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


@dataclass
class Cursor:
    """What earlier ticks have seen and told."""

    tick: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    """By dataset."""
    told: dict[str, str] = field(default_factory=dict)
    """Folder that can't be ingested, root that is down, or dataset whose run failed, to the
    reason as it was told."""

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """The cursor of the last tick; an unreadable one begins anew: registered is registered."""
        try:
            values = json.loads(text or "{}")
            seen = {
                name: Seen(version, Step(step), *rest)
                for name, (version, step, *rest) in values.get("seen", {}).items()
            }
            return cls(int(values.get("tick", 0)), seen, dict(values.get("told", {})))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def dump(self) -> str:
        """As Dagster keeps it, and as the sensor's page shows it."""
        seen = {name: _short(found) for name, found in self.seen.items()}
        return json.dumps({"tick": self.tick, "seen": seen, "told": self.told}, sort_keys=True)

    def tell(self, log: logging.Logger, where: str, reason: str) -> None:
        """Log a problem, once."""
        if self.told.get(where) != reason:
            self.told[where] = reason
            log.warning(reason)


def _short(seen: Seen) -> list[str | int]:
    """A dataset that is registered takes 40 bytes: there may be thousands."""
    if seen.step is Step.REGISTERED:
        return [seen.version, seen.step]
    return list(astuple(seen))
