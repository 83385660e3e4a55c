"""Leakage: val and test windows that show what a train window has shown already."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.footprints import Footprints
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment

DISTANCE_M = 1000.0
"""Windows nearer than this to a train window show much the same landscape."""

EXAMPLES = 3


@dataclass(frozen=True)
class Cases:
    """Windows that something is wrong with."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """Up to three, by name, with the window each one leaks from."""


@dataclass(frozen=True)
class SplitLeakage:
    """The leaks of val or test. A window counts in the first of the three places that fits."""

    windows: int
    """In the split."""
    overlapping: Cases
    """Share ground and time with a train window."""
    overlapping_other_time: Cases
    """Share ground with train windows, all of another time."""
    near: Cases
    """Within `distance_m` of a train window."""
    duplicated: Cases
    """Have the same pixels as a window of another split, wherever they lie."""


@dataclass(frozen=True)
class Leakage:
    """What of val and test was seen in training."""

    distance_m: float
    splits: dict[str, SplitLeakage]
    """val and test."""


def find_leakage(
    index: WindowIndex, assignment: SplitAssignment, distance_m: float = DISTANCE_M
) -> Leakage:
    """Compare every val and test window with all train windows.

    Args:
        index: the windows.
        assignment: their splits.
        distance_m: metres between outlines up to which windows are near.
    """
    splits = assignment.splits
    outlines = index.footprints
    train = np.flatnonzero((splits == "train") & (outlines.place >= 0))
    places = _TrainPlaces(outlines, _spans(index.times), train)
    found = {}
    for split in ("val", "test"):
        rows = np.flatnonzero(splits == split)
        placed = rows[outlines.place[rows] >= 0]
        same, other = places.overlaps(placed)
        apart = np.setdiff1d(placed, np.concatenate([same[0], other[0]]))
        near = outlines.nearest(apart, train, distance_m)
        found[split] = SplitLeakage(
            windows=len(rows),
            overlapping=_cases(index.keys, *same, "overlaps train"),
            overlapping_other_time=_cases(index.keys, *other, "overlaps, at another time, train"),
            near=_cases(index.keys, *near, "is near train"),
            duplicated=_duplicates(index, splits, rows),
        )
    return Leakage(distance_m, found)


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of held-out windows, each once and in order, and of the windows that they leak from."""


class _TrainPlaces:
    """The train windows by outline and, within an outline, by the start of their time.

    A place may have been taken thousands of times, in every split: so whether some train window
    of an outline shares a time is asked once per outline, not once per window. Of those that
    start before the asked time ends, the one that ends last is the one to look at.

    Args:
        outlines: those of the index.
        spans: half-open time spans of all windows of the index: see `_spans`.
        train: rows of the train windows whose outline is known.
    """

    def __init__(
        self, outlines: Footprints, spans: NDArray[np.float64], train: NDArray[np.int64]
    ) -> None:
        self._outlines, self._spans = outlines, spans
        # Train windows by shape and start; the shapes, and where the windows of each begin.
        self._rows = rows = train[np.lexsort((spans[train, 0], outlines.place[train]))]
        self._shapes, self._first, self._shape = np.unique(
            outlines.place[rows], return_index=True, return_inverse=True
        )
        # Ranks of the ends, raised from shape to shape: so a running maximum stays in its shape.
        by_end = np.argsort(spans[rows, 1], kind="stable")
        rank = self._shape * len(rows)
        rank[by_end] += np.arange(len(rows))
        highest = np.maximum.accumulate(rank)
        # Of the windows of a shape up to each one, the one that ends last.
        self._latest = rows[by_end[highest - self._shape * len(rows)]]

    def overlaps(self, held_out: NDArray[np.int64]) -> tuple[Pairs, Pairs]:
        """Held-out windows that overlap train windows in space and time, or in space alone."""
        wanted, shape = np.unique(self._outlines.place[held_out], return_inverse=True)
        held_out = held_out[np.argsort(shape, kind="stable")]
        number = np.bincount(shape, minlength=len(wanted))
        begin = np.cumsum(number) - number
        same, other = [], []
        for one, place in self._outlines.overlaps(wanted, self._shapes):
            # Every held-out window that has the outline, with every outline that it overlaps.
            count = number[one]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            of = held_out[np.repeat(begin[one], count) + within]
            place = np.repeat(place, count)
            against, together = self._at_the_time_of(of, place)
            at_once = _first_each(of[together], against[together])
            rest = ~np.isin(of, at_once[0])
            same.append(at_once)
            other.append(_first_each(of[rest], self._rows[self._first[place[rest]]]))
        found, apart = _joined(same), _joined(other)
        # What shares its time with one of the outlines may have come beside others before.
        alone = ~np.isin(apart[0], found[0])
        return found, (apart[0][alone], apart[1][alone])

    def _at_the_time_of(
        self, of: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A train window of a shape for each window, and whether they share some time."""
        starts, ends = self._spans[self._rows, 0], self._spans[of, 1]
        values = np.unique(np.concatenate([starts, ends]))
        keys = self._shape * len(values) + np.searchsorted(values, starts)
        wanted = place * len(values) + np.searchsorted(values, ends)
        before = np.searchsorted(keys, wanted) - 1  # the last that starts before the window ends
        some = before >= self._first[place]
        against = self._latest[np.maximum(before, 0)]
        return against, some & (self._spans[against, 1] > self._spans[of, 0])


def _spans(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half-open spans (start, end) that meet exactly where time ranges share a time.

    Ranges that share an end share no time, but a moment does with every range that it is in or
    at the end of. Unknown ends may be any time. In half microseconds, so that a moment has some
    width.
    """
    spans = 2 * times
    moment = times[:, 0] == times[:, 1]
    spans[moment] += (-1, 1)
    return np.where(np.isnan(spans), (-np.inf, np.inf), spans)


def _duplicates(index: WindowIndex, splits: NDArray[np.str_], rows: NDArray[np.int64]) -> Cases:
    """Windows of one split whose pixels another split has too."""
    digests = index.pixel_groups
    split = splits[rows[0]] if len(rows) else ""
    others = np.flatnonzero((splits != split) & (splits != "none") & (digests >= 0))
    known, first = np.unique(digests[others], return_index=True)
    of = rows[np.isin(digests[rows], known)]
    against = others[first[np.searchsorted(known, digests[of])]]
    return _cases(index.keys, of, against, "has the pixels of", splits)


def _first_each(of: NDArray[np.int64], against: NDArray[np.int64]) -> Pairs:
    rows, first = np.unique(of, return_index=True)
    return rows, against[first]


def _joined(parts: list[Pairs]) -> Pairs:
    of, against = zip(*parts, strict=True) if parts else ([], [])
    nothing = np.zeros(0, np.int64)
    rows, partners = np.concatenate([nothing, *of]), np.concatenate([nothing, *against])
    return _first_each(rows, partners)


def _cases(
    keys: Sequence[str],
    of: NDArray[np.int64],
    against: NDArray[np.int64],
    what: str,
    splits: NDArray[np.str_] | None = None,
) -> Cases:
    examples = [
        f"{keys[a]} {what} {keys[b]}" + ("" if splits is None else f" ({splits[b]})")
        for a, b in zip(of[:EXAMPLES], against[:EXAMPLES], strict=True)
    ]
    return Cases(len(of), examples)


def standard_error(windows: int) -> float:
    """How far a score on that many windows may be off by chance alone, at most: sqrt(0.25 / n).

    A score of 0 or 1 per window, as accuracy is made of, varies by at most 0.25 (at p = 0.5), and
    so does any other mean of one score within 0 to 1 per window. Pixels of one window resemble
    each other, so the windows count for segmentation too. For regressions read it as a share: with
    normal errors the RMSE of n windows is off by about 1 / sqrt(2 n) of itself, which is 1.4 times
    this.

    >>> standard_error(100)
    0.05
    """
    return float("inf") if windows == 0 else float((0.25 / windows) ** 0.5)
