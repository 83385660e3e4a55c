"""Is a dataset fit to be an eval? Checks of leakage, splits and data, and a verdict.

Everything comes from the window index and the split assignment: no pixel is read. Each check
gives findings; the verdict is `poor` if one of them is an error, `usable with warnings` if one is
a warning, and `good` otherwise. Notes tell what a person may want to know.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval_ingest.core.columns import Column, codes, floats, lengths, numbers, one_array
from eval_ingest.core.crops import cuts_of
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.leakage import EXAMPLES, Leakage, find_leakage, standard_error
from eval_ingest.core.norm import BandStats, combine
from eval_ingest.core.pretraining import PRETRAINING
from eval_ingest.core.resolved import ModalityInput, ResolvedConfig
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
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
"""Beyond this (fewer than 100 windows) differences between models drown in chance: a warning."""
USELESS_STANDARD_ERROR = 0.15
"""Beyond this (fewer than 12 windows) a score says nothing."""
FEW = 0.01
"""Up to this share of odd windows is a note, more is a warning."""
LOWEST_REFLECTANCE = -1000.0
"""In stored units. Numbers below mark missing data, such as -9999: Sentinel-2's values less the
offset of 1000, and no other product's, reach down to it."""
PLAUSIBLE_SIGMAS = 2.0
"""Band means may be this many pretraining standard deviations from the pretraining mean."""

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


@dataclass(frozen=True)
class Verdict:
    """Whether a dataset is fit to compare models on."""

    level: Literal["good", "usable with warnings", "poor"]
    reasons: list[str]
    """The errors' texts, then the warnings'."""

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Verdict":
        """The verdict that findings add up to."""
        errors = [found.text for found in findings if found.severity == "error"]
        warnings = [found.text for found in findings if found.severity == "warning"]
        level: Literal["good", "usable with warnings", "poor"] = (
            "poor" if errors else "usable with warnings" if warnings else "good"
        )
        return cls(level, errors + warnings)


@dataclass(frozen=True)
class _Data:
    """What the checks look at: the rows that are in a split, and facts that several need."""

    index: WindowIndex
    assignment: SplitAssignment
    config: ResolvedConfig

    @property
    def splits(self) -> NDArray[np.str_]:
        return self.assignment.splits

    @property
    def used(self) -> NDArray[np.int64]:
        """Rows that are in a split."""
        return self.assignment.used

    @cached_property
    def cuts(self) -> NDArray[np.intp]:
        """Which of the configuration's cuts the samples of each row are."""
        return cuts_of(self.config, self.splits)

    @cached_property
    def moments(self) -> dict[str, NDArray[np.float64]]:
        """Per modality (N, 5, C) of the used rows."""
        return {m.name: self.index.moments(m.name)[self.used] for m in self.config.modalities}

    def column(self, name: str) -> NDArray[np.float64]:
        """A column of numbers at the used rows; 0 for null."""
        return np.asarray(numbers(self.index.table[name], 0)[self.used], dtype=np.float64)

    def names(self, rows: Iterable[Any]) -> list[str]:
        """Up to three rows of the index by name."""
        return [self.index.keys[int(row)] for _, row in zip(range(EXAMPLES), rows, strict=False)]

    def windows(
        self, code: str, rows: NDArray[np.int64], text: str, few: Severity = "note"
    ) -> Iterator[Finding]:
        """A finding about some of the used windows, if there are any; `{n}` is their number."""
        if len(rows):
            severity = few if len(rows) <= FEW * len(self.used) else "warning"
            text = text.format(n=f"{len(rows):,} of {len(self.used):,} windows")
            yield Finding(code, severity, len(rows), len(self.used), text, self.names(rows))


def quality_report(
    index: WindowIndex, assignment: SplitAssignment, config: ResolvedConfig
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
    findings = [
        *_leaks(data, leakage),
        *_split_sizes(data),
        *_classes(data),
        *_invalid(data),
        *_units(data),
        *_absent_bands(data),
        *_flat_bands(data),
        *_marked_pixels(data),
        *_missing_pixels(data),
        *_labels(data),
        *_times(data),
        *_duplicates(data),
    ]
    findings.sort(key=lambda found: ("error", "warning", "note").index(found.severity))
    verdict = Verdict.of(findings)
    counts = assignment.counts()
    return {
        "version": QUALITY_VERSION,
        "verdict": verdict.level,
        "reasons": verdict.reasons,
        "leakage": leakage.as_json(),
        "standard_error": {
            split: round(standard_error(count), 4) if count else None
            for split, count in counts.items()
        },
        "findings": [asdict(found) for found in findings],
    }


# --------------------------------------------------------------------------------------- splits


def _leaks(data: _Data, leakage: Leakage) -> Iterator[Finding]:
    places = data.index.footprints.place[data.used]
    one_place = len(places) > 1 and bool((places == places[0]).all()) and places[0] >= 0
    cure = "; divide by place: splits.strategy spatial with a buffer_m (--split-strategy, --buffer)"
    if one_place:
        yield Finding(
            "one_place",
            "warning",
            len(places),
            len(places),
            f"all {len(places):,} windows lie at one and the same place; if their coordinates are "
            "placeholders, overlap means nothing; if not, divide by time (window option split)",
            data.names(data.used),
        )
        cure = ""
    for split, found in leakage.splits.items():
        total = found.windows
        kinds: tuple[tuple[str, Any, float | None, float, str], ...] = (
            ("overlap", found.overlapping, MAX_LEAKED_SHARE, 0.0,
             "overlap a train window in space and time"),
            ("overlap_other_time", found.overlapping_other_time, None, MAX_LEAKED_SHARE,
             "show the ground of a train window at another time"),
            ("near", found.near, None, MAX_NEAR_SHARE,
             f"lie within {leakage.distance_m:g} m of a train window"),
            ("duplicate", found.duplicated, MAX_LEAKED_SHARE, 0.0,
             "have the same pixels as a window of another split"),
        )  # fmt: skip
        for code, cases, poor, warn, what in kinds:
            if not cases.count:
                continue
            share = cases.count / total
            severity: Severity = "warning" if share > warn else "note"
            if poor is not None and share > poor:
                severity = "error"
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
        if error > MAX_STANDARD_ERROR:
            off = f"{100 * error:.1f} points"
            if not data.config.task.kind.has_classes:
                off = f"{100 * 2**0.5 * error:.0f}% of itself"
            yield Finding(
                "small_split",
                "error" if error > USELESS_STANDARD_ERROR else "warning",
                count,
                total,
                f"{split} has {count} window{'s' * (count != 1)}: a score on it is off by up to "
                f"{off} (one standard error) by chance; give it more windows (splits.ratios)",
            )


def _classes(data: _Data) -> Iterator[Finding]:
    """What the split report knows about classes: missing ones, and shares that differ."""
    report, task = data.assignment.report, data.config.task
    if not task.kind.has_classes:
        return
    stratified = report["strategy"].startswith("stratified")
    cure = "splits.strategy stratified gives every split some of each class"
    if stratified:
        cure = "each class needs as many windows as there are splits"
    for split, names in report.get("classes_missing", {}).items():
        if names:
            yield Finding(
                "class_missing",
                "error" if split == "train" else "warning",
                len(names),
                task.num_classes,
                f"{split} has no {_some(names)}; {cure}",
                names[:EXAMPLES],
            )
    for split, distance in report.get("distance_from_train", {}).items():
        if distance > max(MAX_DISTANCE, 2 * _distance_by_chance(report, split)):
            yield Finding(
                "class_distribution",
                "warning",
                data.assignment.counts()[split],
                len(data.used),
                f"the classes of {split} are distributed otherwise than train's: {distance:.2f} "
                "apart (0 equal, 1 disjoint)"
                + ("" if stratified else "; see splits.strategy stratified"),
            )
    counts = np.array([report.get("class_counts", {}).get(s, []) for s in SPLITS], dtype=np.int64)
    if counts.size:
        unused = [
            known.name
            for k, known in enumerate(task.classes)
            if not counts[:, k].any() and k != task.ignored_id
        ]
        if unused:
            text = f"no window has {_some(unused)}: classes that can't be scored"
            yield Finding(
                "class_unused", "note", len(unused), task.num_classes, text, unused[:EXAMPLES]
            )


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
        yield Finding(
            f"invalid_{code}",
            "note" if count <= FEW * summary.n_windows else "warning",
            count,
            summary.n_windows,
            f"{count:,} of {summary.n_windows:,} windows {'is' if count == 1 else 'are'} invalid "
            "and in no split: "
            f"{PROBLEMS.get(code, 'see the index')} ({code})",
            summary.examples[code],
        )


# ----------------------------------------------------------------------------------------- bands


@dataclass(frozen=True)
class _Bands:
    """A modality's bands beside those of pretraining."""

    modality: ModalityInput
    names: list[str]
    stats: list[BandStats]
    mean: NDArray[np.float64]
    expected: NDArray[np.float64]
    sigma: NDArray[np.float64]


def _bands(data: _Data, modality: ModalityInput) -> _Bands | None:
    known = PRETRAINING.get(modality.name, {})
    places = [k for k, band in enumerate(modality.bands) if band in known]
    moments = data.moments[modality.name]
    if not places or moments.shape[2] != len(modality.bands):
        return None
    stats = combine(moments)
    names = [modality.bands[k] for k in places]
    return _Bands(
        modality,
        names,
        [stats[k] for k in places],
        np.array([stats[k].mean for k in places]),
        np.array([known[band][0] for band in names]),
        np.array([known[band][1] for band in names]),
    )


def _units(data: _Data) -> Iterator[Finding]:
    """Band means where pretraining's are not: most often another unit."""
    for modality in data.config.modalities:
        bands = _bands(data, modality)
        if bands is None:
            continue
        cause = _stored_decibels(data, modality)
        with np.errstate(invalid="ignore"):
            far = np.abs(bands.mean - bands.expected) > PLAUSIBLE_SIGMAS * bands.sigma
        if cause is not None:
            far[:] = True
        elif far.any():
            cause = _scale(bands)
        else:
            cause = _too_dark(bands) or _offset(data, bands)
            far[:] = cause is not None
        if far.any():
            unit = " dB" if modality.decibels else ""
            yield Finding(
                "units",
                "warning",
                int(far.sum()),
                len(bands.names),
                f"{modality.name}: {int(far.sum())} of {len(bands.names)} bands are not in "
                f"the units of pretraining; {cause or 'check the unit and the source'}",
                [
                    f"{bands.names[k]}: mean {bands.mean[k]:.4g}{unit}, in pretraining "
                    f"{bands.expected[k]:.4g} with standard deviation {bands.sigma[k]:.4g}"
                    for k in np.flatnonzero(far)[:EXAMPLES]
                ],
            )


def _stored_decibels(data: _Data, modality: ModalityInput) -> str | None:
    """Power can't be negative, decibels mostly are: then hardly a pixel counts as measured."""
    if not modality.decibels:
        return None
    total = _places(data, modality).sum()
    share = data.moments[modality.name][:, 0].min(axis=1, initial=total).sum() / max(total, 1)
    if not total or share > 0.2:
        return None
    return (
        f"only {share:.1%} of its pixels are positive: it seems to be stored in "
        "decibels, where linear power is expected; store 10 ** (dB / 10)"
    )


_SCALES = (
    (1e-4, "it seems to be stored as reflectance from 0 to 1; multiply by 10,000"),
    (0.0255, "it seems to be stored in 8 bits (0 to 255); take the calibrated product"),
    (0.1, "it seems to be too small by a factor of 10"),
    (10.0, "it seems to be too large by a factor of 10"),
    (100.0, "it seems to be too large by a factor of 100"),
    (1e4, "it seems to be too large by a factor of 10,000"),
)


def _scale(bands: _Bands) -> str | None:
    """The factor that explains the difference best."""
    with np.errstate(invalid="ignore"):
        if bands.modality.decibels:
            difference = float(np.nanmedian(bands.mean - bands.expected))
            if difference > 0:
                return (
                    f"it is {difference:.0f} dB too bright: digital numbers that were never "
                    "calibrated, or power times 10,000 (40 dB)"
                )
            return f"it is {-difference:.0f} dB too dark, as power divided by 10,000 would be"
        ratio = float(np.nanmedian(bands.mean / bands.expected))
    if not ratio > 0:
        return None
    factor, cause = min(_SCALES, key=lambda scale: abs(np.log10(ratio / scale[0])))
    return cause if abs(np.log10(ratio / factor)) < 0.75 else None


def _too_dark(bands: _Bands) -> str | None:
    """Small units stay within two sigmas of pretraining, whose sigmas are as large as its means.

    But no landscape is under a fifth of pretraining's mean in all of four bands or more.
    """
    if bands.modality.decibels or len(bands.names) < 4:
        return None
    if np.isfinite(bands.mean).all() and (bands.mean < bands.expected / 5).all():
        return _scale(bands)
    return None


def _offset(data: _Data, bands: _Bands) -> str | None:
    """Since baseline 04.00 (2022) Sentinel-2 products carry 1000 on every pixel.

    With it no pixel is below about 1000; without it every window has some dark pixel in some band.
    """
    if bands.modality.name != "sentinel2_l2a":
        return None
    lowest = data.moments[bands.modality.name][:, 3]
    lowest = np.where(lowest > 0, lowest, np.inf).min(axis=1)  # 0 is nodata
    lowest = lowest[np.isfinite(lowest)]
    if len(lowest) < 10 or np.quantile(lowest, 0.05) < 950 or not (bands.mean > 1000).all():
        return None
    return (
        f"no pixel of any band is below {lowest.min():.0f}: the offset of 1000 that Sentinel-2 "
        "products carry since processing baseline 04.00 seems to be left in; subtract 1000"
    )


def _absent_bands(data: _Data) -> Iterator[Finding]:
    train = data.splits[data.used] == "train"
    for modality in data.config.modalities:
        counts = data.moments[modality.name][train, 0].sum(axis=0)
        if len(counts) == len(modality.bands):
            absent = [b for b, n in zip(modality.bands, counts, strict=True) if not n]
        else:
            absent = list(modality.bands)
        if absent and train.any():
            what = "at all" if len(absent) == len(modality.bands) else f"of {_some(absent)}"
            yield Finding(
                "band_absent",
                "warning",
                len(absent),
                len(modality.bands),
                f"no train window has a pixel of {modality.name} {what}: it is 0 after "
                "normalisation; leave the modality out (modalities) or check the source",
                absent[:EXAMPLES],
            )


def _flat_bands(data: _Data) -> Iterator[Finding]:
    for modality in data.config.modalities:
        moments = data.moments[modality.name]
        if moments.shape[2] != len(modality.bands):
            continue
        flat = [
            band for band, s in zip(modality.bands, combine(moments), strict=True) if s.std == 0
        ]
        if flat:
            yield Finding(
                "zero_variance",
                "warning",
                len(flat),
                len(modality.bands),
                f"{modality.name} {_some(flat)} never varies: it is 0 after normalisation; "
                "check that the source has this band",
                flat[:EXAMPLES],
            )
        constant = (moments[:, 0] > 0) & (moments[:, 3] == moments[:, 4])
        varies = np.array([band not in flat for band in modality.bands])
        rows = data.used[constant[:, varies].any(axis=1)] if varies.any() else data.used[:0]
        yield from data.windows(
            "flat_window",
            rows,
            f"{{n}} have a band of {modality.name} that is the same everywhere in the window",
        )


def _marked_pixels(data: _Data) -> Iterator[Finding]:
    """Missing data that isn't 0: a few such pixels move a band's mean and widen its deviation."""
    for modality in data.config.modalities:
        if modality.decibels:  # what isn't positive doesn't count there
            continue
        lowest = data.moments[modality.name][:, 3].min(axis=1, initial=np.inf)
        rows = data.used[lowest < LOWEST_REFLECTANCE]
        yield from data.windows(
            "nodata_value",
            rows,
            f"{{n}} have pixels of {modality.name} below {LOWEST_REFLECTANCE:g} (down to "
            f"{lowest.min(initial=np.inf):g}), which seem to mark missing data but count as values "
            "in the statistics; store 0 there",
            few="warning",
        )


def _places(data: _Data, modality: ModalityInput) -> NDArray[np.float64]:
    """Per used window how many of its pixels the statistics are of, over all timesteps."""
    sides = [floats(data.index.table[name])[data.used] for name in ("height", "width")]
    pad = modality.pad_of("train")
    if pad is not None and data.config.statistics_pads:
        sides = [np.minimum(side, pad.size) for side in sides]
    return np.asarray(sides[0] * sides[1] * data.column(f"{modality.name}.timesteps"))


def _missing_pixels(data: _Data) -> Iterator[Finding]:
    for modality in data.config.modalities:
        steps = data.column(f"{modality.name}.timesteps")
        if not modality.required:
            yield from data.windows(
                "modality_absent", data.used[steps == 0], f"{{n}} have no {modality.name}"
            )
        total = _places(data, modality)
        counted = data.moments[modality.name][:, 0].max(axis=1, initial=0)
        lacking = np.maximum(data.column(f"{modality.name}.nodata"), total - counted)
        lacking[steps == 0] = 0
        share = lacking / np.maximum(total, 1)
        whole = f"on the whole {lacking.sum() / max(total.sum(), 1):.1%} are missing"
        yield from data.windows(
            "nodata",
            data.used[share > 0.5],
            f"{{n}} lack more than half of their {modality.name} pixels ({whole})",
        )
        some = data.used[(share > 0) & (share <= 0.5)]
        if len(some):
            n = f"{len(some):,} of {len(data.used):,} windows"
            text = f"{n} lack some of their {modality.name} pixels ({whole})"
            if data.index.nodata_values(modality.name, data.used):
                text += "; they count in no statistic and are 0 after normalisation"
            elif not modality.decibels:
                text += "; models see them as very dark"
            yield Finding("nodata_some", "note", len(some), len(data.used), text, data.names(some))


# ------------------------------------------------------------------------------ labels and times


def _labels(data: _Data) -> Iterator[Finding]:
    task = data.config.task
    if task.kind.has_classes:
        counts = data.index.class_counts(task.num_classes, data.cuts)[data.used]
        present = [task.classes[c].name for c in np.flatnonzero(counts.any(axis=0))]
        if len(present) == 1:
            text = f"every label is {present[0]}: there is nothing to tell apart"
            yield _constant(data, text)
    elif len(data.used):
        stats = combine(data.index.label_moments(data.cuts)[data.used])
        if stats and stats[0].std == 0:
            text = f"every target is {stats[0].mean:g}: there is nothing to predict"
            yield _constant(data, text)
    if not task.kind.per_pixel:
        return
    yield from _empty_samples(data)
    invalid = data.index.unlabelled(data.cuts)[data.used]
    if task.kind.has_classes:
        valid = counts.sum(axis=1)
    else:
        valid = data.index.label_moments(data.cuts)[data.used][:, 0, 0]
    labelled = valid / np.maximum(valid + invalid, 1)
    sparse = data.used[labelled < 0.05]
    if len(sparse):
        text = (
            f"{len(sparse):,} of {len(data.used):,} windows have labels on less than 5% of their "
            f"pixels (on the whole {valid.sum() / max((valid + invalid).sum(), 1):.1%} have one)"
        )
        yield Finding("sparse_label", "note", len(sparse), len(data.used), text, data.names(sparse))


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
                yield Finding("crops_unlabelled", "note", missing, total, text, data.names(empty))
        elif len(empty):
            side = data.config.crop_size
            what = "that Pad leaves" if side is None else f"in the middle ({side} pixels)"
            text = (
                f"{len(empty):,} of {len(rows):,} windows of {split} have labels, but none {what}; "
                f"--all-crops {split} makes every crop a sample, --crop-size takes larger ones"
            )
            few = len(empty) <= FEW * len(rows)
            severity: Severity = "note" if few else "warning"
            if len(empty) == len(rows):
                severity = "error"
            yield Finding(
                "crop_unlabelled", severity, len(empty), len(rows), text, data.names(empty)
            )


def _constant(data: _Data, text: str) -> Finding:
    n = len(data.used)
    return Finding("constant_label", "error", n, n, text, data.names(data.used))


def _times(data: _Data) -> Iterator[Finding]:
    """Timesteps out of order, or of another time than the window's."""
    wanted = data.index.times
    used = np.zeros(len(data.index), bool)
    used[data.used] = True
    for modality in data.config.modalities:
        rows, start, end = timesteps(data.index.table[f"{modality.name}.timestamps"])
        if not len(rows):
            continue
        step = (rows[1:] == rows[:-1]) & (start[1:] < start[:-1])
        yield from data.windows(
            "timestamps_unordered",
            _only(used, rows[1:][step]),
            f"{{n}} have timesteps of {modality.name} that are not in the order of time",
        )
        # Models see days, so less than a day outside is inside.
        window = wanted[rows]
        outside = (end < window[:, 0] - _DAY_US) | (start > window[:, 1] + _DAY_US)
        found = _only(used, rows[outside])
        if len(found) == len(data.used):
            # A layer with a time offset, such as `pre_`, lies outside in every window.
            text = f"all windows have timesteps of {modality.name} outside their own time range"
            names = data.names(found)
            yield Finding("timestamps_outside", "note", len(found), len(data.used), text, names)
        else:
            yield from data.windows(
                "timestamps_outside",
                found,
                f"{{n}} have timesteps of {modality.name} outside the window's time range",
            )


def timesteps(
    column: Column,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Row, start and end (microseconds since 1970) of every timestep of a timestamps column."""
    lists = one_array(column)
    steps = lists.flatten()
    start, end = (floats(pc.struct_field(steps, name)) for name in ("start", "end"))
    return np.repeat(np.arange(len(lists)), lengths(lists)), start, end


def _only(used: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = np.unique(rows)
    return rows[used[rows]]


def _duplicates(data: _Data) -> Iterator[Finding]:
    """Windows that are there twice: same place and time, or same pixels."""
    place = codes(data.index.table["geometry"]).astype(np.float64)
    keys = np.column_stack([place, np.nan_to_num(data.index.times, nan=-1)])[data.used]
    known = keys[:, 0] >= 0
    yield from data.windows(
        "duplicated_window",
        data.used[known][_repeated(keys[known])],
        "{n} repeat the place and time of another window",
    )
    groups = data.index.pixel_groups[data.used]
    known = groups >= 0
    yield from data.windows(
        "duplicated_pixels",
        data.used[known][_repeated(groups[known, None])],
        "{n} have exactly the pixels of another window",
    )


def _repeated(keys: NDArray[Any]) -> NDArray[np.bool_]:
    """True per row of keys that stood there before."""
    _, first = np.unique(keys, axis=0, return_index=True)
    repeated = np.ones(len(keys), bool)
    repeated[first] = False
    return repeated
