"""The header of a GeoTIFF: what its pixels are, where they lie, and where its blocks are.

A dataset's rasters have most of their header in common, so what was read of one is kept, and of the
next one only the bytes are compared.
"""

import itertools
import math
import operator
import re
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from eval_ingest.core.kernels import Blocks
from eval_ingest.decoding.problems import broken, not_understood


class GeotiffHeader(NamedTuple):
    """What a GeoTIFF's first directory says about its pixels and where they lie."""

    width: int
    height: int
    bands: int
    dtype: str
    """numpy name of the stored type; `unknown` if only GDAL can read it."""
    epsg: int | None
    """None: no CRS, or one that its keys don't give by a plain EPSG code."""
    origin: tuple[float, float] | None
    """Outer corner of the first pixel in CRS units; None: not north-up, or not georeferenced."""
    pixel_size: tuple[float, float] | None
    """(x, y) in CRS units, both positive although rows go south."""
    georeferenced: bool
    nodata: float | None
    compression: int
    """The TIFF's code for it: 5 is LZW."""
    planar: bool
    """Stored band after band; otherwise the bands of a pixel stand together."""
    alpha: bool
    """The last band is an alpha band, and where it is 0 GDAL reads 0 in every band."""
    simple: bool
    """libtiff gives the pixels as GDAL would; otherwise only GDAL may read them."""
    pixel_tags: tuple[int, bytes]
    """Position and stored form of the number of directory entries that decoding needs."""
    pixel_bytes: int = 0
    """Of the whole raster, uncompressed."""
    blocks: Blocks | None = None
    """For rasters that need no libtiff: little-endian LZW, a pixel's bands together."""


MAX_BYTES = 4 << 30
_MAX_FLOAT32 = float(np.finfo(np.float32).max)

TIFF_KINDS = {b"II*\0": ("<", 4), b"MM\0*": (">", 4), b"II+\0": ("<", 8), b"MM\0+": (">", 8)}
"""First bytes of a file to byte order and the size of an offset: BigTIFF's is 8."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
"""Type of a tag's values to their size in bytes."""

_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_FLOATS = {11: "f", 12: "d"}

_SUBFILE = 254
_WIDTH = 256
_HEIGHT = 257
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_FILL_ORDER = 266
_DESCRIPTION = 270
_STRIPS = 273
_ORIENTATION = 274
_BANDS = 277
_STRIP_ROWS = 278
_STRIP_SIZES = 279
_PLANAR = 284
_PREDICTOR = 317
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_TILES = 324
_TILE_SIZES = 325
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339
_PIXEL_SCALE = 33550
_TIE_POINT = 33922
_TRANSFORM = 34264
_GEO_KEYS = 34735
_GEO_TEXTS = 34737
_METADATA = 42112
_NODATA = 42113

_KNOWN_TAGS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 269, 270, 271, 272, 273, 274, 277, 278, 279, 280, 281}
    | {282, 283, 284, 285, 296, 305, 306, 315, 316, 317, 322, 323, 324, 325, 338, 339, 340, 341}
    | {33550, 33922, 34735, 34736, 34737, 42112, 42113}
)
"""With any other tag GDAL is asked: it may change what the pixels mean."""

_EXPANSION = {1: 1, 5: 1500, 8: 1100, 32946: 1100, 32773: 128, 50000: 40_000}
"""Compressions of the fast path, and at most how many bytes they make of one.

None, LZW, deflate under both its numbers, packbits, zstd.
"""

UNCOMPRESSED = 1
_LZW = 5
DEFLATE = (8, 32946)

_PLAIN_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?|nan", re.IGNORECASE)
"""What GDAL and Python read alike; of `1_0`, `-nan` and others they make different numbers."""

_KINDS = {1: "uint", 2: "int", 3: "float"}
_TYPES = frozenset(
    {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"}
)
"""numpy names. GDAL 3.10 reads float16 as float32, so that isn't here."""

_SAFE_GEO_KEYS = frozenset({1024, 1025, 1026, 2048, 2049, 2054, 2057, 2059, 3072, 3073, 3076})
"""GeoKeys that beside an EPSG code say nothing new, as long as the units are metre and degree."""


class _Table(NamedTuple):
    """Where a TIFF keeps the offsets of its blocks, or their sizes."""

    form: str
    """As struct writes it."""
    start: int
    stop: int

    @property
    def bytes_each(self) -> int:
        """Of one number."""
        return struct.calcsize(self.form[-1])


class _Tags:
    """The values of a directory's tags, given as (type, start, stop) of each by its code."""

    def __init__(self, order: str, data: bytes, entries: dict[int, tuple[int, int, int]]) -> None:
        self._order = order
        self._data = data
        self._entries = entries

    def __contains__(self, code: int) -> bool:
        return code in self._entries

    def table(self, code: int, letters: dict[int, str] | None = None) -> _Table:
        """Where and in what form the values of a tag are stored."""
        if code not in self._entries:
            raise not_understood(f"it lacks tag {code}")
        type_, start, stop = self._entries[code]
        letter = (letters or _INTEGERS).get(type_)
        if letter is None:
            raise not_understood(f"tag {code} can't hold values of type {type_}")
        return _Table(f"{self._order}{(stop - start) // _SIZES[type_]}{letter}", start, stop)

    def _numbers(self, code: int, letters: dict[int, str]) -> tuple[Any, ...]:
        if code not in self._entries:
            return ()
        form, start, _ = self.table(code, letters)
        return struct.unpack_from(form, self._data, start)

    def integers(self, code: int) -> tuple[int, ...]:
        """A tag's values; empty if it isn't there."""
        return self._numbers(code, _INTEGERS)

    def integer(self, code: int, default: int) -> int:
        """A tag's first value."""
        values = self.integers(code)
        return values[0] if values else default

    def floats(self, code: int) -> tuple[float, ...]:
        """A tag's values; empty if it isn't there."""
        return self._numbers(code, _FLOATS)

    def text(self, code: int) -> bytes:
        """A tag's bytes; empty if it isn't there."""
        _, start, stop = self._entries.get(code, (0, 0, 0))
        return self._data[start:stop]


class _Layout(NamedTuple):
    """How the pixels are cut into strips or tiles."""

    block_height: int
    block_row_bytes: int
    row_bytes: int
    """Of the image, a plane at a time where it is stored in planes."""
    tiled: bool
    n_blocks: int
    block_bytes: int
    """Of a whole block, uncompressed."""
    last_bytes: int
    """Of the blocks at the bottom: strips end with the image, tiles don't."""
    n_last: int
    compression: int


class _Head(NamedTuple):
    """A parsed header: good for every file with the same bytes but for three tables."""

    header: GeotiffHeader
    layout: _Layout
    offsets: _Table
    sizes: _Table
    tie_point: _Table
    end: int
    """Past the last byte that was read."""
    pick: Callable[[bytes], tuple[bytes, ...]]
    """What was read of a file, without the tables of offsets, sizes and tie point."""
    same: tuple[bytes, ...]
    """What `pick` gave."""


_heads: dict[bytes, _Head] = {}
"""By a file's first bytes, the header last read: a dataset's rasters have it in common."""

_KEY_BYTES, _MAX_HEADS, _MAX_HEAD_BYTES, _MAX_TAGS = 64, 256, 1 << 14, 1 << 16


def read_header(data: bytes) -> GeotiffHeader:
    """Read the first directory of a GeoTIFF: classic or BigTIFF, either byte order.

    Raises:
        NotUnderstoodError: GDAL may be able to read it, for all that we know.
        Unreadable: `raster_unreadable` if it isn't a TIFF, or is damaged or cut off: also
            if a strip or tile lies beyond the end, or its size can't be true.
    """
    key = data[:_KEY_BYTES]
    head = _heads.get(key)
    if head is None or len(data) < head.end or head.pick(data) != head.same:
        head = _parse(data)
        if head.end <= _MAX_HEAD_BYTES:
            if len(_heads) >= _MAX_HEADS:
                _heads.clear()
            _heads[key] = head
    header, layout, offsets, sizes, tie_point, *_ = head
    places = struct.unpack_from(offsets.form, data, offsets.start)
    lengths = struct.unpack_from(sizes.form, data, sizes.start)
    if layout.compression in DEFLATE and places and lengths:
        _check_inflated(data[places[0] : places[0] + lengths[0]], layout)
    whole = _check_blocks(len(data), layout, places, lengths)
    origin = _origin(struct.unpack_from(tie_point.form, data, tie_point.start), header.pixel_size)
    if header.simple and not whole:
        return header._replace(origin=origin, simple=False, blocks=None)
    return header if origin == header.origin else header._replace(origin=origin)


def _number(form: str, data: bytes, at: int) -> int:
    try:
        value: int = struct.unpack_from(form, data, at)[0]
    except (struct.error, OverflowError):
        raise broken(f"it ends at byte {len(data)}, before byte {at}") from None
    return value


def _parse(data: bytes) -> _Head:
    kind = TIFF_KINDS.get(data[:4])
    if kind is None:
        raise broken("it is not a TIFF" if len(data) else "it is empty")
    order, size = kind
    offset_form, count_form = (order + form for form in ("IH" if size == 4 else "QQ"))
    if size == 8 and _number(order + "I", data, 4) != (8 if order == "<" else 8 << 16):
        raise broken("its BigTIFF header is damaged")
    count_at = _number(offset_form, data, size)
    count = _number(count_form, data, count_at)
    length = 4 + 2 * size
    at = count_at + (2 if size == 4 else 8)
    end = at + count * length
    if count > _MAX_TAGS or end + size > len(data):
        raise broken(f"it ends at byte {len(data)}, within its directory of {count} tags")
    last = _number(offset_form, data, end) == 0
    end += size
    fields = struct.unpack_from(order + ("HHI4x" if size == 4 else "HHQ8x") * count, data, at)
    entries: dict[int, tuple[int, int, int]] = {}
    ranges = [(count_at, end)]
    for code, type_, n in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        n_bytes = n * _SIZES.get(type_, 0)
        start = at + length - size
        if n_bytes > size:
            start = _number(offset_form, data, start)
            ranges.append((start, start + n_bytes))
        if start + n_bytes > len(data):
            raise not_understood(f"it ends at byte {len(data)}, before the end of tag {code}")
        entries[code] = (type_, start, start + n_bytes)
        end = max(end, start + n_bytes)
        at += length
    codes = fields[::3]
    tags = _Tags(order, data, entries)
    n_pixel_tags = sum(code < _PIXEL_SCALE for code in codes)
    pixel_tags = (count_at, struct.pack(count_form, n_pixel_tags))
    header, layout = _interpret(tags, pixel_tags, last and _is_known(codes))
    header = header._replace(pixel_bytes=layout.n_blocks * layout.block_bytes)
    tiled = _TILE_WIDTH in tags
    offsets = tags.table(_TILES if tiled else _STRIPS)
    sizes = tags.table(_TILE_SIZES if tiled else _STRIP_SIZES)
    if order == "<" and tags.integer(_PREDICTOR, 1) == 1:
        header = header._replace(blocks=_blocks(header, layout, offsets, sizes))
    tie_point = tags.table(_TIE_POINT, _FLOATS) if _TIE_POINT in tags else _Table("", end, end)
    cuts = sorted((table.start, table.stop) for table in (offsets, sizes, tie_point))
    starts, stops = [0, *(stop for _, stop in cuts)], [*(start for start, _ in cuts), end]
    pick = operator.itemgetter(*map(slice, starts, stops))
    if _overlap(ranges):
        end = sys.maxsize  # one tag's values in another's table: not good for any other file
    return _Head(header, layout, offsets, sizes, tie_point, end, pick, pick(data))


def _blocks(
    header: GeotiffHeader, layout: _Layout, offsets: _Table, sizes: _Table
) -> Blocks | None:
    if not header.simple or header.compression != _LZW or header.planar or header.alpha:
        return None
    return Blocks(
        offsets.start,
        offsets.bytes_each,
        sizes.start,
        sizes.bytes_each,
        layout.n_blocks,
        header.height,
        layout.row_bytes,
        layout.block_height,
        layout.block_row_bytes,
        layout.tiled,
    )


def _overlap(ranges: list[tuple[int, int]]) -> bool:
    """True if any two ranges (start, stop) have bytes in common."""
    ranges.sort()
    return any(stop > start for (_, stop), (start, _) in itertools.pairwise(ranges))


def _is_known(codes: tuple[int, ...]) -> bool:
    """True if the tags are in order, and none is there that may change what pixels mean."""
    return _KNOWN_TAGS.issuperset(codes) and list(codes) == sorted(set(codes))


def _interpret(
    tags: _Tags, pixel_tags: tuple[int, bytes], known: bool
) -> tuple[GeotiffHeader, _Layout]:
    """What the tags mean; `simple` if no block is missing."""
    width, height = tags.integer(_WIDTH, 0), tags.integer(_HEIGHT, 0)
    bands = tags.integer(_BANDS, 1)
    if min(width, height, bands) < 1:
        raise broken(f"it says that it is {width} x {height} pixels of {bands} bands")
    bits = set(tags.integers(_BITS) or (1,))
    formats = set(tags.integers(_SAMPLE_FORMAT) or (1,))
    dtype: str | None = f"{_KINDS.get(min(formats))}{min(bits)}"
    if len(bits) > 1 or len(formats) > 1 or dtype not in _TYPES:
        dtype = None
    nodata, fills = _parse_nodata(tags.text(_NODATA), dtype)
    alpha = any(tags.integers(_EXTRA_SAMPLES))
    pixel_size = _pixel_size(tags)
    header = GeotiffHeader(
        width=width,
        height=height,
        bands=bands,
        dtype=dtype or "unknown",
        epsg=_read_epsg(tags.integers(_GEO_KEYS), tags.text(_GEO_TEXTS)),
        origin=_origin(tags.floats(_TIE_POINT), pixel_size),
        pixel_size=pixel_size,
        georeferenced=any(code in tags for code in (_PIXEL_SCALE, _TIE_POINT, _TRANSFORM)),
        nodata=nodata,
        compression=tags.integer(_COMPRESSION, 1),
        planar=tags.integer(_PLANAR, 1) == 2,
        alpha=alpha,
        simple=(
            known
            and dtype is not None
            and fills
            and _is_plain(tags, bands)
            and (
                not alpha or (_is_plain_alpha(tags, bands) and dtype == "uint8" and nodata is None)
            )
        ),
        pixel_tags=pixel_tags,
    )
    return header, _read_layout(tags, header, max(bits))


def _read_layout(tags: _Tags, header: GeotiffHeader, bits: int) -> _Layout:
    width, height = header.width, header.height
    tiled = _TILE_WIDTH in tags
    if tiled:
        block_width, block_height = tags.integer(_TILE_WIDTH, 0), tags.integer(_TILE_HEIGHT, 0)
    else:
        block_width, block_height = width, min(tags.integer(_STRIP_ROWS, height), height)
    if block_width < 1 or block_height < 1:
        raise broken(f"its blocks are {block_width} x {block_height} pixels")
    n_planes, n_together = (header.bands, 1) if header.planar else (1, header.bands)
    row_bytes = (block_width * n_together * bits + 7) // 8
    n_across, n_down = -(-width // block_width), -(-height // block_height)
    last_rows = block_height if tiled else height - (n_down - 1) * block_height
    layout = _Layout(
        block_height=block_height,
        block_row_bytes=row_bytes,
        row_bytes=(width * n_together * bits + 7) // 8,
        tiled=tiled,
        n_blocks=n_across * n_down * n_planes,
        block_bytes=row_bytes * block_height,
        last_bytes=row_bytes * last_rows,
        n_last=n_across * n_planes,
        compression=header.compression,
    )
    if layout.n_blocks * layout.block_bytes > MAX_BYTES:
        raise broken(f"{width} x {height} pixels of {header.bands} bands are more than 4 GiB")
    return layout


def _check_blocks(
    n_bytes: int, layout: _Layout, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> bool:
    """Check that all blocks are within the file; False if some are left out (a sparse file)."""
    if len(offsets) != len(sizes) or len(sizes) < layout.n_blocks:
        raise not_understood(
            f"{len(offsets)} offsets and {len(sizes)} sizes found for {layout.n_blocks} blocks"
        )
    if max(map(operator.add, offsets, sizes)) > n_bytes:
        raise broken(f"it ends at byte {n_bytes}, before the end of its pixels")
    if len(sizes) > layout.n_blocks or 0 in offsets or 0 in sizes:
        return False
    expansion = _EXPANSION.get(layout.compression)
    if expansion is None:
        return False
    pixel_bytes = (layout.n_blocks - layout.n_last) * layout.block_bytes
    pixel_bytes += layout.n_last * layout.last_bytes
    if pixel_bytes > expansion * n_bytes:
        raise broken(f"{n_bytes} bytes can't hold {pixel_bytes} bytes of pixels")
    if layout.compression == UNCOMPRESSED:
        short = sum(size < layout.block_bytes for size in sizes)
        if min(sizes) < layout.last_bytes or short > layout.n_last:
            raise not_understood("its blocks are shorter than their pixels")
    return True


def _check_inflated(block: bytes, layout: _Layout) -> None:
    """Raise if the first block holds more than its size.

    Then libtiff, and with it GDAL, gives other pixels each time: some of them are never set.
    """
    stream, left = zlib.decompressobj(), layout.block_bytes
    if layout.n_blocks == layout.n_last:
        left = layout.last_bytes
    try:
        while left >= 0 and block and not stream.eof:
            left -= len(stream.decompress(block, min(left + 1, 1 << 20)))
            block = stream.unconsumed_tail
    except zlib.error:
        return  # libtiff will say so
    if left < 0:
        raise broken("its blocks hold more than its rows and bands")


_SINGLE = (
    _SUBFILE, _WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _BANDS,
    _STRIP_ROWS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT,
)  # fmt: skip
"""Tags of one value: with more, GDAL refuses the file for some of them, and reads it for others."""


def _is_plain(tags: _Tags, bands: int) -> bool:
    """True if no tag makes the pixels anything but numbers in rows from the top left."""
    metadata = tags.text(_METADATA).lower()
    return (
        all(len(tags.integers(code)) == 1 for code in _SINGLE if code in tags)
        and tags.integer(_SUBFILE, 0) == 0
        and tags.integer(_PHOTOMETRIC, 0) in (1, 2)
        and tags.integer(_FILL_ORDER, 1) == 1
        and tags.integer(_ORIENTATION, 1) == 1
        and tags.integer(_PLANAR, 1) in (1, 2)
        and tags.integer(_PREDICTOR, 1) in (1, 2, 3)
        and len(tags.integers(_BITS)) == bands
        and len(tags.integers(_SAMPLE_FORMAT)) in (0, bands)
        and not any(words in metadata for words in (b"alpha", b"nodata_values", b"&", b"<!"))
        and not tags.text(_DESCRIPTION).startswith(b"ImageJ=")
    )


def _is_plain_alpha(tags: _Tags, bands: int) -> bool:
    """True if the last band, and no other, is alpha that the others aren't multiplied by."""
    extra = tags.integers(_EXTRA_SAMPLES)
    n_colours = 3 if tags.integer(_PHOTOMETRIC, 0) == 2 else 1
    return len(extra) == bands - n_colours and extra[-1] == 2 and not any(extra[:-1])


def _parse_nodata(text: bytes, dtype: str | None) -> tuple[float | None, bool]:
    """The nodata value, and whether pixels of the type can be filled with it."""
    if not text:
        return None, True
    text = text.rstrip(b"\0 ")
    if not _PLAIN_NUMBER.fullmatch(text):
        return None, False
    value = float(text)
    if dtype is None or dtype in ("int64", "uint64"):
        return value, False
    if math.isnan(value):
        return value, dtype in ("float32", "float64")
    if dtype == "float64":
        return value, math.isfinite(value)
    if dtype == "float32":
        return value, abs(value) <= _MAX_FLOAT32 and float(np.float32(value)) == value
    limits = np.iinfo(dtype)
    return value, int(limits.min) <= value <= int(limits.max) and value.is_integer()


def _read_epsg(keys: tuple[int, ...], texts: bytes) -> int | None:
    """The EPSG code of a GeoKeyDirectory, if it says nothing beyond that code."""
    if len(keys) < 4 or len(keys) != 4 + 4 * keys[3]:
        return None
    if b"=" in texts:  # units and whole CRS, as ERDAS and ESRI write them, go before the code
        return None
    values = {}
    for key, location, _, value in zip(*(iter(keys[4:]),) * 4, strict=True):
        if key not in _SAFE_GEO_KEYS or key in values:
            return None
        values[key] = value if location == 0 else None
    if values.get(1025, 1) != 1 or values.get(2054, 9102) != 9102 or values.get(3076, 9001) != 9001:
        return None  # pixels are points, or the unit isn't degree or metre
    if values.get(1024) == 1 and 2048 in values:
        return None  # a projected CRS on a datum that may be another than its code's
    code = {1: values.get(3072), 2: values.get(2048)}.get(values.get(1024) or 0)
    return code if code is not None and 1024 <= code < 32767 else None


def _pixel_size(tags: _Tags) -> tuple[float, float] | None:
    """Width and height of a pixel; None if the raster isn't plainly north-up."""
    scale = tags.floats(_PIXEL_SCALE)
    if len(scale) < 2 or _TRANSFORM in tags:
        return None
    width, height = scale[0], scale[1]
    return (width, height) if 0 < width < math.inf and 0 < height < math.inf else None


def _origin(
    tie_point: tuple[float, ...], pixel_size: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Outer corner of the first pixel, from the one point tied to a place; None if it isn't one."""
    if pixel_size is None or len(tie_point) != 6:
        return None
    column, row, _, x, y, _ = tie_point
    origin = (x - column * pixel_size[0], y + row * pixel_size[1])
    return origin if math.isfinite(origin[0]) and math.isfinite(origin[1]) else None
