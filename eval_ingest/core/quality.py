"""Is a dataset fit to be an eval? Checks of leakage, splits and data, and a verdict.

Everything comes from the window index and the split assignment: no pixel is read. Each check
gives findings; the verdict is `poor` if one of them is an error, `usable with warnings` if one is
a warning, and `good` otherwise. Notes tell what a person may want to know.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.band_facts import BandFacts
from eval_ingest.core.columns import floats, numbers
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.leakage import EXAMPLES, Leakage, find_leakage, standard_error
from eval_ingest.core.norm import combine
from eval_ingest.core.resolved import ModalityInput, ResolvedConfig, size_text
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import AssignedWindows, SplitAssignment
from eval_ingest.core.units import odd_units
from eval_ingest.core.validate import PROBLEMS

QUALITY_VERSION = 1

Severity = Literal["error", "warning", "note"]

MAX_LEAKED_SHARE = 0.05
"""More of val or test than this overlapping train, or copied from it, makes a dataset poor."""
MAX_NEAR_SHARE = 0.1
"""More of val or test than this near to train is worth a warning."""
MAX_DISTANCE = 0.3
"""A class distribution further than this from train's is worth a warning (0 equal, 1 disjoint)."""
MAX_STANDARD_ERROR = 0.05
ENOUGH = 100
"""Windows of a split on which the standard error of a score is that at most."""
"""Beyond this (fewer than 100 windows) differences between models drown in chance: a warning."""
USELESS_STANDARD_ERROR = 0.15
"""Beyond this (fewer than 12 windows) a score says nothing."""
FEW = 0.01
"""Up to this share of odd windows is a note, more is a warning."""
LOWEST_REFLECTANCE = -1000.0
"""In stored units. Numbers below mark missing data, such as -9999: Sentinel-2's values less the
offset of 1000, and no other product's, reach down to it."""
_DAY_US = 86_400e6


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that a person should know."""

    code: str
    severity: Severity
    count: int
    """How many windows, bands or classes it is about."""
    of: int
    """How many there are."""
    text: str
    """What, where, the value, and what to do."""
    examples: list[str] = field(default_factory=list)
    """Up to three, by name."""


class _Data(AssignedWindows):
    """What the checks look at: the rows that are in a split, and facts that several need."""

    @cached_property
    def bands(self) -> dict[str, BandFacts]:
        """Per modality what the moments of the used rows say."""
        train = self.splits[self.used] == "train"
        found = {}
        for modality in self.config.modalities:
            n = len(modality.bands)
            parts = self.index.moment_parts(modality.name, self.used, n)
            found[modality.name] = BandFacts.of(parts, train, n)
        return found

    def column(self, name: str) -> NDArray[np.float64]:
        """A column of numbers at the used rows; 0 for null."""
        return np.asarray(numbers(self.index.table[name], 0)[self.used], dtype=np.float64)

    def places(self, modality: ModalityInput) -> NDArray[np.float64]:
        """Per used window how many of its pixels the statistics are of, over all timesteps."""
        sides = [floats(self.index.table[name])[self.used] for name in ("height", "width")]
        pad = modality.pad_of("train")
        if pad is not None and self.config.statistics_pads:
            sides = [np.minimum(side, pad.size) for side in sides]
        return np.asarray(sides[0] * sides[1] * self.column(f"{modality.name}.timesteps"))

    def rows(
        self, code: str, severity: Severity, rows: NDArray[np.int64], of: int, text: str
    ) -> Finding:
        """A finding about rows of the index."""
        names = [self.index.keys[row] for row in rows[:EXAMPLES].tolist()]
        return Finding(code, severity, len(rows), of, text, names)

    def windows(
        self,
        code: str,
        rows: NDArray[np.int64],
        what: str,
        few: Severity = "note",
        many: Severity = "warning",
        split: str = "",
    ) -> Iterator[Finding]:
        """A finding about some of the used windows, if there are any; `what` follows their number.

        Args:
            code: the finding's.
            rows: of the index.
            what: the rest of the text.
            few: how bad it is if they are few.
            many: how bad it is otherwise.
            split: the windows are of this one; "": of any.
        """
        of = self.assignment.counts()[split] if split else len(self.used)
        if len(rows):
            n = f"{len(rows):,} of {of:,} windows" + (f" of {split}" if split else "")
            severity = few if len(rows) <= FEW * of else many
            yield self.rows(code, severity, rows, of, f"{n} {what}")


def _named(code: str, severity: Severity, names: Sequence[str], of: int, text: str) -> Finding:
    """A finding about classes or bands."""
    return Finding(code, severity, len(names), of, text, list(names[:EXAMPLES]))


def quality_report(
    index: WindowIndex, assignment: SplitAssignment, config: ResolvedConfig, name: str = "NAME"
) -> dict[str, Any]:
    """The verdict, what it rests on, and everything else that was noticed; JSON-able.

    | key | value |
    |---|---|
    | verdict | good, usable with warnings, or poor |
    | reasons | why it isn't good, worst first |
    | leakage | see `Leakage` |
    | standard_error | per split, of a score from 0 to 1, or None: see `standard_error` |
    | findings | see `Finding`; errors first, notes last |
    """
    data = _Data(index, assignment, config)
    leakage = find_leakage(index, assignment)
    findings = [*_leaks(data, leakage, name)]
    for check in _CHECKS:
        findings += check(data)
    findings.sort(key=lambda found: ("error", "warning", "note").index(found.severity))
    wrong = [found for found in findings if found.severity != "note"]
    verdicts = {"error": "poor", "warning": "usable with warnings"}
    return {
        "version": QUALITY_VERSION,
        "verdict": verdicts[wrong[0].severity] if wrong else "good",
        "reasons": [found.text for found in wrong],
        "leakage": asdict(leakage),
        "standard_error": {
            split: round(standard_error(count), 4) if count else None
            for split, count in assignment.counts().items()
        },
        "findings": [asdict(found) for found in findings],
    }


# --------------------------------------------------------------------------------------- splits


def _by_place(data: _Data, buffer_m: float, name: str) -> str:
    """The command that divides a dataset by place, with shares that give val and test windows."""
    held_out = 5 * round(20 * min(max(ENOUGH / max(len(data.used), 1), 0.1), 0.25))
    return (
        f"; divide by place (splits.strategy spatial): eval-ingest ingest {name} "
        f"--split-strategy spatial --buffer {buffer_m:g} "
        f"--ratios {100 - 2 * held_out} {held_out} {held_out}"
    )


def _leaks(data: _Data, leakage: Leakage, name: str) -> Iterator[Finding]:
    places = data.index.footprints.place[data.used]
    cure = _by_place(data, leakage.distance_m, name)
    if len(places) > 1 and places[0] >= 0 and (places == places[0]).all():
        text = (
            f"all {len(places):,} windows lie at one and the same place; if their coordinates are "
            "placeholders, overlap means nothing; if not, divide by time (window option split)"
        )
        yield data.rows("one_place", "warning", data.used, len(places), text)
        cure = ""
    for split, found in leakage.splits.items():
        total = found.windows
        kinds: tuple[tuple[str, Any, float, float, str], ...] = (
            ("overlap", found.overlapping, MAX_LEAKED_SHARE, 0.0,
             "overlap a train window in space and time"),
            ("overlap_other_time", found.overlapping_other_time, 1.0, MAX_LEAKED_SHARE,
             "show the ground of a train window at another time"),
            ("near", found.near, 1.0, MAX_NEAR_SHARE,
             f"lie within {leakage.distance_m:g} m of a train window"),
            ("duplicate", found.duplicated, MAX_LEAKED_SHARE, 0.0,
             "have the same pixels as a window of another split"),
        )  # fmt: skip
        for code, cases, poor, warn, what in kinds:
            if not cases.count:
                continue
            share = cases.count / total
            severity: Severity = "error" if share > poor else "warning" if share > warn else "note"
            text = f"{cases.count:,} of {total:,} {split} windows {what}"
            if severity != "note":
                text, cure = text + cure, ""  # said once
            yield Finding(f"leakage_{code}", severity, cases.count, total, text, cases.examples)


def _split_sizes(data: _Data) -> Iterator[Finding]:
    counts = data.assignment.counts()
    total = sum(counts.values())
    for split in ("val", "test"):
        count = counts[split]
        if count == 0:
            text = f"{split} is empty; check splits.ratios and the dataset's split tags"
            yield Finding("empty_split", "error", 0, total, text)
            continue
        error = standard_error(count)
        off = f"{100 * error:.1f} points"
        if not data.config.task.kind.has_classes:
            off = f"{100 * 2**0.5 * error:.0f}% of itself"
        text = (
            f"{split} has {count} window{'s' * (count != 1)}: a score on it is off by up to "
            f"{off} (one standard error) by chance; give it more windows (splits.ratios)"
        )
        if error > MAX_STANDARD_ERROR:
            severity: Severity = "error" if error > USELESS_STANDARD_ERROR else "warning"
            yield Finding("small_split", severity, count, total, text)


def _classes(data: _Data) -> Iterator[Finding]:
    """What the split report knows about classes: missing ones, and shares that differ."""
    report, task = data.assignment.report, data.config.task
    if not task.kind.has_classes:
        return
    cure = "splits.strategy stratified gives every split some of each class"
    hint = "; see splits.strategy stratified"
    if report["strategy"].startswith("stratified"):
        cure, hint = "each class needs as many windows as there are splits", ""
    for split, names in report.get("classes_missing", {}).items():
        if names:
            severity: Severity = "error" if split == "train" else "warning"
            text = f"{split} has no {_some(names)}; {cure}"
            yield _named("class_missing", severity, names, task.num_classes, text)
    for split, distance in report.get("distance_from_train", {}).items():
        if distance > max(MAX_DISTANCE, 2 * _distance_by_chance(report, split)):
            text = (
                f"the classes of {split} are distributed otherwise than train's: {distance:.2f} "
                f"apart (0 equal, 1 disjoint){hint}"
            )
            count = report["counts"][split]
            yield Finding("class_distribution", "warning", count, len(data.used), text)
    counts = report.get("class_counts")
    scored = np.any([counts[split] for split in SPLITS], axis=0) if counts else []
    unused = [
        known.name
        for k, (known, there) in enumerate(zip(task.classes, scored, strict=bool(counts)))
        if not there and k != task.ignored_id
    ]
    if unused:
        text = f"no window has {_some(unused)}: classes that can't be scored"
        yield _named("class_unused", "note", unused, task.num_classes, text)


def _distance_by_chance(report: Mapping[str, Any], split: str) -> float:
    """How far a split of so many windows drawn from train's classes lies from train, on average."""
    train = np.array(report["class_counts"]["train"], float)
    shares = train / max(train.sum(), 1)
    spread = np.sqrt(shares * (1 - shares) / max(report["counts"][split], 1))
    return float(spread.sum() * (2 / np.pi) ** 0.5 / 2)  # of the mean absolute normal deviate


def _some(names: Sequence[str], limit: int = 6) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def _invalid(data: _Data) -> Iterator[Finding]:
    summary = data.index.summary
    for code, count in summary.reasons.items():
        text = (
            f"{count:,} of {summary.n_windows:,} windows {'is' if count == 1 else 'are'} invalid "
            f"and in no split: {PROBLEMS.get(code, 'see the index')} ({code})"
        )
        severity: Severity = "note" if count <= FEW * summary.n_windows else "warning"
        examples = summary.examples[code]
        yield Finding(f"invalid_{code}", severity, count, summary.n_windows, text, examples)


# ----------------------------------------------------------------------------------------- bands


def _units(data: _Data) -> Iterator[Finding]:
    for modality in data.config.modalities:
        odd = odd_units(modality, data.bands[modality.name], data.places(modality))
        if odd is not None:
            text = (
                f"{modality.name}: values of {len(odd.bands)} of {odd.of} bands are not in the "
                f"units of pretraining; {odd.cause}"
            )
            yield _named("units", "warning", odd.bands, odd.of, text)


def _absent_bands(data: _Data) -> Iterator[Finding]:
    train = data.splits[data.used] == "train"
    for modality in data.config.modalities:
        bands = modality.bands
        counts = data.bands[modality.name].train_pixels
        absent = [band for band, count in zip(bands, counts, strict=True) if not count]
        if absent and train.any():
            what = "at all" if len(absent) == len(bands) else f"of {_some(absent)}"
            text = (
                f"no train window has a pixel of {modality.name} {what}: it is 0 after "
                "normalisation; leave the modality out (modalities) or check the source"
            )
            yield _named("band_absent", "warning", absent, len(bands), text)


def _flat_bands(data: _Data) -> Iterator[Finding]:
    for modality in data.config.modalities:
        facts = data.bands[modality.name]
        varies = np.array([stats.std != 0 for stats in facts.stats])
        flat = [band for band, some in zip(modality.bands, varies, strict=True) if not some]
        if flat:
            text = (
                f"{modality.name} {_some(flat)} never varies: it is 0 after normalisation; "
                "check that the source has this band"
            )
            yield _named("zero_variance", "warning", flat, len(modality.bands), text)
        what = f"have a band of {modality.name} that is the same everywhere in the window"
        yield from data.windows(
            "flat_window", data.used[facts.constant[:, varies].any(axis=1)], what
        )


def _marked_pixels(data: _Data) -> Iterator[Finding]:
    """Missing data that isn't 0: a few such pixels move a band's mean and widen its deviation."""
    for modality in data.config.modalities:
        if modality.decibels:  # what isn't positive doesn't count there
            continue
        lowest = data.bands[modality.name].lowest
        what = (
            f"have pixels of {modality.name} below {LOWEST_REFLECTANCE:g} (down to "
            f"{lowest.min(initial=np.inf):g}), which seem to mark missing data but count as values "
            "in the statistics; store 0 there"
        )
        rows = data.used[lowest < LOWEST_REFLECTANCE]
        yield from data.windows("nodata_value", rows, what, few="warning")


def _missing_pixels(data: _Data) -> Iterator[Finding]:
    for modality in data.config.modalities:
        name = modality.name
        steps = data.column(f"{name}.timesteps")
        if not modality.required:
            yield from data.windows("modality_absent", data.used[steps == 0], f"have no {name}")
        total = data.places(modality)
        counted = data.bands[name].most
        lacking = np.maximum(data.column(f"{name}.nodata"), total - counted)
        lacking[steps == 0] = 0
        share = lacking / np.maximum(total, 1)
        whole = f"on the whole {lacking.sum() / max(total.sum(), 1):.1%} are missing"
        most = f"lack more than half of their {name} pixels ({whole})"
        yield from data.windows("nodata", data.used[share > 0.5], most)
        some = f"lack some of their {name} pixels ({whole})"
        if data.index.nodata_values(name, data.used):
            some += "; they count in no statistic and are 0 after normalisation"
        elif not modality.decibels:
            some += "; models see them as very dark"
        rows = data.used[(share > 0) & (share <= 0.5)]
        yield from data.windows("nodata_some", rows, some, many="note")


# ------------------------------------------------------------------------------ labels and times


def _labels(data: _Data) -> Iterator[Finding]:
    task, n = data.config.task, len(data.used)
    if task.kind.has_classes:
        counts = data.index.class_counts(task.num_classes, data.cuts)[data.used]
        valid = counts.sum(axis=1)
        present = [task.classes[c].name for c in np.flatnonzero(counts.any(axis=0))]
        if len(present) == 1:
            text = f"every label is {present[0]}: there is nothing to tell apart"
            yield data.rows("constant_label", "error", data.used, n, text)
    else:
        moments = data.index.label_moments(data.cuts)[data.used]
        valid = moments[:, 0, 0]
        stats = combine(moments)[0]
        if stats.std == 0:
            text = f"every target is {stats.mean:g}: there is nothing to predict"
            yield data.rows("constant_label", "error", data.used, n, text)
    if not task.kind.per_pixel:
        return
    yield from _empty_samples(data)
    total = valid + data.index.unlabelled(data.cuts)[data.used]
    what = (
        "have labels on less than 5% of their pixels (on the whole "
        f"{valid.sum() / max(total.sum(), 1):.1%} have one)"
    )
    sparse = data.used[valid / np.maximum(total, 1) < 0.05]
    yield from data.windows("sparse_label", sparse, what, many="note")


def _empty_samples(data: _Data) -> Iterator[Finding]:
    """Samples without any label, though each of the windows has one somewhere."""
    labelled = data.index.labelled_samples(data.cuts)
    report = data.assignment.report
    for split in SPLITS:
        rows = np.flatnonzero(data.splits == split)
        empty = rows[labelled[rows] == 0]
        if data.config.all_crops.get(split) is not None:
            total = report["samples"][split]
            missing = total - report["labelled_samples"][split]
            if missing:
                text = f"{missing:,} of {total:,} crops of {split} have no label"
                found = data.rows("crops_unlabelled", "note", empty, total, text)
                yield replace(found, count=missing)
            continue
        side = data.config.crop_size
        where = "that Pad leaves" if side is None else f"in the middle ({size_text(side)} pixels)"
        what = (
            f"have labels, but none {where}; "
            f"--all-crops {split} makes every crop a sample, --crop-size takes larger ones"
        )
        many: Severity = "error" if len(empty) == len(rows) else "warning"
        yield from data.windows("crop_unlabelled", empty, what, many=many, split=split)


def _times(data: _Data) -> Iterator[Finding]:
    """Timesteps out of order, or of another time than the window's."""
    for modality in data.config.modalities:
        rows, start, end = data.index.timesteps(modality.name)
        if not len(rows):
            continue
        back = rows[1:][(rows[1:] == rows[:-1]) & (start[1:] < start[:-1])]
        what = f"have timesteps of {modality.name} that are not in the order of time"
        yield from data.windows("timestamps_unordered", np.intersect1d(back, data.used), what)
        # Models see days, so less than a day outside is inside.
        window = data.index.times[rows]
        outside = (end < window[:, 0] - _DAY_US) | (start > window[:, 1] + _DAY_US)
        found = np.intersect1d(rows[outside], data.used)
        if len(found) == len(data.used):
            # A layer with a time offset, such as `pre_`, lies outside in every window.
            text = f"all windows have timesteps of {modality.name} outside their own time range"
            yield data.rows("timestamps_outside", "note", found, len(found), text)
        else:
            what = f"have timesteps of {modality.name} outside the window's time range"
            yield from data.windows("timestamps_outside", found, what)


def _duplicates(data: _Data) -> Iterator[Finding]:
    """Windows that are there twice: same place and time, or same pixels."""
    place = data.index.footprints.place.astype(np.float64)
    keys = np.column_stack([place, np.nan_to_num(data.index.times, nan=-1)])
    what = "repeat the place and time of another window"
    yield from data.windows("duplicated_window", _repeated(keys, data.used), what)
    what = "have exactly the pixels of another window"
    rows = _repeated(data.index.pixel_groups[:, None], data.used)
    yield from data.windows("duplicated_pixels", rows, what)


def _repeated(keys: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some rows whose keys an earlier one has; negative at first: of unknown key."""
    rows = rows[keys[rows, 0] >= 0]
    _, first = np.unique(keys[rows], axis=0, return_index=True)
    return np.delete(rows, first)


_CHECKS: tuple[Callable[[_Data], Iterator[Finding]], ...] = (
    _split_sizes,
    _classes,
    _invalid,
    _units,
    _absent_bands,
    _flat_bands,
    _marked_pixels,
    _missing_pixels,
    _labels,
    _times,
    _duplicates,
)
