"""Which window belongs to train, val or test.

Assignment hashes (seed, window): it doesn't depend on the order in which windows are listed,
and a new window moves no other. The exception: windows that overlap or have the same pixels share
one hash, so a new window can move those that it joins together (see `_joint_keys`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import arrow_table, encoded, numbers, row_numbers
from eval_ingest.core.crops import count_samples, cuts_of
from eval_ingest.core.footprints import Footprints, connected, equal_area
from eval_ingest.core.forms import ColumnForm, Facts, TableForm
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.reports import SplitReport
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS, DatasetSpec, SplitPolicy, split_called
from eval_ingest.errors import IntegrityError, SplitError

SPLITS_VERSION = 4

NONE = "none"
"""The split of windows that are in none: invalid, not selected, or left out."""

KEPT = "window option eval_split"
"""Where splits of an earlier ingest come from."""

_MAX_HALVINGS = 8
"""Blocks are made smaller at most this often: from 5 km to 40 m."""


class SplitFacts(Facts):
    """What a split assignment says of itself."""

    fingerprint: str
    report: SplitReport


SPLITS_FORM = TableForm(
    "split_assignment",
    SPLITS_VERSION,
    {
        "group": ColumnForm(pa.string(), whole=True),
        "name": ColumnForm(pa.string(), whole=True),
        "split": ColumnForm(pa.string(), whole=True, of=frozenset({*SPLITS, NONE})),
        "reason": ColumnForm(pa.string(), whole=True),
    },
    SplitFacts,
)
SCHEMA = SPLITS_FORM.schema(SPLITS_FORM.columns)


def inherited(
    declared: tuple[float, float, float] | None,
) -> tuple[float, float, float] | None:
    """Shares that a dataset declares, without those of zero: no eval can do without val or test.

    >>> inherited((0.5, 0.5, 0.0))
    (0.5, 0.25, 0.25)
    """
    if declared is None or min(declared) > 0:
        return declared
    train, held_out = declared[0], declared[1] + declared[2]
    return (train, held_out / 2, held_out / 2) if train > 0 and held_out > 0 else None


@dataclass(frozen=True)
class SplitAssignment:
    """The split of every window of an index, and why."""

    table: pa.Table
    """group, name, split (train | val | test | none), reason; rows in step with the index."""
    fingerprint: str
    report: dict[str, Any]
    """Strategy, counts, class shares per split and their distance: see `split_report`."""

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """Split per row."""
        return np.array(self.table["split"].to_pylist(), dtype="<U5")

    @cached_property
    def used(self) -> NDArray[np.int64]:
        """Rows that are in a split."""
        return np.flatnonzero(np.isin(self.splits, SPLITS))

    def joined(self, index: WindowIndex) -> "SplitAssignment":
        """The same with its rows in the order of an index: joined by group and name.

        Raises:
            IntegrityError: it is of other windows.
        """
        if all(self.table[name].equals(index.table[name]) for name in ("group", "name")):
            return self
        keys = zip(*(self.table[name].to_pylist() for name in ("group", "name")), strict=True)
        rows = {key: row for row, key in enumerate(keys)}
        order = [rows.get(key) for key in zip(index.groups, index.names, strict=True)]
        if None in order or len(order) != len(rows):
            raise IntegrityError(
                "the splits are of other windows than the index", "ingest it again"
            )
        return replace(self, table=self.table.take(row_numbers(order)))

    def counts(self) -> dict[str, int]:
        """Windows per split, train, val and test."""
        splits = self.splits
        return {split: int((splits == split).sum()) for split in SPLITS}


@dataclass(frozen=True)
class AssignedWindows:
    """The windows of an index with their splits, and what is asked of both together."""

    index: WindowIndex
    assignment: SplitAssignment
    """Its rows in step with the index."""
    config: ResolvedConfig

    @property
    def splits(self) -> NDArray[np.str_]:
        """Split per row of the index."""
        return self.assignment.splits

    @property
    def used(self) -> NDArray[np.int64]:
        """Rows that are in a split."""
        return self.assignment.used

    @cached_property
    def cuts(self) -> NDArray[np.intp]:
        """Which of the configuration's cuts the samples of each row are."""
        return cuts_of(self.config, self.splits)


@dataclass
class _Draft:
    """Splits in the making: what is known of the windows, and what has been decided of each."""

    index: WindowIndex
    config: ResolvedConfig
    spec: DatasetSpec
    splits: NDArray[np.str_]
    """Per row: train, val, test or none."""
    reasons: NDArray[np.object_]
    """Per row, why."""
    candidates: NDArray[np.bool_]
    """Rows that are to get a split."""

    @classmethod
    def of(cls, index: WindowIndex, config: ResolvedConfig, spec: DatasetSpec) -> Self:
        reasons = np.where(index.valid, "", "invalid").astype(object)
        return cls(index, config, spec, _no_splits(index), reasons, index.valid.copy())

    @property
    def policy(self) -> SplitPolicy:
        return self.spec.splits

    @property
    def options(self) -> Iterator[dict[str, Any]]:
        """The options of each window, in turn; not kept, for there may be a million."""
        for batch in self.index.table.select(["options"]).to_batches():
            yield from (json.loads(text) if text else {} for text in batch[0].to_pylist())

    @cached_property
    def kept(self) -> NDArray[np.str_]:
        """The split that an earlier ingest gave each window, or none."""
        return _labels(options.get(SPLIT_OPTION) for options in self.options)

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """The main class of each window."""
        task = self.config.task
        return self.index.main_class(task.kind, task.num_classes)

    @cached_property
    def ratios(self) -> tuple[float, float, float]:
        """The shares of train, val and test: the dataset's own where the spec says nothing."""
        declared = inherited(self.config.declared_ratios)
        if declared is None or "ratios" in self.policy.model_fields_set:
            return self.policy.ratios
        return declared

    @cached_property
    def named(self) -> dict[str, NDArray[np.bool_]]:
        """Per split of model.yaml, True for the windows that it names."""
        selectors = self.config.selectors
        rows = zip(self.index.groups, self.index.names, self.options, strict=True)
        found = np.array(
            [[s.selects(*row) for s in selectors.values()] for row in rows], dtype=bool
        )
        return dict(zip(selectors, found.reshape(len(self.index), -1).T, strict=True))

    @cached_property
    def by_model(self) -> NDArray[np.str_]:
        """The split that model.yaml gives each window, or none.

        Of a limited one (num_samples) the first by the SHA-256 of their names, as rslearn takes
        them: of all that have the layers, whether or not they turn out to be valid. train comes
        before val before test, so that nothing is both trained on and held out.
        """
        chosen = _no_splits(self.index)
        for split in reversed(SPLITS):
            rows = np.flatnonzero(self.named.get(split, False))
            limit = self.config.selectors[split].num_samples if len(rows) else None
            if limit is not None:
                rows = rows[~_incomplete(self.index)[rows]]
                order = np.argsort([_rslearn_order(self.index.names[row]) for row in rows])
                rows = rows[order[:limit]]
            chosen[rows] = split
        return chosen

    def take(self, rows: NDArray[np.bool_], split: str | NDArray[np.str_], reason: str) -> None:
        """Give the candidates among some rows a split."""
        rows = rows & self.candidates
        self.splits[rows] = split if isinstance(split, str) else split[rows]
        self.reasons[rows] = reason


def _no_splits(index: WindowIndex) -> NDArray[np.str_]:
    return np.full(len(index), NONE, dtype="<U5")


def _labels(values: Iterable[Any]) -> NDArray[np.str_]:
    """The splits that are meant by some values; none where that is none."""
    return np.array([split_called(value) or NONE for value in values], dtype="<U5")


def assign_splits(
    index: WindowIndex, config: ResolvedConfig, spec: DatasetSpec, fingerprint: str
) -> SplitAssignment:
    """Give each valid window of the index a split.

    Raises:
        SplitError: no window is selected, or the train split is empty.
    """
    draft = _Draft.of(index, config, spec)
    _select(draft)
    if not draft.candidates.any():
        raise SplitError(
            f"{spec.name}: no valid window is selected "
            f"({int(index.valid.sum())} of {len(index)} are valid); check groups and tags"
        )
    if spec.max_samples is not None:
        kept = _limit(draft, spec.max_samples)
        draft.reasons[draft.candidates & ~kept] = "max_samples"
        draft.candidates = kept
    strategy = _choose(draft)
    columns = {"group": index.table["group"], "name": index.table["name"]}
    columns |= {"split": draft.splits, "reason": draft.reasons}
    assignment = SplitAssignment(arrow_table(columns, SCHEMA), fingerprint, {})
    if assignment.counts()["train"] == 0:
        cure = f"check splits.ratios {draft.policy.ratios} and the dataset's split tags"
        if draft.policy.strategy == "spatial":
            cure = (
                f"choose another splits.block_size_m than {draft.policy.block_size_m:g} "
                "(--block-size), or a smaller splits.buffer_m (--buffer)"
            )
        windows = int(draft.candidates.sum())
        raise SplitError(f"{spec.name}: the train split is empty (0 of {windows} windows); {cure}")
    return replace(assignment, report=split_report(index, assignment, config, strategy))


def _select(draft: _Draft) -> None:
    """Candidates are what some split of model.yaml selects; all, if it declares none.

    With `auto`, windows that have the split of an earlier ingest are too.
    """
    if not draft.config.selectors:
        return
    selected = draft.by_model != NONE
    if draft.policy.strategy == "auto":
        selected |= draft.kept != NONE
    beyond = np.logical_or.reduce(list(draft.named.values()))
    left_out = draft.candidates & ~selected
    draft.reasons[left_out] = "not selected by model.yaml"
    draft.reasons[left_out & beyond] = "beyond num_samples of model.yaml"
    draft.candidates &= selected


def _choose(draft: _Draft) -> str:
    """Fill splits and reasons of the candidates; return what was done, in words."""
    policy, everything = draft.policy, draft.candidates
    if draft.spec.adopted:
        draft.take(everything, draft.by_model, "as it was")
        return "as another tool has assigned them"
    if policy.strategy == "auto":
        for origin, labels in _declarations(draft):
            present = set(labels[draft.index.valid].tolist()) - {NONE}
            if "train" in present and len(present) > 1:
                return _take_declared(draft, origin, labels)
    name = "random" if policy.strategy == "auto" else policy.strategy
    match name:
        case "random":
            chosen = _by_threshold(_hashed(draft), draft.ratios)
        case "stratified":
            chosen = _stratified(draft)
        case "spatial":
            chosen = _spatial(draft)
    draft.splits[everything] = chosen[everything]
    if policy.strategy == "auto":
        draft.take(draft.kept != NONE, draft.kept, f"declared by {KEPT}")
    draft.reasons[everything & (draft.reasons == "")] = policy.strategy
    shares = " / ".join(f"{ratio:.0%}" for ratio in draft.ratios)
    return f"{name} {shares}, seed {policy.seed}"


def _declarations(draft: _Draft) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Where the dataset may declare splits itself, and those of each window, most binding first.

    First those of an earlier ingest (the option `eval_split`), so that scores stay comparable;
    then model.yaml's, since training went by it; then the window option `split`; then groups named
    after splits. A few windows of an earlier ingest keep their splits beside what is declared.
    """
    kept, selectors = draft.kept, draft.config.selectors.keys()
    yield KEPT, kept
    if "train" in selectors and selectors & {"val", "test"}:
        yield "model.yaml", np.where(kept == NONE, draft.by_model, kept)
    options = _labels(options.get("split") for options in draft.options)
    yield "window option split", np.where(kept == NONE, options, kept)
    yield "group names", np.where(kept == NONE, _labels(draft.index.groups), kept)


def _take_declared(draft: _Draft, origin: str, labels: NDArray[np.str_]) -> str:
    """Use declared splits; divide val or test in two where the other is missing.

    Those of an earlier ingest stay as they are.
    """
    what = f"declared by {origin}"
    draft.take(labels != NONE, labels, what)
    draft.take(labels == NONE, NONE, f"no split {what}")
    present = set(draft.splits[draft.candidates].tolist()) - {NONE, "train"}
    if origin == KEPT or len(present) != 1:
        return what
    (have,) = present
    rows = draft.candidates & (draft.splits == have)
    half = uniform(draft.index.keys, f"divide:{draft.policy.seed}") < 0.5
    draft.splits[rows & half & (draft.kept == NONE)] = "test" if have == "val" else "val"
    draft.reasons[rows] = f"declared {have} by {origin}, divided into val and test"
    return f"{what}; {have} divided into val and test"


def uniform(keys: Sequence[str], salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) per key, from a keyed BLAKE2b hash."""
    key = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    digests = b"".join(
        hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in keys
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(11)).astype(np.float64) / 2.0**53


def _by_threshold(
    numbers: NDArray[np.float64], ratios: tuple[float, float, float]
) -> NDArray[np.str_]:
    edges = np.cumsum(ratios)[:2]
    return np.array(SPLITS, dtype="<U5")[np.searchsorted(edges, numbers, side="right")]


def _hashed(draft: _Draft) -> NDArray[np.float64]:
    """A number in [0, 1) per window, equal for those that belong together."""
    return uniform(_joint_keys(draft), f"split:{draft.policy.seed}")


def _joint_keys(draft: _Draft) -> list[str]:
    """What each window is hashed by: itself, or the first by name of those it belongs with.

    Windows that overlap or have the same pixels, directly or through others, thereby get into the
    same split. Where so many hang together that a split would be thrown off (more than half of
    the smallest split), they are hashed by their blocks of the equal-area grid instead, as
    `spatial` does: then only windows at the blocks' borders overlap others of another split, and
    the report counts them. Blocks are halved until none holds too many; windows that lie all at
    one place are hashed one by one.
    """
    index, keys, rows = draft.index, list(draft.index.keys), np.flatnonzero(draft.candidates)
    limit = max(len(rows) * min(r for r in draft.ratios if r > 0) / 2, 2)
    copies = [copy for copy in _copies(index.pixel_groups, rows) if len(copy) <= limit]
    for group in _overlap_clusters(index.footprints, rows, copies):
        names = [keys[row] for row in group]
        if len(group) <= limit:
            names = [min(names)] * len(group)
        else:
            names = _block_names(draft, group, names, limit)
        for row, name in zip(group, names, strict=True):
            keys[row] = name
    for copy in copies:  # blocks may have parted them
        first = min(keys[row] for row in copy)
        for row in copy:
            keys[row] = first
    return keys


def _copies(groups: NDArray[np.int64], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows that have the same pixels, where that are two or more."""
    _, place, count = np.unique(groups[rows], return_inverse=True, return_counts=True)
    rows = rows[(count[place] > 1) & (groups[rows] >= 0)]
    if not len(rows):
        return []
    rows = rows[np.argsort(groups[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)


def _overlap_clusters(
    outlines: Footprints, rows: NDArray[np.int64], copies: list[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """The groups of two or more of these rows that overlap or are copies, each sorted."""
    placed = rows[outlines.place[rows] >= 0]
    present, first_of, shape_of = np.unique(
        outlines.place[placed], return_index=True, return_inverse=True
    )
    # Windows of one and the same outline are joined to the first of them.
    joined = [(placed, placed[first_of[shape_of]])]
    for one, other in outlines.overlaps(present, present):
        for group in connected(len(present), one, other):  # far fewer pairs than overlap
            members = placed[first_of[group]]
            joined.append((members[1:], np.full(len(group) - 1, members[0])))
    joined += [(np.full(len(copy) - 1, copy[0]), copy[1:]) for copy in copies]
    first, second = (np.concatenate(side) for side in zip(*joined, strict=True))
    different = first != second
    return connected(len(outlines.place), first[different], second[different])


def _block_names(
    draft: _Draft, rows: NDArray[np.int64], names: list[str], limit: float
) -> list[str]:
    """A name per row: its block's, or its own where even small blocks hold too many rows."""
    outlines = draft.index.footprints
    known = outlines.place[rows] >= 0
    centres = np.zeros((len(rows), 2))
    centres[known] = equal_area(outlines.centres[outlines.place[rows[known]]])
    for halvings in range(_MAX_HALVINGS):
        size_m = draft.policy.block_size_m / 2**halvings
        blocks = np.floor(centres / size_m).astype(np.int64)
        _, block, count = np.unique(blocks, axis=0, return_inverse=True, return_counts=True)
        fits = known & (count[block.reshape(-1)] <= limit)
        if fits[known].all():
            break
    return [
        f"block {size_m:g} {x}/{y}" if fit else name
        for (x, y), fit, name in zip(blocks.tolist(), fits.tolist(), names, strict=True)
    ]


def _stratified(draft: _Draft) -> NDArray[np.str_]:
    """By hash as `random`, then each class of three or more windows gets into every split.

    Only windows of such rare classes move, and those that share their key, so that a new window
    still moves (almost) no other. The rarest class comes last: what it moves, nothing moves again.
    """
    numbers = _hashed(draft)
    chosen = _by_threshold(numbers, draft.ratios)
    wanted = [split for split, ratio in zip(SPLITS, draft.ratios, strict=True) if ratio > 0]
    present, sizes = np.unique(draft.strata[draft.candidates], return_counts=True)
    for stratum in present[np.argsort(-sizes, kind="stable")]:
        rows = np.flatnonzero(draft.candidates & (draft.strata == stratum))
        if len(rows) < len(wanted):
            continue
        rows = rows[np.argsort(numbers[rows])]
        for split in wanted:
            if not (chosen[rows] == split).any():
                largest = max(wanted, key=lambda other: int((chosen[rows] == other).sum()))
                donors = rows[chosen[rows] == largest]
                # Splits lie along the hash in the order train, val, test: take the nearest.
                donor = donors[-1] if SPLITS.index(split) > SPLITS.index(largest) else donors[0]
                chosen[numbers == numbers[donor]] = split
    return chosen


def _spatial(draft: _Draft) -> NDArray[np.str_]:
    """Whole blocks of an equal-area grid go to one split.

    Left out are train windows that overlap or, with a buffer, are near a val or test window, and
    windows that have the pixels of one in a split that comes later.
    """
    index, policy, reasons = draft.index, draft.policy, draft.reasons
    outlines = index.footprints
    known = outlines.place >= 0
    placed = np.flatnonzero(draft.candidates & known)
    chosen = _no_splits(index)
    reasons[draft.candidates & ~known] = "its place isn't known"
    centres = equal_area(outlines.centres[outlines.place[placed]])
    blocks = np.floor(centres / policy.block_size_m).astype(np.int64)
    names = [f"{x}/{y}" for x, y in blocks.tolist()]
    chosen[placed] = _by_threshold(uniform(names, f"block:{policy.seed}"), draft.ratios)
    for rows, reason in _too_close(index, chosen, policy.buffer_m):
        chosen[rows] = NONE
        reasons[rows] = reason
    return chosen


def _too_close(
    index: WindowIndex, chosen: NDArray[np.str_], buffer_m: float
) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Rows that show what a val or test window shows, and how; read `chosen` as it then is."""
    outlines = index.footprints
    train, held_out = np.flatnonzero(chosen == "train"), np.flatnonzero(chosen != "train")
    held_out = held_out[chosen[held_out] != NONE]
    if buffer_m > 0:
        near, _ = outlines.nearest(train, held_out, buffer_m)
        yield near, f"within {buffer_m:g} m of a val or test window"
    shapes, kept = (np.unique(outlines.place[rows]) for rows in (train, held_out))
    pairs = outlines.overlaps(shapes, kept)
    overlapping = shapes[np.unique(np.concatenate([shapes[:0], *(one for one, _ in pairs)]))]
    train = train[chosen[train] == "train"]
    yield train[np.isin(outlines.place[train], overlapping)], "overlaps a val or test window"
    groups = index.pixel_groups
    for split, later in (("train", ("val", "test")), ("val", ("test",))):
        rows, others = np.flatnonzero(chosen == split), np.flatnonzero(np.isin(chosen, later))
        copied = (groups[rows] >= 0) & np.isin(groups[rows], groups[others])
        yield rows[copied], f"has the pixels of a {' or '.join(later)} window"


def _incomplete(index: WindowIndex) -> NDArray[np.bool_]:
    """Windows that lack a layer: rslearn passes over them."""
    codes = index.table["problems"].to_pylist()
    lacking = [any(p["code"] == "layer_not_completed" for p in found or ()) for found in codes]
    return np.array(lacking, dtype=bool)


def _rslearn_order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _limit(draft: _Draft, limit: int) -> NDArray[np.bool_]:
    """At most `limit` candidates, each class in proportion (largest remainder), by hash."""
    candidates, strata = draft.candidates, draft.strata
    total = int(candidates.sum())
    if total <= limit:
        return candidates
    numbers = uniform(draft.index.keys, f"max_samples:{draft.policy.seed}")
    present, sizes = np.unique(strata[candidates], return_counts=True)
    exact = sizes * limit / total
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(-(exact - quotas), kind="stable")[: limit - int(quotas.sum())]] += 1
    kept = np.zeros(len(candidates), bool)
    for stratum, quota in zip(present, quotas, strict=True):
        rows = np.flatnonzero(candidates & (strata == stratum))
        kept[rows[np.argsort(numbers[rows], kind="stable")[:quota]]] = True
    return kept


def split_report(
    index: WindowIndex, assignment: SplitAssignment, config: ResolvedConfig, strategy: str
) -> dict[str, Any]:
    """Counts per split, class shares per split, their distance from train, missing classes.

    `counts` are windows, `samples` what EvalDataset gives of them, `labelled_samples` those of
    them that have a label. Classes and targets are counted in samples.

    The distance is the total variation, half the sum of absolute differences: 0 equal, 1 disjoint.
    """
    splits, task = assignment.splits, config.task
    cuts = cuts_of(config, splits)
    samples = count_samples(
        config, splits, *(numbers(index.table[name], 0) for name in ("height", "width"))
    )
    labelled = index.labelled_samples(cuts)
    report: dict[str, Any] = {
        "strategy": strategy,
        "counts": assignment.counts(),
        "samples": {split: int(samples[splits == split].sum()) for split in SPLITS},
        "labelled_samples": {split: int(labelled[splits == split].sum()) for split in SPLITS},
        "left_out": _count_reasons(assignment),
    }
    if task.kind.has_classes:
        counts = index.class_counts(task.num_classes, cuts)
        totals = {split: counts[splits == split].sum(axis=0) for split in SPLITS}
        known = sum(totals.values()) > 0
        report["class_counts"] = {split: total.tolist() for split, total in totals.items()}
        report["classes_missing"] = {
            split: [
                task.classes[c].name
                for c in np.flatnonzero(known & (total == 0) & (splits == split).any())
            ]
            for split, total in totals.items()
        }
        train = totals["train"] / max(totals["train"].sum(), 1)
        report["distance_from_train"] = {
            split: round(float(np.abs(totals[split] / totals[split].sum() - train).sum() / 2), 4)
            for split in ("val", "test")
            if totals[split].sum()
        }
    else:
        moments = index.label_moments(cuts)
        report["target"] = {}
        for split in SPLITS:
            rows = moments[splits == split]
            n = rows[:, 0].sum() if len(rows) else 0
            if n:
                mean = rows[:, 1].sum() / n
                variance = max(rows[:, 2].sum() / n - mean**2, 0)
                report["target"][split] = {"mean": float(mean), "std": float(variance**0.5)}
    return report


def _count_reasons(assignment: SplitAssignment) -> dict[str, int]:
    places, values = encoded(assignment.table["reason"])
    counts = np.bincount(places[assignment.splits == NONE], minlength=len(values))
    return {
        reason: count
        for reason, count in zip(values.to_pylist(), counts.tolist(), strict=True)
        if count
    }
