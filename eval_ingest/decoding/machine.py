"""Whose fault is it: the data's, which makes a window invalid, or the machine's, which ends a run?

Decoders tell of both in the same words. So wherever a library's error would become a verdict on a
window, `blame` is asked first: it knows the errors that no file can cause, and for all others has
the library do what it certainly can, on a machine that is whole.
"""

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata

from eval_ingest.errors import (
    EvalIngestError,
    MachineError,
    SourceError,
    chain,
    lacking,
    machine_error,
    words_of,
)

JUDGE_VERSION = 4
"""Raised when a window that was invalid may be valid now, without a change of its files."""

_OF_DATA = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EILSEQ}
)
"""What the system says of a path that leads nowhere or of an impossible place in a file."""

_OF_NETWORKS = ("aiohttp", "botocore", "aiobotocore", "google", "gcsfs", "requests", "urllib3")

_SURE_S = 1.0
"""Libraries that worked just now are not tried again: a source may have many broken windows."""
_whole_until = [0.0]
"""On time.monotonic()'s clock."""

_WORDS = {
    "no space left on device": errno.ENOSPC,
    "permission denied": errno.EACCES,
    "input/output error": errno.EIO,
}
"""GDAL passes the system's words on, without the number."""


@lru_cache(maxsize=1)
def judges() -> str:
    """What decides over windows: our rules' version, and those of the libraries that decode.

    A window that was found invalid by others is judged again.
    """
    found = [f"eval_ingest:{JUDGE_VERSION}"]
    for name in ("rasterio", "imagecodecs", "pyproj", "shapely", "rslearn", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name}:{metadata.version(name)}")
    return " ".join(found)


def blame(error: BaseException, memory_is_limited: bool = False) -> None:
    """Return if an error may be the data's fault; else raise what says that it is the machine's.

    Args:
        error: what a library raised while it read data from a source.
        memory_is_limited: this process may take less memory than there is, so that too little of
            it tells about the data.

    Raises:
        MachineError: it is the machine's fault.
        SourceError: it is that of the way to a bucket.
    """
    _blame_place(error, memory_is_limited)
    if time.monotonic() < _whole_until[0]:
        return
    for what, works in _CHECKS.items():
        if what not in sys.modules:
            continue
        try:
            works()
        except Exception as fault:
            if isinstance(fault, MemoryError) and memory_is_limited:
                continue
            raise MachineError(
                f"{what} fails on this machine, whatever it is given "
                f"({words_of(fault)}); it was noticed when a window couldn't be read "
                f"({words_of(error)}). Repair it (PROJ_DATA, PROJ_LIB and GDAL_DATA must be unset, "
                "or fit the installed rasterio and pyproj; else install them anew), and run "
                "again: it goes on where it stopped"
            ) from error
    _whole_until[0] = time.monotonic() + _SURE_S


@contextmanager
def machine_faults_told() -> Iterator[None]:
    """Whatever is done within fails with an error of ours where the machine's is the fault.

    Raises:
        MachineError: no memory, no file handles, no threads, a library that can't be imported.
    """
    try:
        yield
    except EvalIngestError:
        raise
    except Exception as error:
        _blame_place(error)
        raise


def _blame_place(error: BaseException, memory_is_limited: bool = False) -> None:
    """Raise for what no data can be the cause of, by what is said alone."""
    lack = lacking(error, memory_is_limited)
    if lack is not None:
        raise lack from error
    for one in chain(error):
        _blame_one(one)


def _blame_one(error: BaseException) -> None:
    if isinstance(error, SourceError):
        raise error
    if isinstance(error, ImportError):
        raise MachineError(
            f"a library that reading needs can't be imported: {words_of(error)}; install it anew "
            "(pip install --force-reinstall), and run again: it goes on where it stopped"
        ) from error
    if type(error).__module__.partition(".")[0] in _OF_NETWORKS:
        raise SourceError(
            f"reading from the source failed: {words_of(error)}; check the network and the "
            "credentials, and run again: it goes on where it stopped"
        ) from error
    if isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_DATA:
        raise machine_error(error, error.errno) from error
    text = str(error).lower()[:2_000]
    for words, number in _WORDS.items():
        if words in text:
            raise machine_error(error, number) from error


# ------------------------------------------------------------------- what works on a whole machine


def _transform_with_pyproj() -> None:
    import pyproj

    transformer = pyproj.Transformer.from_crs("EPSG:32630", "EPSG:4326", always_xy=True)
    longitude, latitude = transformer.transform(500_000, 5_000_000)
    if not (abs(longitude + 3) < 1e-6 and 45 < latitude < 46):
        raise ValueError(f"the middle of UTM zone 30 is at {longitude}, {latitude}")


def _warp_with_rasterio() -> None:
    import numpy as np
    from affine import Affine
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT

    transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    form = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(**form, crs="EPSG:32630", transform=transform) as raster:
            raster.write(np.ones((1, 4, 4), np.uint8))
        with memory.open(driver="GTiff") as raster, WarpedVRT(raster, crs="EPSG:32631") as warped:
            if not warped.read().any():
                raise ValueError("a raster of ones comes back empty")


def _decode_with_imagecodecs() -> None:
    import imagecodecs
    import numpy as np

    ones = np.ones((4, 4), np.uint8)
    if not (imagecodecs.tiff_decode(imagecodecs.tiff_encode(ones)) == 1).all():
        raise ValueError("a raster of ones comes back as another")


def _parse_with_shapely() -> None:
    import shapely

    if not shapely.from_wkt("POINT (1 1)").intersects(shapely.box(0, 0, 2, 2)):
        raise ValueError("a point isn't in the box around it")


_CHECKS: dict[str, Callable[[], None]] = {
    "pyproj": _transform_with_pyproj,
    "rasterio": _warp_with_rasterio,
    "imagecodecs": _decode_with_imagecodecs,
    "shapely": _parse_with_shapely,
}
