"""What earlier looks at datasets have found, and when the next one is due.

What belongs here: values and times. What doesn't: looking (discovery.py), and the file that keeps
them from one process to the next (watching.py).

A look at a dataset is cheap or full. A cheap one lists its folder and its groups: two requests. It
sees configuration files that change and groups that come and go; on a local disk the time of
change of each group's folder too, and so every window that comes or goes. A full one lists the
windows by name. What only a full one sees, it sees late: see `is_listing_due`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import FiniteFloat

from eval_ingest.core.bounds import Count, FolderName, read_kept

SETTLING_S = 600.0
"""So long after a change every look is a full one."""
LISTED_AFTER = 0.2
"""Windows are listed again after this share of the time a dataset has been still: when that has
grown by a quarter."""
LISTED_S = 86_400.0
"""And after a day at the latest."""
RESTS_AFTER = 0.02
"""A watched dataset isn't looked at at all for this share of the time it has been still."""
RESTS_S = 900.0
RESTS_FROM_S = 3600.0
"""From then on."""
RACY_S = 2.0
"""A folder changed so shortly before it was listed may change again within the same tick of its
file system's clock."""


def is_due(changed: float, looked: float, now: float, most: float) -> bool:
    """True if what changed then is to be looked at in full again: the longer ago, the later.

    Args:
        changed: when, in seconds since 1970, as the next two.
        looked: when that was done last.
        now: the time.
        most: seconds after which it is due in any case.
    """
    still = max(now - changed, 0.0)
    return still < SETTLING_S or not 0 <= now - looked < min(still * LISTED_AFTER, most)


@dataclass(frozen=True)
class Look:
    """A dataset as it was when it was looked at."""

    outline: str
    """Changes with what a cheap look sees."""
    fingerprint: str
    """Changes with what a full look sees."""
    groups: dict[FolderName, Count]
    """Number of windows by group."""
    sample: dict[FolderName, tuple[FolderName, ...]]
    """Some windows by group."""
    changed: FiniteFloat
    """When the fingerprint was seen to be new, in seconds since 1970, as the next two."""
    listed: FiniteFloat
    """When it was last looked at in full."""
    seen: FiniteFloat
    """When it was last looked at at all."""

    def is_listing_due(self, now: float) -> bool:
        """True if its windows are to be listed whatever the outline says."""
        return is_due(self.changed, self.listed, now, LISTED_S)

    def rests(self, now: float) -> bool:
        """True if nothing has changed for so long that it needn't be looked at now."""
        still = now - self.changed
        if still < RESTS_FROM_S or self.is_listing_due(now):
            return False
        return 0 <= now - self.seen < min(still * RESTS_AFTER, RESTS_S)


class Memory:
    """The looks at the datasets under one root, by path or URL.

    Args:
        looks: those of earlier times.
        full: every look is to be a full one.
        patient: datasets may rest: for a sensor that comes again and again.
        now: the time, in seconds since 1970.
    """

    def __init__(
        self,
        looks: Mapping[str, Look] | None = None,
        full: bool = False,
        patient: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._old = looks or {}
        self._full = full
        self._patient = patient
        self._now = now
        self.looks: dict[str, Look] = {}
        """What this walk over the root has seen: what has gone is forgotten."""

    def resting(self, url: str) -> Look | None:
        """What is known of a dataset that needn't be looked at now."""
        old = self._old.get(url)
        if old is None or self._full or not self._patient or not old.rests(self._now()):
            return None
        self.looks[url] = old
        return old

    def unchanged(self, url: str, outline: str) -> Look | None:
        """What is known of a dataset whose windows needn't be listed now."""
        old, now = self._old.get(url), self._now()
        if old is None or self._full or old.outline != outline or old.is_listing_due(now):
            return None
        self.looks[url] = replace(old, seen=now)
        return self.looks[url]

    def note(
        self,
        url: str,
        outline: str,
        fingerprint: str,
        groups: dict[str, int],
        sample: dict[str, tuple[str, ...]],
    ) -> Look:
        """Keep what a full look has found."""
        old, now = self._old.get(url), self._now()
        same = old is not None and old.fingerprint == fingerprint
        changed = old.changed if old is not None and same else now
        self.looks[url] = Look(outline, fingerprint, groups, sample, changed, now, now)
        return self.looks[url]

    def is_racy(self, changed: float) -> bool:
        """True for a folder that was changed so shortly ago that its time says little."""
        return self._now() - changed < RACY_S

    def dump(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {url: asdict(look) for url, look in self.looks.items()}


def read_looks(text: bytes | None) -> dict[str, Look]:
    """The looks that `dump` gave, as JSON; none if it is anything else."""
    return read_kept(dict[str, Look], text) or {}
