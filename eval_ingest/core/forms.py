"""The form of a table that is kept: its columns, what they may hold, and what it says of itself.

Belongs here: rules, and whether values keep them. Doesn't: reading files (store/tables.py), and
what the fields of JSON records may be (bounds.py).
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from eval_ingest.core.bounds import MOST_NUMBER, MOST_PIXELS, Record
from eval_ingest.core.columns import inner_values, lengths, numbers, one_array
from eval_ingest.core.crs_text import is_crs_text

_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The years 1 to 9999, in microseconds since 1970."""
_POLYGON, _POLYGONS = b"\1\3\0\0\0", b"\1\6\0\0\0"
"""How WKB of them begins."""


class Facts(Record, extra="ignore"):
    """What every table says of itself."""

    kind: str
    version: int


@dataclass(frozen=True)
class ColumnForm:
    """What a column may hold; in lists and structs, each of their values."""

    type: pa.DataType
    whole: bool = False
    """No value is null, in lists neither."""
    needed: bool = True
    """Every table has the column."""
    low: int = 0
    """The least that its whole numbers may be."""
    high: int = MOST_NUMBER
    of: frozenset[str] = frozenset()
    """The texts that it may hold; empty: any."""
    right: Callable[[pa.Array], bool] = field(default=lambda values: True)
    """What else is true of all values together."""

    def holds(self, column: pa.ChunkedArray | pa.Array) -> bool:
        """True if a column is one of these."""
        values = one_array(column)
        return values.type == self.type and self._bounded(values) and self.right(values)

    def _bounded(self, values: pa.Array) -> bool:
        kind, low, high = values.type, self.low, self.high
        if self.whole and values.null_count:
            return False
        if pa.types.is_timestamp(kind):
            values, low, high = values.cast(pa.int64()), _FIRST_US, _LAST_US
        elif not pa.types.is_integer(kind):
            if pa.types.is_struct(kind):
                return all(map(self._bounded, values.flatten()))
            if pa.types.is_list(kind):
                return self._bounded(inner_values(values))
            return not self.of or self.of.issuperset(_distinct(values))
        if not len(values):
            return True
        found = numbers(values, max(low, 0))
        return bool(np.minimum.reduce(found) >= low and np.maximum.reduce(found) <= high)


@dataclass(frozen=True)
class TableForm:
    """A kind of table."""

    kind: str
    version: int
    columns: Mapping[str, ColumnForm]
    """By name; `*.timesteps` is that of every modality, and those need not be there."""
    facts: type[Facts] = Facts
    geo: bool = False
    """Its `geometry` makes it GeoParquet."""
    together: int | None = None
    """Rows that lie together in Arrow's own format; None: all do."""

    def column(self, name: str) -> ColumnForm | None:
        """What a column may hold; None if it is none of this kind's."""
        return self.columns.get(name) or self.columns.get(f"*.{name.rpartition('.')[2]}")

    def said(self, **facts: Any) -> Facts:
        """What a table of this kind and version says of itself."""
        return self.facts(kind=self.kind, version=self.version, **facts)

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """Of columns of these names, which it knows."""
        return pa.schema([(name, self._known(name).type) for name in names])

    def _known(self, name: str) -> ColumnForm:
        form = self.column(name)
        if form is None:
            raise KeyError(name)
        return form

    def wrong_column(self, table: pa.Table | pa.RecordBatch) -> str:
        """The first column that holds what it may not; "" if there is none."""
        for name, values in zip(table.schema.names, table.itercolumns(), strict=True):
            form = self.column(name)
            if form is not None and not form.holds(values):
                return str(name)
        return ""

    def missing_column(self, names: list[str]) -> str:
        """The first column that is lacking, or there twice; "" if there is none."""
        needed = {name for name, form in self.columns.items() if form.needed and name[0] != "*"}
        return next((name for name in needed.union(names) if names.count(name) != 1), "")


def json_objects(values: pa.Array) -> bool:
    """True if each text is a JSON object, as far as there is one."""
    try:
        return all(isinstance(json.loads(text), dict) for text in values.to_pylist() if text)
    except (ValueError, RecursionError):
        return False


def folder_names(values: pa.Array) -> bool:
    """True if each text may be a folder's name."""
    return all(map(is_folder_name, _distinct(values)))


def is_folder_name(name: str) -> bool:
    """True if a text may be a folder's name."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def hexadecimal(values: pa.Array) -> bool:
    """True if each text is digits of a hexadecimal number."""
    return all(re.fullmatch(r"[0-9a-f]{1,64}", text) for text in values.to_pylist())


def fours(values: pa.Array) -> bool:
    """True if each list is of four numbers, or empty."""
    return set(np.unique(lengths(values)).tolist()) <= {0, 4}


def crs_texts(values: pa.Array) -> bool:
    """True if each text may be handed to PROJ."""
    return all(text is None or is_crs_text(text) for text in _distinct(values))


def outlines(values: pa.Array) -> bool:
    """True if each is WKB of polygons alone: GEOS goes down into what is nested without end."""
    return all(data is None or _is_outline(data) for data in _distinct(values))


def _is_outline(data: bytes) -> bool:
    if data.startswith(_POLYGON):
        return True
    if not data.startswith(_POLYGONS):
        return False
    try:
        place = len(_POLYGONS) + 4
        for _ in range(struct.unpack_from("<I", data, len(_POLYGONS))[0]):
            if not data.startswith(_POLYGON, place):
                return False
            place, rings = place + 9, struct.unpack_from("<I", data, place + 5)[0]
            for _ in range(rings):
                place += 4 + 16 * struct.unpack_from("<I", data, place)[0]
    except struct.error:
        return False
    return place == len(data)


def as_long(values: pa.Array) -> bool:
    """True if all lists, of a struct all of its fields', have as many values, or none."""
    fields = values.flatten() if pa.types.is_struct(values.type) else [values]
    found = [lengths(one) for one in fields]
    known = np.unique(np.concatenate(found))
    alike = all(np.array_equal(one, found[0]) for one in found[1:])
    return alike and len(known[known > 0]) <= 1


def numbered_pairs(values: pa.Array) -> bool:
    """True if each list is of pairs, whose first number is a band's place."""
    first = numbers(values.flatten(), np.nan)[::2]
    return not (lengths(values) % 2).any() and bool(((first >= 0) & (first < MOST_PIXELS)).all())


def _distinct(values: pa.Array) -> list[Any]:
    return list(values.dictionary_encode().dictionary.to_pylist())
