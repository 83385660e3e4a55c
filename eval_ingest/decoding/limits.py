"""How much a window may be: bytes of files, of JSON and of unpacked pixels, each known before work.

What a header or a listing says is compared with these before anything is read or unpacked.
"""

import json
from dataclasses import dataclass
from typing import Any

from eval_ingest.core.crs_text import deeper_than
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.sources.base import WindowFiles

MIB = 1 << 20
MAX_JSON_BYTES = 24 * MIB
"""Of items.json and GeoJSON; Python takes thirty times as much for the worst of them."""
MAX_CONTAINERS = 1_500_000
"""Lists and mappings in it: a polygon's coordinates are one each."""
MAX_SMALL_JSON_BYTES = 2 * MIB
"""Of a window's or a raster's metadata.json."""
MAX_OPTIONS_CHARACTERS = 1 << 16
"""Of a window's options, which the index keeps."""
MAX_SHAPE_DEPTH = 16
"""Brackets of a shape's WKT: a collection of multipolygons has five."""
MAX_CROPS = 100_000
"""Samples of one window, where all its crops are."""
WINDOW_BYTES = 256 * MIB
"""Of a window's unpacked pixels, and of all its files, unless EVAL_INGEST_WINDOW_MIB says else."""


@dataclass
class Budget:
    """What is left of a window's bytes."""

    total: int = WINDOW_BYTES
    spent: int = 0

    @property
    def left(self) -> int:
        """Bytes that may still be unpacked."""
        return self.total - self.spent

    def spend(self, n_bytes: int, what: str) -> None:
        """Take bytes.

        Raises:
            Unreadable: there are not so many left.
        """
        self.spent += n_bytes
        if self.spent > self.total:
            raise too_large(f"{what}: {self.spent >> 20} MiB", self.total)


def most_bytes_of(path: str, window_bytes: int) -> int:
    """Bytes that one of a window's files may have."""
    if not path.endswith((".json", ".geojson", ".xml")):
        return window_bytes
    large = path.endswith((".geojson", ".xml")) or path == "items.json"
    return min(window_bytes, MAX_JSON_BYTES if large else MAX_SMALL_JSON_BYTES)


def fetchable(files: WindowFiles, window_bytes: int = WINDOW_BYTES) -> frozenset[str]:
    """The files of a window that are read if it is sound, by the sizes that a listing gives.

    Of a window that is too large by itself, metadata.json alone is: it says whether anybody wants
    the window at all.
    """
    fit = frozenset(
        file.path for file in files.files if file.size <= most_bytes_of(file.path, window_bytes)
    )
    return fit if files.n_bytes <= window_bytes else fit & {"metadata.json"}


def too_large(what: str, most: int) -> Unreadable:
    """The problem of a window that is larger than it may be."""
    return Unreadable(
        "window_too_large",
        f"{what}, more than the {most >> 20} MiB that it may have; "
        "if it is right, set EVAL_INGEST_WINDOW_MIB",
    )


def most_by_gdal(left: int, n_bytes: int) -> int:
    """Bytes of pixels that a file of so many bytes may have which a process beside this one reads.

    The file stands in memory twice then, and its pixels three times, the last time in the order of
    the sample. Together they take two and a half of what is left of the window's bytes.
    """
    return max((5 * left // 2 - 2 * n_bytes) // 3, 0)


def parse_json(data: bytes, path: str, code: str) -> Any:
    """A window's JSON, in UTF-8 as rslearn reads it; the parser stops at a depth it can't stand.

    Raises:
        Unreadable: it is no JSON, with `code`; or it holds too much.
    """
    containers = data.count(b"[") + data.count(b"{")
    if containers > MAX_CONTAINERS:
        raise Unreadable("window_too_large", f"{path} holds {containers:,} lists and mappings")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Unreadable(code, f"{path} is not JSON: {str(error)[:200]}") from error


def check_shape_text(text: Any) -> None:
    """Refuse the WKT of a shape that is nested so deeply that parsing it would crash.

    Raises:
        ValueError: it is, or it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"a shape is {type(text).__name__}, not WKT")
    if deeper_than(MAX_SHAPE_DEPTH, text, "()"):
        raise ValueError(f"a shape is nested deeper than {MAX_SHAPE_DEPTH} levels")
