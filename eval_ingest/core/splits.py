"""Which window belongs to train, val or test.

Assignment hashes (seed, window): it doesn't depend on the order in which windows are listed,
and a new window moves no other. The exception: windows that overlap share one hash, so a new
window that overlaps others can move those it joins together (see `_overlap_keys`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.index import WindowIndex
from eval_ingest.core.resolved import ResolvedConfig, SplitSelector
from eval_ingest.core.spec import SPLITS, DatasetSpec, SplitPolicy
from eval_ingest.core.task import Task
from eval_ingest.errors import SplitError

SPLITS_VERSION = 2

NONE = "none"
"""The split of windows that are in none: invalid, not selected, or left out."""

_SLIVER = 1e-3
"""Outlines are straight lines between projected corners, so neighbours on a grid overlap by
slivers: two windows only overlap if they still do without this share of their width."""

_ALIASES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

SCHEMA = pa.schema(
    [("group", pa.string()), ("name", pa.string()), ("split", pa.string()), ("reason", pa.string())]
)


@dataclass(frozen=True)
class SplitAssignment:
    """The split of every window of an index, and why."""

    table: pa.Table
    """group, name, split (train | val | test | none), reason; rows in step with the index."""
    fingerprint: str
    report: dict[str, Any]
    """Strategy, counts, class shares per split and their distance: see `split_report`."""

    @property
    def splits(self) -> NDArray[np.str_]:
        """Split per row."""
        return np.array(self.table["split"].to_pylist(), dtype=str)

    def counts(self) -> dict[str, int]:
        """Windows per split, train, val and test."""
        splits = self.splits
        return {split: int((splits == split).sum()) for split in SPLITS}


def assign_splits(
    index: WindowIndex, config: ResolvedConfig, spec: DatasetSpec, fingerprint: str
) -> SplitAssignment:
    """Give each valid window of the index a split.

    Raises:
        SplitError: no window is selected, or the train split is empty.
    """
    splits = np.full(len(index), NONE, dtype="<U5")
    reasons = np.full(len(index), "", dtype=object)
    reasons[~index.valid] = "invalid"
    strata = index.main_class(config.task.kind, config.task.num_classes)

    candidates = index.valid & _selected(index, config, reasons)
    if not candidates.any():
        raise SplitError(
            f"{spec.name}: no valid window is selected "
            f"({int(index.valid.sum())} of {len(index)} are valid); check groups and tags"
        )
    if spec.max_samples is not None:
        kept = _limit(index.keys, candidates, strata, spec.max_samples, spec.splits.seed)
        reasons[candidates & ~kept] = "max_samples"
        candidates = kept

    strategy = _choose(index, config, spec, candidates, strata, splits, reasons)
    assignment = SplitAssignment(
        pa.table(
            {
                "group": index.table["group"],
                "name": index.table["name"],
                "split": splits.tolist(),
                "reason": reasons.tolist(),
            },
            schema=SCHEMA,
        ),
        fingerprint,
        {},
    )
    counts = assignment.counts()
    if counts["train"] == 0:
        raise SplitError(
            f"{spec.name}: the train split is empty (0 of {int(candidates.sum())} windows); "
            f"check splits.ratios {spec.splits.ratios} and the dataset's split tags"
        )
    report = split_report(index, assignment, config.task, strategy)
    return SplitAssignment(assignment.table, fingerprint, report)


def _choose(
    index: WindowIndex,
    config: ResolvedConfig,
    spec: DatasetSpec,
    candidates: NDArray[np.bool_],
    strata: NDArray[np.int64],
    splits: NDArray[np.str_],
    reasons: NDArray[np.object_],
) -> str:
    """Fill splits and reasons of the candidates; return what was done, in words."""
    policy = spec.splits
    if policy.strategy == "auto":
        declared = _declared(index, config)
        if declared is not None:
            origin, labels = declared
            return _take_declared(index, candidates, origin, labels, policy, splits, reasons)
    ratios = policy.ratios
    if config.declared_ratios is not None and "ratios" not in policy.model_fields_set:
        ratios = config.declared_ratios
    chosen: NDArray[np.str_]
    match policy.strategy:
        case "auto" | "random":
            keys = _overlap_keys(index, candidates, ratios, policy)
            chosen = _by_threshold(uniform(keys, f"split:{policy.seed}"), ratios)
        case "stratified":
            chosen = _stratified(index.keys, candidates, strata, ratios, policy.seed)
        case "spatial":
            chosen = _spatial(index, candidates, ratios, policy, reasons)
    splits[candidates] = chosen[candidates]
    reasons[candidates & (reasons == "")] = policy.strategy
    shares = " / ".join(f"{ratio:.0%}" for ratio in ratios)
    name = "random" if policy.strategy == "auto" else policy.strategy
    return f"{name} {shares}, seed {policy.seed}"


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


def _overlap_keys(
    index: WindowIndex,
    candidates: NDArray[np.bool_],
    ratios: tuple[float, float, float],
    policy: SplitPolicy,
) -> list[str]:
    """What each window is hashed by: itself, or the first by name of the windows it overlaps.

    Windows that overlap, directly or through others, thereby get into the same split. Where so
    many hang together that a split would be thrown off (more than half of the smallest split),
    they are hashed by their blocks of the equal-area grid instead, as `spatial` does: then only
    windows at the blocks' borders overlap others of another split, and the report counts them.
    """
    import shapely

    keys = list(index.keys)
    outlines = footprints(index)
    taken = candidates & (outlines.place >= 0)
    too_many = max(int(candidates.sum()) * min(r for r in ratios if r > 0) / 2, 2)
    for rows in _overlap_clusters(outlines, np.flatnonzero(taken)):
        names = [keys[row] for row in rows]
        if len(rows) <= too_many:
            names = [min(names)] * len(rows)
        else:
            shapes = outlines.shapes[outlines.place[rows]]
            centres = shapely.get_coordinates(shapely.centroid(shapes))
            blocks = np.floor(centres / policy.block_size_m).astype(np.int64)
            names = [f"block {x}/{y}" for x, y in blocks.tolist()]
        for row, name in zip(rows, names, strict=True):
            keys[row] = name
    return keys


@dataclass(frozen=True)
class Footprints:
    """The outlines of an index's windows, each different one once."""

    shapes: NDArray[Any]
    """Polygons in metres, as `equal_area` gives them."""
    place: NDArray[np.int64]
    """Per row of the index the place in `shapes`; -1 where the outline isn't known."""


def footprints(index: WindowIndex) -> Footprints:
    """The outlines of all windows; a site that was taken a thousand times costs one outline."""
    import shapely

    column = pa.chunked_array([index.table["geometry"].combine_chunks()], pa.binary())
    encoded = column.dictionary_encode().chunk(0)
    shapes = equal_area(shapely.from_wkb(encoded.dictionary.to_pylist()))
    place = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Footprints(shapes, place)


def _overlap_clusters(outlines: Footprints, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The groups of two or more of these rows that hang together by overlap, each sorted."""
    import shapely

    present, first_of, shape_of = np.unique(
        outlines.place[rows], return_index=True, return_inverse=True
    )
    shrunk = without_slivers(outlines.shapes[present])
    one, other = shapely.STRtree(shrunk).query(shrunk, predicate="intersects")
    once = one < other
    # Windows of one and the same outline are joined to the first of them.
    first = np.concatenate([first_of[one[once]], np.arange(len(rows))])
    second = np.concatenate([first_of[other[once]], first_of[shape_of]])
    different = first != second
    return [rows[members] for members in _connected(len(rows), first[different], second[different])]


def without_slivers(shapes: NDArray[Any]) -> NDArray[Any]:
    """Shapes drawn together towards their middle, so that only real overlap intersects."""
    import shapely

    known = np.flatnonzero(~shapely.is_missing(shapes) & ~shapely.is_empty(shapes))
    some = shapes[known]
    corners = shapely.get_coordinates(some)
    middles = shapely.get_coordinates(shapely.centroid(some))
    middles = np.repeat(middles, shapely.get_num_coordinates(some), axis=0)
    result = np.full(len(shapes), None, dtype=object)
    result[known] = shapely.set_coordinates(some, middles + (corners - middles) * (1 - _SLIVER))
    return result


def _connected(
    count: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The groups of two or more among `count` things that the pairs connect, each sorted."""
    root = np.arange(count)
    while True:  # each round joins trees by their roots, then flattens them: log(count) rounds
        a, b = root[first], root[second]
        if (a == b).all():
            break
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root != root[root]).any():
            root = root[root]
    linked = np.unique(np.concatenate([first, second]))
    order = linked[np.argsort(root[linked], kind="stable")]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(root[order])) + 1)


def _stratified(
    keys: Sequence[str],
    candidates: NDArray[np.bool_],
    strata: NDArray[np.int64],
    ratios: tuple[float, float, float],
    seed: int,
) -> NDArray[np.str_]:
    """By hash as `random`, then each class of three or more windows gets into every split.

    Only windows of such rare classes move, so that a new window still moves (almost) no other.
    """
    numbers = uniform(keys, f"split:{seed}")
    chosen = _by_threshold(numbers, ratios)
    wanted = [split for split, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0]
    for stratum in np.unique(strata[candidates]):
        rows = np.flatnonzero(candidates & (strata == stratum))
        if len(rows) < len(wanted):
            continue
        rows = rows[np.argsort(numbers[rows])]
        for split in wanted:
            if not (chosen[rows] == split).any():
                largest = max(wanted, key=lambda other: int((chosen[rows] == other).sum()))
                donors = rows[chosen[rows] == largest]
                # Splits lie along the hash in the order train, val, test: take the nearest.
                chosen[donors[-1] if SPLITS.index(split) > SPLITS.index(largest) else donors[0]] = (
                    split
                )
    return chosen


def _spatial(
    index: WindowIndex,
    candidates: NDArray[np.bool_],
    ratios: tuple[float, float, float],
    policy: SplitPolicy,
    reasons: NDArray[np.object_],
) -> NDArray[np.str_]:
    """Whole blocks of an equal-area grid go to one split; a buffer thins out train."""
    import shapely

    shapes = equal_area(shapely.from_wkb(index.table["geometry"].to_pylist()))
    centres = shapely.get_coordinates(shapely.centroid(shapes[candidates]))
    blocks = np.floor(centres / policy.block_size_m).astype(np.int64)
    names = [f"{x}/{y}" for x, y in blocks.tolist()]
    chosen = np.full(len(index), NONE, dtype="<U5")
    chosen[candidates] = _by_threshold(uniform(names, f"block:{policy.seed}"), ratios)
    if policy.buffer_m > 0:
        held_out = np.flatnonzero(np.isin(chosen, ("val", "test")))
        train = np.flatnonzero(chosen == "train")
        if len(held_out) and len(train):
            tree = shapely.STRtree(shapes[held_out])
            near, _ = tree.query(shapes[train], predicate="dwithin", distance=policy.buffer_m)
            left_out = train[np.unique(near)]
            chosen[left_out] = NONE
            reasons[left_out] = f"within {policy.buffer_m:g} m of a val or test window"
    return chosen


def equal_area(shapes: NDArray[Any]) -> NDArray[Any]:
    """Geometries in longitude and latitude, in metres on the EASE-Grid 2.0 (EPSG:6933)."""
    import pyproj
    import shapely

    transformer = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)

    def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))

    return np.asarray(shapely.transform(shapes, project))


def _options(index: WindowIndex) -> list[dict[str, Any]]:
    return [json.loads(text) if text else {} for text in index.table["options"].to_pylist()]


def _selected(
    index: WindowIndex, config: ResolvedConfig, reasons: NDArray[np.object_]
) -> NDArray[np.bool_]:
    """True per window that some split of model.yaml selects; all, if it declares none."""
    if not config.selectors:
        return np.ones(len(index), bool)
    selectors = list(config.selectors.values())
    selected = np.array(
        [
            any(selector.selects(group, name, options) for selector in selectors)
            for group, name, options in zip(index.groups, index.names, _options(index), strict=True)
        ],
        dtype=bool,
    )
    reasons[index.valid & ~selected] = "not selected by model.yaml"
    return selected


def _declared(index: WindowIndex, config: ResolvedConfig) -> tuple[str, list[str | None]] | None:
    """The splits that the dataset declares itself, and where; None if it doesn't.

    model.yaml is asked first, since training went by it; then the window option `split`; then
    groups named after splits. A declaration counts if it has train windows and others.
    """
    options = _options(index)
    rows = list(zip(index.groups, index.names, options, strict=True))
    sources: list[tuple[str, list[str | None]]] = []
    if {"train", "val"} <= config.selectors.keys() or {"train", "test"} <= config.selectors.keys():
        sources.append(
            (
                "model.yaml",
                [_first_selector(config.selectors, *row) for row in rows],
            )
        )
    sources.append(
        ("window option split", [_ALIASES.get(str(o.get("split")).lower()) for _, _, o in rows])
    )
    sources.append(("group names", [_ALIASES.get(group.lower()) for group, _, _ in rows]))
    for origin, labels in sources:
        present = {label for label, ok in zip(labels, index.valid, strict=True) if ok and label}
        if "train" in present and len(present) > 1:
            return origin, labels
    return None


def _first_selector(
    selectors: dict[str, SplitSelector], group: str, name: str, options: dict[str, Any]
) -> str | None:
    """train before val before test, so that nothing is both trained on and held out."""
    for split in SPLITS:
        if split in selectors and selectors[split].selects(group, name, options):
            return split
    return None


def _take_declared(
    index: WindowIndex,
    candidates: NDArray[np.bool_],
    origin: str,
    labels: list[str | None],
    policy: SplitPolicy,
    splits: NDArray[np.str_],
    reasons: NDArray[np.object_],
) -> str:
    """Use declared splits; divide val or test in two where the other is missing."""
    named = np.array([label or NONE for label in labels], dtype="<U5")
    splits[candidates] = named[candidates]
    reasons[candidates] = f"declared by {origin}"
    reasons[candidates & (named == NONE)] = f"no split declared by {origin}"
    present = set(np.unique(splits[candidates]))
    what = f"declared by {origin}"
    for have, lack in (("val", "test"), ("test", "val")):
        if have in present and lack not in present:
            rows = candidates & (splits == have)
            half = uniform(index.keys, f"divide:{policy.seed}") < 0.5
            splits[rows & half] = lack
            reasons[rows] = f"declared {have} by {origin}, divided into val and test"
            what += f"; {have} divided into val and test"
            break
    return what


def _limit(
    keys: Sequence[str],
    candidates: NDArray[np.bool_],
    strata: NDArray[np.int64],
    limit: int,
    seed: int,
) -> NDArray[np.bool_]:
    """At most `limit` candidates, each class in proportion (largest remainder), by hash."""
    total = int(candidates.sum())
    if total <= limit:
        return candidates
    numbers = uniform(keys, f"max_samples:{seed}")
    present = np.unique(strata[candidates])
    sizes = np.array([int((candidates & (strata == stratum)).sum()) for stratum in present])
    exact = sizes * limit / total
    quotas = np.floor(exact).astype(int)
    for k in np.argsort(-(exact - quotas), kind="stable")[: limit - int(quotas.sum())]:
        quotas[k] += 1
    kept = np.zeros(len(keys), bool)
    for stratum, quota in zip(present, quotas, strict=True):
        rows = np.flatnonzero(candidates & (strata == stratum))
        kept[rows[np.argsort(numbers[rows], kind="stable")[:quota]]] = True
    return kept


def split_report(
    index: WindowIndex, assignment: SplitAssignment, task: Task, strategy: str
) -> dict[str, Any]:
    """Counts per split, class shares per split, their distance from train, missing classes.

    The distance is the total variation, half the sum of absolute differences: 0 equal, 1 disjoint.
    """
    splits = assignment.splits
    report: dict[str, Any] = {
        "strategy": strategy,
        "counts": assignment.counts(),
        "left_out": _count_reasons(assignment),
    }
    if task.kind.has_classes:
        counts = index.class_counts(task.num_classes)
        totals = {split: counts[splits == split].sum(axis=0) for split in SPLITS}
        labelled = sum(totals.values()) > 0
        report["class_counts"] = {split: total.tolist() for split, total in totals.items()}
        report["classes_missing"] = {
            split: [
                task.classes[c].name
                for c in np.flatnonzero(labelled & (total == 0) & (splits == split).any())
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
        moments = index.label_moments()
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
    left_out: dict[str, int] = {}
    for split, reason in zip(
        assignment.table["split"].to_pylist(), assignment.table["reason"].to_pylist(), strict=True
    ):
        if split == NONE:
            left_out[reason] = left_out.get(reason, 0) + 1
    return left_out
