"""GeoTIFFs in the many forms that GDAL reads, and what rslearn makes of each as a local file.

CASES is a table of single forms; `drawn` mixes them. Tags are changed in the file that rasterio
wrote, so that there are files which no writer writes, but which readers meet.
"""

import random
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rslearn.utils.geometry import Projection
from rslearn.utils.raster_format import GeotiffRasterFormat
from upath import UPath

from eval_ingest.decoding.beside import check_beside, check_magic
from eval_ingest.decoding.geotiff import decode_geotiff
from eval_ingest.decoding.geotiff_header import TIFF_KINDS
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.sources.base import SourceFile, WindowFiles
from eval_ingest_tests.support.fuzz_kinds import Fault, Kind
from eval_ingest_tests.support.geotiffs import GRID, Array, pixels, write

SMALL = replace(GRID, bounds=(50_000, -100_000, 50_032, -99_968))
Files = Mapping[str, bytes]
"""The raster and what lies beside it, by name."""
Tag = tuple[Any, ...] | None
"""The type of a tag's values, and these; None: the tag is taken away."""

# ------------------------------------------------------------------------------------- making them

_LETTERS = {1: "B", 2: "c", 3: "H", 4: "I", 7: "B", 8: "h", 11: "f", 12: "d", 16: "Q"}


def directory(data: bytes) -> dict[int, tuple[int, int, bytes]]:
    """Type, count and bytes of each tag of a TIFF's first directory."""
    order, size = TIFF_KINDS[data[:4]]
    offset, count = ("I", "H") if size == 4 else ("Q", "Q")
    (at,) = struct.unpack_from(order + offset, data, size)
    (n,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(count)
    found = {}
    for entry in range(at, at + n * (4 + 2 * size), 4 + 2 * size):
        code, type_, values = struct.unpack_from(order + "HH" + offset, data, entry)
        n_bytes, place = values * struct.calcsize(_LETTERS[type_]), entry + 4 + size
        if n_bytes > size:
            (place,) = struct.unpack_from(order + offset, data, place)
        found[code] = type_, values, data[place : place + n_bytes]
    return found


def retagged(data: bytes, changes: Mapping[int, Tag]) -> bytes:
    """A TIFF with other tags: a new first directory at its end, and none after it."""
    order, size = TIFF_KINDS[data[:4]]
    offset, count = ("I", "H") if size == 4 else ("Q", "Q")
    tags = directory(data)
    for code, tag in changes.items():
        tags.pop(code, None)
        if tag is not None:
            type_, *values = tag
            if type_ == 2:
                values = [values[0][i : i + 1] for i in range(len(values[0]))]
            form = f"{order}{len(values)}{_LETTERS[type_]}"
            tags[code] = type_, len(values), struct.pack(form, *values)
    out = bytearray(data + bytes(len(data) % 2))
    struct.pack_into(order + offset, out, size, len(out))
    far = len(out) + struct.calcsize(count) + len(tags) * (4 + 2 * size) + size
    entries, values_far = bytearray(), bytearray()
    for code, (type_, n, content) in sorted(tags.items()):
        entries += struct.pack(order + "HH" + offset, code, type_, n)
        if len(content) <= size:
            entries += content.ljust(size, b"\0")
        else:
            entries += struct.pack(order + offset, far + len(values_far))
            values_far += content + bytes(len(content) % 2)
    return bytes(out + struct.pack(order + count, len(tags)) + entries + bytes(size) + values_far)


def _keys(*keys: tuple[int, int, int, int], texts: bytes = b"") -> dict[int, Tag]:
    """The tags of a GeoKeyDirectory."""
    numbers = [number for key in sorted(keys) for number in key]
    return {34735: (3, 1, 1, 0, len(keys), *numbers), 34737: (2, texts + b"|\0")}


_UTM_KEYS = (1024, 0, 1, 1), (3072, 0, 1, 32630)


def _metadata(item: str) -> Tag:
    return 2, f"<GDALMetadata><Item {item}</Item></GDALMetadata>".encode() + b"\0"


_TAGS: dict[str, tuple[str, int, dict[str, Any], dict[int, Tag]]] = {
    # type of the pixels, bands, how they are written, tags that are changed
    **{f"nodata {text} of {dtype}": (dtype, 2, {}, {42113: (2, text.encode() + b"\0")})
       for dtype, texts in {
           "uint8": ("0", "256", "-1", "nan", "1.5", "1e1", "abc", "", "0x10", "1_0", "0,5", " 7",
                     "+7", "5 6", "1d1"),
           "int16": ("-9999.0", "-32769", "-1.7e308"),
           "uint32": ("0", "4294967295"),
           "int64": ("-9223372036854775808", "0"),
           "float32": ("NaN", "-nan", "nan(1)", "inf", "-3.4028234663852886e+38", "1e-50", "1_0",
                       "-1.79769313486231570e+308", "infinity"),
       }.items() for text in texts},
    **{f"keys: {what}": ("uint16", 1, {}, _keys(*keys, texts=texts)) for what, (keys, texts) in {
        "a code alone": (_UTM_KEYS, b""),
        "pixels are points": ((*_UTM_KEYS, (1025, 0, 1, 2)), b""),
        "feet": ((*_UTM_KEYS, (3076, 0, 1, 9002)), b""),
        "another datum than the code's": ((*_UTM_KEYS, (2048, 0, 1, 4267)), b""),
        "the code's datum": ((*_UTM_KEYS, (2048, 0, 1, 4326)), b""),
        "an ellipsoid": ((*_UTM_KEYS, (2057, 0, 1, 5)), b""),
        "a vertical CRS": ((*_UTM_KEYS, (4096, 0, 1, 5773)), b""),
        "units in a text": ((*_UTM_KEYS, (1026, 34737, 43, 0)),
                            b"IMAGINE GeoTIFF Support\nUnits = feet\nx = y\n.."),
        "a CRS in a text": ((*_UTM_KEYS, (3073, 34737, 40, 0)), b"ESRI PE String = PROJCS[]" * 2),
        "no model": (_UTM_KEYS[1:], b""),
        "a geographic model": (((1024, 0, 1, 2), _UTM_KEYS[1]), b""),
        "none": ((), b""),
    }.items()},
    **{f"metadata: {item}": ("uint8", 3, {}, {42112: _metadata(item)}) for item in (
        'name="SCALE" sample="0" role="scale">2', 'name="NODATA_VALUES">7 7 7',
        'name="NODATA&#95;VALUES">7 7 7', 'name="AREA_OR_POINT">Point',
        'name="COLORINTERP" sample="2" role="colorinterp">&#65;lpha',
        'name="PIXELTYPE" sample="0" domain="IMAGE_STRUCTURE">SIGNEDBYTE',
        'name="LINE_OFF" domain="RPC">1')},
    **{f"extra samples {values} of {dtype}": (dtype, bands, {}, {338: (3, *values), 262: (3, of)})
       for dtype in ("uint8", "uint16")
       for values, bands, of in (((2,), 2, 1), ((1,), 4, 2), ((2,), 4, 2), ((0, 2), 3, 1),
                                 ((2, 0), 3, 1), ((2,), 4, 1))},
    **{f"photometric {value}": ("uint8", bands, {}, {262: (3, value)})
       for value, bands in ((0, 1), (3, 1), (4, 1), (5, 4), (6, 3), (8, 3), (32844, 1))},
    **{f"{bits} bits, {layout}": ("uint8" if bits <= 8 else "uint16", 3,
                                  {"nbits": bits, "interleave": layout}, {})
       for bits in (1, 2, 4, 7, 12, 15) for layout in ("pixel", "band")},
    **{f"compression {name} of {dtype}": (dtype, 3, {"compress": name} | more, {})
       for name, dtype, more in (
           ("lerc", "float32", {}), ("lzma", "int16", {}), ("webp", "uint8", {}),
           ("jpeg", "uint8", {"photometric": "YCBCR"}), ("jpeg", "uint8", {"JPEGTABLESMODE": 0}),
           ("deflate", "float64", {"predictor": 3, "ENDIANNESS": "BIG"}),
           ("zstd", "uint32", {"predictor": 2, "interleave": "band"}),
           ("lzw", "int8", {"predictor": 2}))},
    **{f"tag {code} {value}": ("uint16", 3, {}, {code: None if value is None else (4, value)})
       for code, value in (
           (254, 1), (254, 4), (258, None), (259, None), (259, 6), (262, None), (266, 2), (274, 3),
           (274, 6), (277, 2), (277, 4), (278, 0), (278, 5), (278, 2**32 - 1), (279, None),
           (284, 2), (317, 3), (330, 8), (339, 2), (339, 3), (32997, 2), (65000, 1))},
    "one value for three bands": ("uint16", 3, {}, {258: (3, 16), 339: (3, 1)}),
    "types that differ": ("uint16", 3, {}, {339: (3, 1, 2, 1)}),
    "complex": ("complex64", 1, {}, {}),
    "complex integers": ("int16", 1, {"dtype": "complex_int16"}, {}),
    "float16": ("float32", 2, {"nbits": 16}, {}),
    "deflate blocks that hold more": ("uint16", 3, {"compress": "deflate"}, {277: (3, 1)}),
    "an ImageJ description": ("uint16", 1, {}, {270: (2, b"ImageJ=1.5\nimages=3\n\0")}),
    "scale of another sign": ("uint16", 1, {}, {33550: (12, 10, -10, 0)}),
    "a scale that is no number": ("uint16", 1, {}, {33550: (12, float("nan"), 10, 0)}),
    "a point in the middle": ("uint16", 1, {}, {33922: (12, 16, 16, 0, 500_160, 999_840, 0)}),
    "a rotated matrix": ("uint16", 1, {}, {
        33550: None, 33922: None,
        34264: (12, 10, .1, 0, 499_995, .1, -10, 0, 1_000_005, 0, 0, 0, 0, 0, 0, 0, 1)}),
    "a matrix beside a scale": ("uint16", 1, {}, {
        34264: (12, 10, 0, 0, 500_010, 0, -10, 0, 1_000_000, 0, 0, 0, 0, 0, 0, 0, 1)}),
    "a sparse file": ("uint16", 2, {"SPARSE_OK": True, "nodata": 7, "tiled": True,
                                    "blockxsize": 16, "blockysize": 16}, {}),
    "BigTIFF in tiles of an odd size": ("uint16", 3, {"BIGTIFF": "YES", "tiled": True,
                                                      "blockxsize": 48, "blockysize": 16}, {}),
}  # fmt: skip

_CORNERS = (0, 0), (32, 0), (0, 32), (32, 32)


def _array(bands: int, dtype: str) -> Array:
    array = pixels(bands, dtype if not dtype.startswith("complex") else "float32", 32, 32)
    array[:, :9] = 7
    array[-1, 5:12] = 0
    return array.astype(dtype)


def _large_integers(dtype: str) -> bytes:
    array = _array(2, dtype)
    array[0, 20:] = np.iinfo(dtype).max - 1
    return write(array, SMALL)


def make_all() -> Iterator[tuple[str, bytes]]:
    """Each of the forms, by name."""
    for name, (dtype, bands, profile, tags) in _TAGS.items():
        array = _array(bands, dtype)
        bits = profile.get("nbits", 16)
        data = write(array % 2**bits if bits < 16 else array, SMALL, **profile)
        yield name, retagged(data, tags) if tags else data
    points = [GroundControlPoint(y, x, 500_000 + x * 10, 1_000_000 - y * 10) for x, y in _CORNERS]
    for name, place in (("points alone", Affine.identity()), ("points and a transform", None)):
        yield name, write(_array(2, "uint8"), SMALL, place, gcps=points)
    for dtype in ("int64", "uint64"):
        yield f"large integers of {dtype}", _large_integers(dtype)


# --------------------------------------------------------------------------------- comparing them


def by_rslearn(files: Files, grid: Grid, folder: Path) -> Array:
    """(bands, H, W) as rslearn reads it from a folder of its own."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    crs = rasterio.crs.CRS.from_string(grid.crs)
    projection = Projection(crs, grid.x_resolution, grid.y_resolution)
    raster = GeotiffRasterFormat().decode_raster(
        UPath(folder), projection, grid.bounds, resampling=Resampling.nearest
    )
    return raster.array.reshape(-1, *raster.array.shape[2:])


def by_us(files: Files, grid: Grid) -> Array:
    """(bands, H, W) as an ingest reads it."""
    listed = tuple(SourceFile(f"layers/x/B1/{name}", len(data), 1) for name, data in files.items())
    check_beside(WindowFiles("g", "w", listed), lambda path: files[path.rpartition("/")[2]])
    check_magic("geotiff.tif", files["geotiff.tif"])
    return np.moveaxis(decode_geotiff(files["geotiff.tif"], grid)[0], -1, 0)


def compare(files: Files, grid: Grid, folder: Path) -> str:
    """`equal`, or the code by which it is refused.

    Raises:
        Fault: rslearn reads something else of the folder, or of a copy without what lies beside.
    """
    try:
        found = by_us(files, grid)
    except Unreadable as problem:
        return problem.code
    copied = [{"geotiff.tif": files["geotiff.tif"]}] if len(files) > 1 else []
    for present in (files, *copied):
        try:
            expected = by_rslearn(present, grid, folder)
        except Exception as error:
            raise Fault(f"rslearn can't read it: {error}") from error
        # rasterio reads int8 as int16: the values count.
        same_type = found.dtype == expected.dtype or (found.astype(expected.dtype) == found).all()
        nan = expected.dtype.kind in "fc"
        if not same_type or not np.array_equal(found, expected, equal_nan=nan):
            raise Fault(f"{found.dtype} {found.shape} for {expected.dtype} {expected.shape}")
    return "equal"


def grids() -> list[Grid]:
    """The rasters' own, one that is a pixel off, and a coarser one."""
    x0, y0, x1, y1 = SMALL.bounds
    coarse = (x0 // 2 + 1, y0 // 2 + 1, x1 // 2 - 1, y1 // 2 - 1)
    return [
        SMALL,
        replace(SMALL, bounds=(x0 - 1, y0 - 1, x1 - 1, y1 - 1)),
        replace(SMALL, x_resolution=20.0, y_resolution=-20.0, bounds=coarse),
    ]


# ------------------------------------------------------------------------------------ mixing them

_ANY = {
    "compress": ("none", "lzw", "lzw", "deflate", "zstd", "packbits", "lzma"),
    "interleave": ("pixel", "band"),
    "BIGTIFF": ("YES", "NO"),
    "ENDIANNESS": ("LITTLE", "LITTLE", "BIG"),
}
_SOME = {
    "tiled": (True,), "predictor": (2, 3), "nodata": (0, 1, 7, 100), "SPARSE_OK": (True,),
    "photometric": ("RGB",), "alpha": ("yes", "no", "premultiplied"), "nbits": (1, 4, 7),
    "blockysize": (16, 32),
}  # fmt: skip


def drawn(rng: random.Random) -> tuple[str, bytes]:
    """Some raster with the tags of others; told what it is."""
    dtype = rng.choice(("uint8", "uint16", "int16", "int32", "uint32", "float32", "uint64", "int8"))
    bands = rng.choice((1, 2, 3, 4, 12))
    profile = {key: rng.choice(values) for key, values in _ANY.items()}
    profile |= {key: rng.choice(v) for key, v in _SOME.items() if rng.random() < 0.25}
    profile |= {"blockxsize": rng.choice((16, 32, 48))} if "tiled" in profile else {}
    array = _array(bands, dtype)
    data = write(array % 2 if "nbits" in profile else array, SMALL, **profile)
    tags: dict[int, Tag] = {}
    for name in rng.sample(sorted(_TAGS), rng.choice((0, 1, 1, 2, 3))):
        tags |= _TAGS[name][3]
    return f"{bands} bands of {dtype}, {profile}, tags {tags}", retagged(data, tags)


class Rasters(Kind):
    """Rasters of many forms: read as rslearn reads them, or refused by name."""

    def try_one(self, rng: random.Random) -> Counter[str]:
        self.folder.mkdir(exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                told, data = drawn(rng)
            except (RasterioError, ValueError):  # a combination that no writer writes
                return Counter(["never written"])
            grid = rng.choice(grids())
            try:
                return Counter([compare({"geotiff.tif": data}, grid, self.folder)])
            except Fault as fault:
                raise Fault(f"{told}, {grid.bounds}: {fault}") from fault
