"""GeoTIFF bytes to pixels on a window's grid: libtiff directly, rslearn's way for the rest.

The values are those of rslearn's GeotiffRasterFormat with nearest resampling. Most rasters of
a dataset lie exactly on their window's grid; then nothing but their pixels has to be decoded,
and opening them with GDAL would cost several times that. What the fast path doesn't know for
certain goes to rasterio, which is imported only then.
"""

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from imagecodecs import tiff_decode
from numpy.typing import NDArray


class RasterProblem(Exception):
    """A raster can't be used; `code` is `raster_unreadable` or `raster_grid`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Grid:
    """A window's pixel grid: CRS, pixel size in CRS units, and bounds in pixels."""

    crs: str
    """As in metadata.json: `EPSG:32630`, or WKT."""
    x_resolution: float
    y_resolution: float
    """Usually negative: rows go south."""
    bounds: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels; times the resolution they are CRS units."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.bounds[3] - self.bounds[1]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.bounds[2] - self.bounds[0]


@dataclass(frozen=True, slots=True)
class GeotiffHeader:
    """What a GeoTIFF's first directory says about its pixels and where they lie."""

    width: int
    height: int
    bands: int
    dtype: str
    """numpy name of the stored type."""
    epsg: int | None
    """None: no CRS, or one that its keys don't give by a plain EPSG code."""
    origin: tuple[float, float] | None
    """Outer corner of the first pixel in CRS units; None: not north-up, or not georeferenced."""
    pixel_size: tuple[float, float] | None
    """(x, y) in CRS units, both positive although rows go south."""
    georeferenced: bool
    nodata: float | None
    planar: bool
    """Stored band after band; otherwise the bands of a pixel stand together."""
    alpha: bool
    """The last band is an alpha band, and where it is 0 GDAL reads 0 in every band."""
    simple: bool
    """libtiff gives the pixels as GDAL would; otherwise only GDAL may read them."""
    pixel_tags: tuple[int, bytes]
    """Position and stored form of the number of directory entries that decoding needs."""


def band_set_dirname(bands: Sequence[str]) -> str:
    """The folder name of a band set, as rslearn's get_bandset_dirname gives it.

    >>> band_set_dirname(["B02", "B03"])
    'B02_B03'
    """
    if any("_" in band for band in bands):
        return hashlib.sha256(json.dumps(list(bands)).encode()).hexdigest()
    name = "_".join(bands)
    return hashlib.sha256(name.encode()).hexdigest() if len(name) > 64 else name


def decode_geotiff(data: bytes, grid: Grid) -> tuple[NDArray[Any], GeotiffHeader]:
    """Pixels (H, W, bands) on the window's grid in the stored type, and the raster's header.

    Nearest neighbour where the grids differ; outside of the raster its nodata value, or 0.
    The array may be a view that isn't contiguous (band-interleaved files).

    Raises:
        RasterProblem: `raster_unreadable` if the bytes are no whole GeoTIFF; `raster_grid` if
            it leaves more than one of its own pixels of the window uncovered on a side.
    """
    header = read_header(data)
    if not header.georeferenced:
        raise RasterProblem("raster_grid", "it has no georeference")
    if header.simple and header.epsg is not None and header.epsg == _epsg(grid.crs):
        place = _place(header, grid)
        if place is not None:
            pixels = _on_grid(_decode_pixels(data, header), header, *place)
            if pixels is not None:
                return pixels, header
    return _warp(data, header, grid)


# --- the header -------------------------------------------------------------------------------

_MAX_BYTES = 4 << 30

_KINDS = {b"II*\0": ("<", 4), b"MM\0*": (">", 4), b"II+\0": ("<", 8), b"MM\0+": (">", 8)}
"""First bytes of a file to byte order and the size of an offset: BigTIFF's is 8."""

_INTEGERS = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}
_FLOATS = {11: ("f", 4), 12: ("d", 8)}

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

_TYPES = {
    (1, 8): "uint8",
    (1, 16): "uint16",
    (1, 32): "uint32",
    (1, 64): "uint64",
    (2, 8): "int8",
    (2, 16): "int16",
    (2, 32): "int32",
    (2, 64): "int64",
    (3, 32): "float32",
    (3, 64): "float64",
}
"""(sample format, bits) to numpy name. GDAL 3.10 reads float16 as float32, so that isn't here."""

_SAFE_GEO_KEYS = frozenset({1024, 1025, 1026, 2048, 2049, 2054, 2057, 2059, 3072, 3073, 3076})
"""GeoKeys that beside an EPSG code say nothing new, as long as the units are metre and degree."""


def _broken(why: str) -> RasterProblem:
    return RasterProblem("raster_unreadable", why)


class _Directory:
    """The entries of a TIFF's first directory, read with every offset checked."""

    __slots__ = (
        "codes",
        "count_at",
        "count_form",
        "data",
        "entries",
        "last",
        "offset_form",
        "order",
    )

    def __init__(self, data: bytes) -> None:
        kind = _KINDS.get(bytes(data[:4]))
        if kind is None:
            raise _broken("it is not a TIFF" if len(data) else "it is empty")
        self.data = data
        self.order, size = kind
        self.offset_form = self.order + ("I" if size == 4 else "Q")
        if size == 8 and self._number("4xI", 0) != (8 if self.order == "<" else 8 << 16):
            raise _broken("its BigTIFF header is damaged")
        self.count_form = self.order + ("H" if size == 4 else "Q")
        self.count_at = self._number(self.offset_form, size)
        count = self._number(self.count_form, self.count_at)
        first = self.count_at + struct.calcsize(self.count_form)
        length = 4 + 2 * size
        end = first + count * length
        if end + size > len(data):
            raise _broken(f"it ends at byte {len(data)}, within its directory")
        layout = "HHI4x" if size == 4 else "HHQ8x"
        fields = struct.unpack_from(self.order + layout * count, data, first)
        self.codes: tuple[int, ...] = fields[::3]
        values_at = range(first + length - size, end + length - size, length)
        self.entries = dict(
            zip(self.codes, zip(fields[1::3], fields[2::3], values_at, strict=True), strict=True)
        )
        self.last = self._number(self.offset_form, end) == 0

    def _number(self, form: str, at: int) -> int:
        try:
            value: int = struct.unpack_from(form, self.data, at)[0]
        except (struct.error, OverflowError):
            raise _broken(f"byte {at} is beyond its end at {len(self.data)}") from None
        return value

    def _place(self, code: int, size: int) -> tuple[int, int]:
        """(position, number) of a tag's values of `size` bytes each."""
        _, count, at = self.entries[code]
        room = 4 if self.offset_form[1] == "I" else 8
        if count * size > room:
            at = self._number(self.offset_form, at)
            if at + count * size > len(self.data):
                raise _broken(f"tag {code} reaches beyond its end at byte {len(self.data)}")
        return at, count

    def integers(self, code: int) -> tuple[int, ...]:
        """A tag's values; empty if it isn't there."""
        if code not in self.entries:
            return ()
        kind = _INTEGERS.get(self.entries[code][0])
        if kind is None:
            raise _broken(f"tag {code} doesn't hold integers")
        at, count = self._place(code, kind[1])
        return struct.unpack_from(f"{self.order}{count}{kind[0]}", self.data, at)

    def integer(self, code: int, default: int) -> int:
        """A tag's first value."""
        values = self.integers(code)
        return values[0] if values else default

    def floats(self, code: int) -> tuple[float, ...]:
        """A tag's values; empty if it isn't there."""
        if code not in self.entries:
            return ()
        kind = _FLOATS.get(self.entries[code][0])
        if kind is None:
            raise _broken(f"tag {code} doesn't hold floating-point numbers")
        at, count = self._place(code, kind[1])
        return struct.unpack_from(f"{self.order}{count}{kind[0]}", self.data, at)

    def text(self, code: int) -> bytes:
        """A tag's bytes; empty if it isn't there."""
        if code not in self.entries:
            return b""
        at, count = self._place(code, 1)
        return bytes(self.data[at : at + count])

    def pixel_tags(self) -> tuple[int, bytes]:
        """Where the number of entries stands, and its form without the georeference's tags."""
        count = sum(code < _PIXEL_SCALE for code in self.codes)
        return self.count_at, struct.pack(self.count_form, count)


def read_header(data: bytes) -> GeotiffHeader:
    """Read the first directory of a GeoTIFF: classic or BigTIFF, either byte order.

    Raises:
        RasterProblem: `raster_unreadable` if it isn't a TIFF, or is damaged or cut off: also
            if a strip or tile lies beyond the end, or its size can't be true.
    """
    tags = _Directory(data)
    width, height = tags.integer(_WIDTH, 0), tags.integer(_HEIGHT, 0)
    bands = tags.integer(_BANDS, 1)
    if min(width, height, bands) < 1:
        raise _broken(f"it says that it is {width} x {height} pixels of {bands} bands")
    bits = set(tags.integers(_BITS) or (1,))
    formats = set(tags.integers(_SAMPLE_FORMAT) or (1,))
    dtype = _TYPES.get((min(formats), min(bits))) if len(bits) == len(formats) == 1 else None
    compression = tags.integer(_COMPRESSION, 1)
    planar = tags.integer(_PLANAR, 1) == 2
    whole = _check_blocks(tags, (width, height, bands), max(bits), compression, planar)
    text = tags.text(_NODATA)
    nodata, nodata_fits = _parse_nodata(text, dtype, bands) if text else (None, True)
    extra = tags.integers(_EXTRA_SAMPLES)
    alpha = any(extra)
    simple = (
        whole
        and dtype is not None
        and nodata_fits
        and tags.last
        and compression in _EXPANSION
        and _is_plain(tags, bands)
        and (not alpha or (_is_plain_alpha(extra) and dtype == "uint8" and nodata is None))
    )
    epsg = _read_epsg(tags.integers(_GEO_KEYS))
    place = _read_place(tags)
    return GeotiffHeader(
        width=width,
        height=height,
        bands=bands,
        dtype=dtype or "unknown",
        epsg=epsg,
        origin=place[:2] if place else None,
        pixel_size=place[2:] if place else None,
        georeferenced=not tags.entries.keys().isdisjoint((_PIXEL_SCALE, _TIE_POINT, _TRANSFORM)),
        nodata=nodata,
        planar=planar,
        alpha=alpha,
        simple=simple,
        pixel_tags=tags.pixel_tags(),
    )


def _check_blocks(
    tags: _Directory, shape: tuple[int, int, int], bits: int, compression: int, planar: bool
) -> bool:
    """Check that all strips or tiles are there; False if some are left out (a sparse file)."""
    width, height, bands = shape
    tiled = _TILE_WIDTH in tags.entries
    if tiled:
        block_width, block_height = tags.integer(_TILE_WIDTH, 0), tags.integer(_TILE_HEIGHT, 0)
        offsets, sizes = tags.integers(_TILES), tags.integers(_TILE_SIZES)
    else:
        block_width, block_height = width, min(tags.integer(_STRIP_ROWS, height), height)
        offsets, sizes = tags.integers(_STRIPS), tags.integers(_STRIP_SIZES)
    if block_width < 1 or block_height < 1:
        raise _broken(f"its blocks are {block_width} x {block_height} pixels")
    block_bytes = (block_width * (1 if planar else bands) * bits + 7) // 8 * block_height
    n_blocks = -(-width // block_width) * -(-height // block_height) * (bands if planar else 1)
    if max(n_blocks * block_bytes, (width * height * bands * bits) // 8) > _MAX_BYTES:
        raise _broken(f"{width} x {height} pixels of {bands} bands are more than 4 GiB")
    if len(offsets) != len(sizes) or len(sizes) < n_blocks:
        raise _broken(f"{n_blocks} blocks expected, {len(offsets)} and {len(sizes)} listed")
    if max(map(int.__add__, offsets, sizes)) > len(tags.data):
        raise _broken(f"its blocks reach beyond its end at byte {len(tags.data)}")
    if len(sizes) > n_blocks or 0 in offsets or 0 in sizes:
        return False
    if compression == 1:
        last_rows = height % block_height or block_height
        last_bytes = block_bytes if tiled else block_bytes // block_height * last_rows
        if min(sizes) < last_bytes or sum(size < block_bytes for size in sizes) > (
            0 if last_bytes == block_bytes else bands if planar else 1
        ):
            raise _broken("its blocks are shorter than their pixels")
    elif n_blocks * block_bytes > _EXPANSION.get(compression, _MAX_BYTES) * len(tags.data):
        raise _broken(f"{len(tags.data)} bytes can't hold {width} x {height} x {bands} pixels")
    return True


def _is_plain(tags: _Directory, bands: int) -> bool:
    """True if no tag makes the pixels anything but numbers in rows from the top left."""
    codes = tags.codes
    if not _KNOWN_TAGS.issuperset(codes) or len(tags.entries) != len(codes):
        return False
    if codes != tuple(sorted(codes)):
        return False
    metadata = tags.text(_METADATA).lower()
    return (
        tags.integer(_SUBFILE, 0) == 0
        and tags.integer(_PHOTOMETRIC, 1) in (1, 2)
        and tags.integer(_FILL_ORDER, 1) == 1
        and tags.integer(_ORIENTATION, 1) == 1
        and tags.integer(_PLANAR, 1) in (1, 2)
        and tags.integer(_PREDICTOR, 1) in (1, 2, 3)
        and len(tags.integers(_BITS)) == bands
        and len(tags.integers(_SAMPLE_FORMAT)) in (0, bands)
        and b"alpha" not in metadata
        and b"nodata_values" not in metadata
        and not tags.text(_DESCRIPTION).startswith(b"ImageJ=")
    )


def _is_plain_alpha(extra: tuple[int, ...]) -> bool:
    """True if the last band, and no other, is alpha that the colours aren't multiplied by."""
    return extra[-1] == 2 and not any(extra[:-1])


def _parse_nodata(text: bytes, dtype: str | None, bands: int) -> tuple[float | None, bool]:
    """The nodata value, and whether the fast path may fill with it."""
    try:
        value = float(text.rstrip(b"\0 "))
    except ValueError:
        return None, False
    if dtype is None or dtype in ("int64", "uint64"):
        return value, False
    if math.isnan(value):
        return value, dtype in ("float32", "float64")
    if dtype == "float64":
        return value, math.isfinite(value)
    if dtype == "float32":
        return value, abs(value) < 3.5e38 and float(np.float32(value)) == value
    limits = np.iinfo(dtype)
    return value, int(limits.min) <= value <= int(limits.max) and value.is_integer()


@lru_cache(maxsize=256)
def _read_epsg(keys: tuple[int, ...]) -> int | None:
    """The EPSG code of a GeoKeyDirectory, if it says nothing beyond that code."""
    if len(keys) < 4 or len(keys) != 4 + 4 * keys[3]:
        return None
    values = {}
    for key, location, _, value in zip(*(iter(keys[4:]),) * 4, strict=True):
        if key not in _SAFE_GEO_KEYS or key in values:
            return None
        values[key] = value if location == 0 else None
    if values.get(1025, 1) != 1 or values.get(2054, 9102) != 9102 or values.get(3076, 9001) != 9001:
        return None  # pixels are points, or the unit isn't degree or metre
    code = {1: values.get(3072), 2: values.get(2048)}.get(values.get(1024) or 0)
    return code if code is not None and 1024 <= code < 32767 else None


def _read_place(tags: _Directory) -> tuple[float, float, float, float] | None:
    """Origin x and y, pixel width and height; None if the raster isn't plainly north-up."""
    scale, tie = tags.floats(_PIXEL_SCALE), tags.floats(_TIE_POINT)
    if len(scale) < 2 or len(tie) != 6 or _TRANSFORM in tags.entries:
        return None
    x_size, y_size = scale[0], scale[1]
    x, y = tie[3] - tie[0] * x_size, tie[4] + tie[1] * y_size
    if not (0 < x_size < math.inf and 0 < y_size < math.inf and math.isfinite(x + y)):
        return None
    return x, y, x_size, y_size


# --- from the raster's pixels to the window's -------------------------------------------------

_SLACK = 0.01
"""In pixels of the raster: a pixel centre this near to an edge may round either way."""

Axis = slice | NDArray[np.intp]
"""Where the raster has the window's rows (or columns): a slice, or an index each, -1 outside."""


@lru_cache(maxsize=1024)
def _epsg(crs: str) -> int | None:
    """EPSG code of `EPSG:n`, or of WKT that is certainly the same."""
    authority, _, code = crs.partition(":")
    if authority.upper() == "EPSG" and code.isascii() and code.isdecimal():
        return int(code)
    import pyproj  # only for datasets whose windows carry WKT

    try:
        known: int | None = pyproj.CRS.from_user_input(crs).to_epsg(min_confidence=100)
    except pyproj.exceptions.CRSError:
        return None
    return known


def _place(header: GeotiffHeader, grid: Grid) -> tuple[Axis, Axis] | None:
    """Rows and columns of the window in the raster; None if only GDAL can tell."""
    if header.origin is None or header.pixel_size is None:
        return None
    if not (grid.x_resolution > 0 > grid.y_resolution and grid.width > 0 and grid.height > 0):
        return None
    x_size, y_size = header.pixel_size
    x = (grid.bounds[0] * grid.x_resolution - header.origin[0]) / x_size
    y = (header.origin[1] - grid.bounds[1] * grid.y_resolution) / y_size
    x_step, y_step = grid.x_resolution / x_size, -grid.y_resolution / y_size
    _check_cover(("left", "right"), x, x + grid.width * x_step, header.width)
    _check_cover(("top", "bottom"), y, y + grid.height * y_step, header.height)
    needed = max(1 << 22, 8 * grid.width * grid.height * x_step * y_step)
    if header.width * header.height > needed:
        return None  # GDAL reads only the blocks under the window
    rows = _axis(y, y_step, grid.height, header.height)
    columns = _axis(x, x_step, grid.width, header.width)
    return None if rows is None or columns is None else (rows, columns)


def _check_cover(
    sides: tuple[str, str], start: float, stop: float, size: int, allowed: float = 1.0
) -> None:
    """Raise if more than `allowed` of the raster's pixels are missing from start to stop."""
    if stop <= 0 or start >= size:
        raise RasterProblem("raster_grid", "it doesn't overlap the window")
    for side, gap in zip(sides, (-start, stop - size), strict=True):
        if not gap <= allowed + _SLACK:
            raise RasterProblem(
                "raster_grid", f"{gap:.4g} of its pixels are missing at the window's {side}"
            )


def _axis(start: float, step: float, count: int, size: int) -> Axis | None:
    """The raster's pixel under each of `count` pixel centres; None if one falls on an edge."""
    first = round(start)
    if abs(step - 1) * count <= _SLACK and abs(start - first) <= _SLACK:
        if first >= 0 and first + count <= size:
            return slice(first, first + count)
        index = np.arange(first, first + count)
    else:
        centres = start + (np.arange(count) + 0.5) * step
        if np.abs(centres - np.rint(centres)).min() < _SLACK:
            return None
        index = np.floor(centres).astype(np.intp)
    index[(index < 0) | (index >= size)] = -1
    return index


def _decode_pixels(data: bytes, header: GeotiffHeader) -> NDArray[Any]:
    """All pixels (H, W, bands) of a simple raster, as libtiff decodes them."""
    # libtiff warns of each tag that it doesn't know, and imagecodecs takes the GIL for each of
    # these warnings: a third of the time for small rasters, and threads wait for each other.
    # A directory that ends before the georeference has none.
    at, count = header.pixel_tags
    bare = bytearray(data)
    bare[at : at + len(count)] = count
    try:
        pixels: NDArray[Any] = tiff_decode(bare)  # releases the GIL
        if pixels.dtype != header.dtype:
            raise ValueError(f"{pixels.dtype} instead of {header.dtype}")
        if header.planar:
            pixels = pixels.reshape(header.bands, header.height, header.width).transpose(1, 2, 0)
        else:
            pixels = pixels.reshape(header.height, header.width, header.bands)
    except Exception as error:  # whatever the codec raises, the raster is damaged
        raise _broken(str(error) or type(error).__name__) from error
    if header.alpha:
        pixels[pixels[:, :, -1] == 0] = 0
    return pixels


def _on_grid(
    pixels: NDArray[Any], header: GeotiffHeader, rows: Axis, columns: Axis
) -> NDArray[Any] | None:
    """The window's pixels (H, W, bands); None if GDAL would change their values."""
    # In these types GDAL's warper moves a nodata value by 1 where another band has data.
    moves = header.nodata is not None and header.bands > 1 and header.dtype in ("int32", "uint32")
    if moves and (pixels == header.nodata).any():
        return None
    if isinstance(rows, slice) and isinstance(columns, slice):
        window = pixels[rows, columns]
        # A part is copied, so that a small window doesn't keep a large raster in memory.
        return window if window.shape == pixels.shape else window.copy()
    inside_rows, source_rows = _inside(rows)
    inside_columns, source_columns = _inside(columns)
    shape = (len(inside_rows), len(inside_columns), header.bands)
    if math.prod(shape) * pixels.itemsize > _MAX_BYTES:
        raise RasterProblem("raster_grid", f"a window of {shape[1]} x {shape[0]} is too large")
    out = np.full(shape, header.nodata or 0, pixels.dtype)
    out[np.ix_(inside_rows, inside_columns)] = pixels[np.ix_(source_rows, source_columns)]
    return out


def _inside(axis: Axis) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which of the window's rows (or columns) the raster has, and where it has them."""
    if isinstance(axis, slice):
        index = np.arange(axis.start, axis.stop)
        return np.ones(len(index), bool), index
    inside = axis >= 0
    return inside, axis[inside]


# --- rslearn's way ----------------------------------------------------------------------------


def _warp(data: bytes, header: GeotiffHeader, grid: Grid) -> tuple[NDArray[Any], GeotiffHeader]:
    """Pixels (H, W, bands) through GDAL's warper, called as rslearn calls it."""
    # rasterio and its libraries take half a second to load; most datasets never need them.
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT

    scale = Affine.scale(grid.x_resolution, grid.y_resolution)
    transform = scale * Affine.translation(grid.bounds[0], grid.bounds[1])
    try:
        crs = CRS.from_string(grid.crs)
        # Only as a GeoTIFF: other drivers of GDAL follow paths and URLs in a file's text.
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as source:
            _check_warped_cover(source, crs, transform, grid)
            with WarpedVRT(
                source,
                crs=crs,
                transform=transform,
                width=grid.width,
                height=grid.height,
                resampling=Resampling.nearest,
            ) as warped:
                pixels: NDArray[Any] = warped.read()
            read = replace(header, bands=len(pixels), dtype=pixels.dtype.name, nodata=source.nodata)
    except RasterProblem:
        raise
    except Exception as error:  # GDAL's errors have no common root
        raise _broken(f"{type(error).__name__}: {error}") from error
    return np.moveaxis(pixels, 0, -1), read


def _check_warped_cover(source: Any, crs: Any, transform: Any, grid: Grid) -> None:
    """Raise if the raster leaves more of the window's outline uncovered than is allowed.

    From another CRS that is half a pixel more than from the same.
    """
    from rasterio.warp import transform as transform_points

    along, ones = np.linspace(0, 1, 9), np.ones(9)
    x = np.concatenate([along, along, 0 * ones, ones]) * grid.width
    y = np.concatenate([0 * ones, ones, along, along]) * grid.height
    xs, ys = transform * (x, y)
    allowed = 1.0
    if source.crs is not None and source.crs != crs:
        xs, ys = map(np.asarray, transform_points(crs, source.crs, xs, ys)[:2])
        allowed = 1.5
    columns, rows = ~source.transform * (xs, ys)
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise RasterProblem("raster_grid", "the window can't be transformed to its CRS")
    sides, ends = ("left", "right"), ("top", "bottom")
    _check_cover(sides, float(columns.min()), float(columns.max()), source.width, allowed)
    _check_cover(ends, float(rows.min()), float(rows.max()), source.height, allowed)
