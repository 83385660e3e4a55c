"""The window index: one row per window, with all that later stages need to know about it.

Because the moments of the pixels and the class counts of the labels stand in the index,
normalisation and stratified splits are column arithmetic: no pixel is read again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.bounds import JsonObject
from eval_ingest.core.columns import (
    Texts,
    digest_numbers,
    encoded,
    floats,
    is_text,
    lengths,
    matrix,
    numbers,
    one_array,
)
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.footprints import Footprints
from eval_ingest.core.forms import (
    ColumnForm,
    Facts,
    TableForm,
    as_long,
    crs_texts,
    folder_names,
    fours,
    json_objects,
    numbered_pairs,
    outlines,
)
from eval_ingest.core.norm import MOMENTS
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.task import TaskKind
from eval_ingest.core.validate import InvalidSummary, Problem, summarise

INDEX_VERSION = 6
"""Raised when a column changes meaning: an index of another version is built anew."""


def row_key(config: ResolvedConfig) -> str:
    """What a row's values depend on besides the window's files."""
    pixels = config.model_dump(
        mode="json",
        include={"task", "label", "modalities", "layers", "crop_size", "all_crops", "data_storage"},
    )
    for known in pixels["task"]["classes"]:
        known.pop("color")
    for layer in pixels["layers"]:  # what is only written into the copy
        for told in (layer, *layer["band_sets"]):
            told.pop("class_names")
    return fingerprint("row", INDEX_VERSION, pixels)


Cuts: TypeAlias = int | NDArray[np.intp]
"""Which of `ResolvedConfig.cuts` the samples are counted in: one, or one per row."""


class IndexFacts(Facts):
    """What a window index says of itself."""

    fingerprint: str
    row_key: str
    source: str
    extra: JsonObject


_TIME = pa.timestamp("us", tz="UTC")
_INTERVAL = pa.struct([("start", _TIME), ("end", _TIME)])
_MOMENTS = pa.struct([(name, pa.list_(pa.float64())) for name in MOMENTS])
_PROBLEM = pa.struct([("code", pa.string()), ("detail", pa.string())])


_COUNTS = ColumnForm(pa.list_(pa.int64()), right=as_long)

INDEX_FORM = TableForm(
    "window_index",
    INDEX_VERSION,
    {
        "group": ColumnForm(pa.string(), whole=True, right=folder_names),
        "name": ColumnForm(pa.string(), whole=True, right=folder_names),
        "crs": ColumnForm(pa.string(), right=crs_texts),
        "x_resolution": ColumnForm(pa.float64()),
        "y_resolution": ColumnForm(pa.float64()),
        # Of 4. Where one is null, Arrow before 24, and so QGIS, reads no list of a fixed size.
        "bounds": ColumnForm(pa.list_(pa.int64()), low=-1 << 62, high=1 << 62, right=fours),
        "height": ColumnForm(pa.int32()),
        "width": ColumnForm(pa.int32()),
        "time_start": ColumnForm(_TIME),
        "time_end": ColumnForm(_TIME),
        "options": ColumnForm(pa.string(), right=json_objects),
        "geometry": ColumnForm(pa.binary(), right=outlines),
        "layers": ColumnForm(pa.list_(pa.string())),
        "n_files": ColumnForm(pa.int32()),
        "n_bytes": ColumnForm(pa.int64()),
        "source_digest": ColumnForm(pa.string()),
        "pixel_digest": ColumnForm(pa.string()),
        "status": ColumnForm(pa.string(), whole=True, of=frozenset({"valid", "invalid"})),
        "problems": ColumnForm(pa.list_(_PROBLEM)),
        "judged_by": ColumnForm(pa.string()),
        "*.timesteps": ColumnForm(pa.int32()),
        "*.timestamps": ColumnForm(pa.list_(_INTERVAL)),
        "*.moments": ColumnForm(_MOMENTS, right=as_long),
        "*.nodata": ColumnForm(pa.int64()),
        "*.nodata_values": ColumnForm(pa.list_(pa.float64()), right=numbered_pairs),
        # Counted in samples, one value (or one per class) for each of the configuration's cuts.
        "label.crc32c": ColumnForm(pa.uint32()),
        "label.samples": ColumnForm(pa.list_(pa.int32()), right=as_long),
        "label.invalid": _COUNTS,
        "label.class_counts": replace(_COUNTS, needed=False),
        "label.moments": ColumnForm(_MOMENTS, needed=False, right=as_long),
        "label.crop_targets": ColumnForm(pa.list_(pa.float64()), needed=False),
    },
    IndexFacts,
    geo=True,
)
"""The columns of a dataset's window index, sorted rows of (group, name)."""


def index_schema(config: ResolvedConfig) -> pa.Schema:
    """The columns that a dataset's window index has."""
    has_classes, crops = config.task.kind.has_classes, config.all_crops
    left_out = {"label.moments" if has_classes else "label.class_counts"}
    if not crops or config.task.kind.per_pixel:
        left_out.add("label.crop_targets")
    names = [name for name in INDEX_FORM.columns if name not in left_out]
    of_modality = [name for name in names if name[0] == "*"]
    at = names.index(of_modality[0])
    names[at : at + len(of_modality)] = [
        name.replace("*", modality.name) for modality in config.modalities for name in of_modality
    ]
    return INDEX_FORM.schema(names)


def moments_struct(moments: NDArray[np.float64]) -> dict[str, list[float]]:
    """Moments (5, C) as the value of a moments column."""
    return {name: moments[k].tolist() for k, name in enumerate(MOMENTS)}


def fifths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which fifth of all of them each value lies in, 0 to 4; -1 for what isn't finite."""
    known = np.isfinite(values)
    strata = np.full(len(values), -1, np.int64)
    if known.any():
        edges = np.quantile(values[known], [0.2, 0.4, 0.6, 0.8])
        strata[known] = np.searchsorted(edges, values[known], side="right")
    return strata


@dataclass(frozen=True)
class WindowIndex:
    """A dataset's window index and what it was made from."""

    table: pa.Table
    """Rows sorted by (group, name); the schema of `index_schema`."""
    fingerprint: str
    row_key: str
    """Rows of an older index with the same row key and source digest hold the same values."""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further facts kept beside the table, such as how many windows the filters left out."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def groups(self) -> Texts:
        """Group per row."""
        return Texts(self.table["group"])

    @cached_property
    def names(self) -> Texts:
        """Window name per row."""
        return Texts(self.table["name"])

    @cached_property
    def keys(self) -> Texts:
        """`group/name` per row."""
        return Texts(self.table["group"], self.table["name"])

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """True per valid row."""
        return is_text(self.table["status"], "valid")

    @cached_property
    def summary(self) -> InvalidSummary:
        """The invalid windows by reason."""
        column = one_array(self.table["problems"])
        rows = np.flatnonzero(lengths(column)).tolist()
        problems = [
            [Problem(found["code"], found["detail"]) for found in column[row].as_py()]
            for row in rows
        ]
        return summarise([self.keys[row] for row in rows], problems, len(self))

    @cached_property
    def footprints(self) -> Footprints:
        """The windows' outlines."""
        return Footprints.of(self.table["geometry"])

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Start and end of each window's time range, (N, 2) in microseconds since 1970.

        NaN where unknown.
        """
        return np.column_stack([floats(self.table[name]) for name in ("time_start", "time_end")])

    @cached_property
    def pixel_groups(self) -> NDArray[np.int64]:
        """A number per row that is equal where all pixels are; -1 where there are none."""
        if "pixel_digest" not in self.table.column_names:
            return np.full(len(self), -1, np.int64)
        batches = self.table.select(["pixel_digest"]).to_batches()
        parts = [digest_numbers(batch[0]) for batch in batches]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):  # not of ours
            return encoded(self.table["pixel_digest"])[0]
        return np.concatenate([np.zeros(0, np.int64), *known])

    def moments(self, of: str) -> NDArray[np.float64]:
        """Moments (N, 5, C) of a modality, or of the `label`; zero counts where a row has none."""
        parts = list(self.moment_parts(of, np.arange(len(self)), 1))
        bands = max((part.shape[2] for part in parts), default=1)
        found, filled = _no_moments(sum(map(len, parts)), bands), 0
        for part in parts:
            found[filled : filled + len(part), :, : part.shape[2]] = part
            filled += len(part)
        return found

    def moment_parts(
        self, of: str, rows: NDArray[np.int64] | NDArray[np.bool_], bands: int
    ) -> Iterator[NDArray[np.float64]]:
        """The same of some rows and so many bands, piece by piece: the largest column by far."""
        wanted = np.arange(len(self))[rows]
        done = 0
        for batch in self.table.select([f"{of}.moments"]).to_batches():
            first, last = np.searchsorted(wanted, (done, done + len(batch)))
            yield _moments_array(batch[0], bands)[wanted[first:last] - done]
            done += len(batch)

    def nodata_values(
        self, modality: str, rows: NDArray[np.int64]
    ) -> list[tuple[int, float | None]]:
        """(band, value) of the pixels without data in these rows; None: no finite number."""
        column = one_array(self.table[f"{modality}.nodata_values"])
        pairs = numbers(column.flatten(), np.nan).reshape(-1, 2)
        pairs = pairs[np.isin(np.repeat(np.arange(len(column)), lengths(column) // 2), rows)]
        found = {(int(band), None if np.isnan(v) else float(v)) for band, v in pairs.tolist()}
        return sorted(found, key=lambda pair: (pair[0], pair[1] is not None, pair[1] or 0))

    def timesteps(
        self, modality: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Row, start and end (microseconds since 1970) of every timestep of a modality."""
        lists = one_array(self.table[f"{modality}.timestamps"])
        steps = lists.flatten()
        start, end = map(floats, steps.flatten())
        return np.repeat(np.arange(len(lists)), lengths(lists)), start, end

    def label_moments(self, cuts: Cuts = 0) -> NDArray[np.float64]:
        """Moments (N, 5, 1) of a regression's targets, in the samples of each window."""
        moments = self.moments("label")
        return moments[np.arange(len(self)), :, cuts][:, :, None]

    def class_counts(self, num_classes: int, cuts: Cuts = 0) -> NDArray[np.int64]:
        """Pixels (segmentation) or samples (classification) per class: (N, num_classes)."""
        return self._counted("label.class_counts", num_classes, cuts)

    def unlabelled(self, cuts: Cuts = 0) -> NDArray[np.int64]:
        """Values without a label, in the samples of each window."""
        return self._counted("label.invalid", 1, cuts)[:, 0]

    def labelled_samples(self, cuts: Cuts = 0) -> NDArray[np.int64]:
        """How many samples of each window have a label."""
        return self._counted("label.samples", 1, cuts)[:, 0]

    def _counted(self, name: str, each: int, cuts: Cuts) -> NDArray[np.int64]:
        """Of a column with so many counts for each of the cuts, those of one, or of one per row."""
        column = self.table[name]
        width = max(int(lengths(column).max(initial=0)), each)
        counts = matrix(column, width, 0, np.int64).reshape(len(self), -1, each)
        chosen: NDArray[np.int64] = counts[np.arange(len(self)), cuts]
        return chosen

    def main_class(self, kind: TaskKind, num_classes: int) -> NDArray[np.int64]:
        """The most frequent class per row, or the quintile of the mean target for regressions.

        -1 where a row has no label.
        """
        if kind.has_classes:
            counts = self.class_counts(num_classes)
            return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)
        moments = self.label_moments()[:, :, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return fifths(moments[:, 1] / moments[:, 0])


_IDENTITY = np.array([{"min": np.inf, "max": -np.inf}.get(name, 0.0) for name in MOMENTS])


def _no_moments(rows: int, bands: int) -> NDArray[np.float64]:
    return np.tile(_IDENTITY[:, None], (rows, 1, bands))


def _moments_array(structs: pa.StructArray, least: int) -> NDArray[np.float64]:
    fields = structs.flatten()
    bands = max(int(lengths(fields[0]).max(initial=0)), least)
    return np.stack(
        [
            matrix(values, bands, fill, np.float64)
            for values, fill in zip(fields, _IDENTITY, strict=True)
        ],
        axis=1,
    )
