"""What lies in a window besides what is read, and what its files would make a reader do.

rslearn gives GDAL the path of a local raster, and GDAL then opens whatever it is, with what lies
beside it: masks, overviews, world files, files that name others. Nothing of that is read here, so
that a window which has it isn't valid: the copy would read otherwise than EvalDataset, or open what
the dataset's author chose. And wherever rslearn takes a CRS from, there must be one that names no
file and no URL.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from xml.etree import ElementTree

from eval_ingest.core.crs_text import cites_others, is_crs_text, named_crs
from eval_ingest.decoding.limits import parse_json
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.sources.base import WindowFiles

MAGIC = {
    "tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpg": (b"\xff\xd8\xff",),
    "npy": (b"\x93NUMPY",),
}
"""How the files begin that rslearn opens as rasters, by the ending of their names."""

_RASTER = re.compile(
    r"geotiff\.tif|image\.(?:png|jpg)|data\.npy|-?\d{1,12}_-?\d{1,12}\.(?:tif|png|jpg)"
)
"""The names that rslearn gives to rasters."""
_LISTED_AS = ("metadata.dim", "summary.txt")
"""Names that GDAL looks for beside any raster; all others begin like the raster's own."""

_HARMLESS_PAM = frozenset(
    {"PAMDataset", "PAMRasterBand", "Metadata", "MDI", "Histograms", "HistItem", "HistMin",
     "HistMax", "BucketCount", "IncludeOutOfRange", "Approximate", "HistCounts"}
)  # fmt: skip
"""Elements of an .aux.xml that change no pixel: statistics, as QGIS leaves them."""
_MAX_PAM_BYTES = 1 << 20

_FEW = 16
"""Files of a folder whose names are remembered."""


def is_raster(path: str) -> bool:
    """True for a file that rslearn may open as a raster."""
    return _RASTER.fullmatch(path.rpartition("/")[2]) is not None


def is_opened(path: str) -> bool:
    """True for a file that rslearn may open, by its name."""
    return is_raster(path) or path.endswith((".json", ".geojson"))


def check_magic(path: str, data: bytes) -> None:
    """Raise for a raster that is none by its first bytes: another of GDAL's drivers would open it.

    An empty file is opened by none.
    """
    if data and not data.startswith(MAGIC[path.rpartition(".")[2]]):
        kind = {"tif": "GeoTIFF", "npy": "numpy array", "png": "PNG", "jpg": "JPEG"}
        raise Unreadable(
            "raster_unreadable",
            f"{path} is not a {kind[path.rpartition('.')[2]]} by its first bytes",
        )


def check_crs_of(content: object, path: str, code: str = "metadata_unreadable") -> None:
    """Raise if a JSON file's CRS is anything but a code, WKT or PROJ text that names no file."""
    for crs in named_crs(content):
        if crs is not None and not is_crs_text(crs):
            raise Unreadable(code, f"{path}: the CRS is {str(crs)[:80]!r}")


def check_beside(files: WindowFiles, read: Callable[[str], bytes]) -> None:
    """Raise for a file that GDAL would read beside a raster, and that changes what it reads.

    Args:
        files: the window's.
        read: gives a file's bytes by its path.
    """
    folders: dict[str, list[str]] = {}
    for path in files.by_path:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    for folder, names in folders.items():
        if len(names) == 1:
            continue
        found = _found_beside if len(names) <= _FEW else _found_beside.__wrapped__
        for name in found(tuple(names)):
            if not _is_harmless(f"{folder}/{name}", read):
                raise Unreadable(
                    "raster_sidecar",
                    f"{folder}/{name} lies beside a raster, and GDAL may read it with it; "
                    "remove it, or write it into the raster",
                )


@lru_cache(maxsize=256)
def _found_beside(names: tuple[str, ...]) -> list[str]:
    """Those of a folder's files that GDAL may read with a raster there.

    Remembered: most folders hold files of the same names.
    """
    stems = {name.rpartition(".")[0].lower() for name in names if is_raster(name)}
    return [name for name in names if _is_read_beside(name, stems)] if stems else []


def _is_read_beside(name: str, stems: set[str]) -> bool:
    lower = name.lower()
    if is_raster(name) or ".tmp" in lower:  # what a writer that was stopped has left
        return False
    ends = "._" if lower.endswith((".txt", ".xml")) else "."
    begins = (lower[:end] for end, letter in enumerate(lower) if letter in ends)
    return lower in _LISTED_AS or not stems.isdisjoint(begins)


def _is_harmless(path: str, read: Callable[[str], bytes]) -> bool:
    """True for an .aux.xml that holds statistics alone."""
    if not path.endswith(".aux.xml"):
        return False
    data = read(path)
    if len(data) > _MAX_PAM_BYTES or b"<!" in data:  # entities can grow beyond all bounds
        return False
    try:
        elements = list(ElementTree.fromstring(data).iter())
    except ElementTree.ParseError:
        return False
    return all(
        element.tag in _HARMLESS_PAM
        and (element.tag != "Metadata" or not element.attrib)
        and (element.tag != "MDI" or element.get("key", "").startswith("STATISTICS_"))
        for element in elements
    )


def check_unread(files: WindowFiles, done: Iterable[str], read: Callable[[str], bytes]) -> None:
    """Look at the files of completed layers that the dataset's inputs don't read.

    They are copied too, and others may read them: other bands, other item groups.
    """
    completed = {path.rpartition("/")[0] for path in files.by_path if path.endswith("/completed")}
    unread = set(files.by_path).difference(done)
    check_content((p for p in unread if "/".join(p.split("/", 2)[:2]) in completed), read)


def check_content(paths: Iterable[str], read: Callable[[str], bytes]) -> None:
    """Look at what rslearn may open: rasters by their first bytes, JSON for its CRS."""
    for path in sorted(paths):
        if is_raster(path):
            data = read(path)
            check_magic(path, data[:16])
            if cites_others(data):
                raise Unreadable("raster_unreadable", f"{path} cites a CRS that names a file")
        elif path.endswith((".json", ".geojson")):
            data = read(path)
            if b"crs" in data or b"\\" in data:
                check_crs_of(parse_json(data, path, "metadata_unreadable"), path)
