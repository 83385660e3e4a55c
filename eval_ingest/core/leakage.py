"""Leakage: val and test windows that show what a train window has shown already.

Overlap and distance are measured between the windows' outlines on the equal-area grid that the
spatial split uses too, so a `buffer_m` there is a `distance_m` here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import Footprints, SplitAssignment, footprints, without_slivers

DISTANCE_M = 1000.0
"""Windows nearer than this to a train window show much the same landscape."""

EXAMPLES = 3

_CHUNK = 4096
"""Held-out windows compared at a time: bounds the number of pairs in memory."""


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

    def as_json(self) -> dict[str, Any]:
        """Plain values, for metadata.json."""
        return asdict(self)


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
    outlines = footprints(index)
    times = window_times(index)
    train = np.flatnonzero((splits == "train") & (outlines.place >= 0))
    found = {}
    for split in ("val", "test"):
        rows = np.flatnonzero(splits == split)
        placed = rows[outlines.place[rows] >= 0]
        same, other = _overlaps(outlines, times, placed, train)
        apart = np.setdiff1d(placed, np.concatenate([same[0], other[0]]))
        found[split] = SplitLeakage(
            windows=len(rows),
            overlapping=_cases(index.keys, *same, "overlaps train"),
            overlapping_other_time=_cases(index.keys, *other, "overlaps, at another time, train"),
            near=_cases(index.keys, *_near(outlines, apart, train, distance_m), "is near train"),
            duplicated=_duplicates(index, splits, rows),
        )
    return Leakage(distance_m, found)


def window_times(index: WindowIndex) -> NDArray[np.float64]:
    """Start and end of each window's time range, (N, 2) in microseconds; NaN where unknown."""
    columns = [
        pc.cast(index.table[name], "int64").to_numpy().astype(np.float64)
        for name in ("time_start", "time_end")
    ]
    return np.column_stack(columns)


Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of held-out windows, each once and in order, and of the windows that they leak from."""


def _overlaps(
    outlines: Footprints,
    times: NDArray[np.float64],
    held_out: NDArray[np.int64],
    train: NDArray[np.int64],
) -> tuple[Pairs, Pairs]:
    """Overlaps in space and time, and those in space alone."""
    import shapely

    nothing = np.zeros(0, np.int64)
    if not len(held_out) or not len(train):
        return (nothing, nothing), (nothing, nothing)
    order = train[np.argsort(outlines.place[train], kind="stable")]
    shapes, first, count = np.unique(outlines.place[order], return_index=True, return_counts=True)
    shrunk = without_slivers(outlines.shapes)
    tree = shapely.STRtree(shrunk[shapes])
    same: list[Pairs] = []
    other: list[Pairs] = []
    for start in range(0, len(held_out), _CHUNK):
        rows = held_out[start : start + _CHUNK]
        one, place = tree.query(shrunk[outlines.place[rows]], predicate="intersects")
        # Each outline stands for all train windows that have it.
        of = np.repeat(rows[one], count[place])
        within = np.arange(len(of)) - np.repeat(
            np.cumsum(count[place]) - count[place], count[place]
        )
        against = order[np.repeat(first[place], count[place]) + within]
        together = _same_time(times[of], times[against])
        at_once = _first_each(of[together], against[together])
        rest = ~np.isin(of, at_once[0])
        same.append(at_once)
        other.append(_first_each(of[rest], against[rest]))
    return _joined(same), _joined(other)


def _same_time(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where time ranges share more than an end; unknown ranges may be any time."""
    start, end = np.maximum(a[:, 0], b[:, 0]), np.minimum(a[:, 1], b[:, 1])
    instant = (a[:, 0] == a[:, 1]) | (b[:, 0] == b[:, 1])
    together = (start < end) | (instant & (start == end)) | np.isnan(start) | np.isnan(end)
    return np.asarray(together)


def _near(
    outlines: Footprints,
    held_out: NDArray[np.int64],
    train: NDArray[np.int64],
    distance_m: float,
) -> Pairs:
    """Held-out windows with a train window within the distance, and the nearest one."""
    import shapely

    if not len(held_out) or not len(train) or distance_m <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    places, first = np.unique(outlines.place[train], return_index=True)
    tree = shapely.STRtree(outlines.shapes[places])
    one, place = tree.query_nearest(
        outlines.shapes[outlines.place[held_out]], max_distance=distance_m, all_matches=False
    )
    return _first_each(held_out[one], train[first[place]])


def _duplicates(index: WindowIndex, splits: NDArray[np.str_], rows: NDArray[np.int64]) -> Cases:
    """Windows of one split whose pixels another split has too."""
    digests = pixel_groups(index)
    split = splits[rows[0]] if len(rows) else ""
    others = np.flatnonzero((splits != split) & (splits != "none") & (digests >= 0))
    known, first = np.unique(digests[others], return_index=True)
    place = np.searchsorted(known, digests[rows])
    hit = np.isin(digests[rows], known)
    of, against = rows[hit], others[first[place[hit]]]
    return _cases(index.keys, of, against, "has the pixels of", splits)


def pixel_groups(index: WindowIndex) -> NDArray[np.int64]:
    """A number per row that is equal where all pixels are; -1 where there are none."""
    if "pixel_digest" not in index.table.column_names:
        return np.full(len(index), -1, np.int64)
    codes = index.table["pixel_digest"].combine_chunks().dictionary_encode().indices
    return np.asarray(codes.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _first_each(of: NDArray[np.int64], against: NDArray[np.int64]) -> Pairs:
    rows, first = np.unique(of, return_index=True)
    return rows, against[first]


def _joined(parts: list[Pairs]) -> Pairs:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


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
