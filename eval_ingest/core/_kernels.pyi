from mmap import mmap
from typing import Any

from numpy.typing import NDArray

def decode_lzw(
    data: bytes,
    offsets_at: int,
    offset_bytes: int,
    sizes_at: int,
    size_bytes: int,
    count: int,
    height: int,
    row_bytes: int,
    block_height: int,
    block_row_bytes: int,
    tiled: bool,
    out: NDArray[Any],
    /,
) -> bool: ...
def interleave(
    rasters: list[NDArray[Any]],
    order: bytes,
    pixels: int,
    itemsize: int,
    out: NDArray[Any],
    /,
) -> None: ...
def measure(rows: NDArray[Any], kind: str, bands: int, moments: NDArray[Any], /) -> bool: ...
def scale(
    stored: NDArray[Any],
    kind: str,
    width: int,
    factor: NDArray[Any] | None,
    offset: NDArray[Any] | None,
    out: NDArray[Any],
    /,
) -> bool: ...
def gather(
    memory: mmap,
    kind: str,
    starts: NDArray[Any],
    places: NDArray[Any],
    rows: int,
    row_bytes: int,
    items: int,
    width: int,
    factor: NDArray[Any] | None,
    offset: NDArray[Any] | None,
    out: NDArray[Any],
    /,
) -> bool: ...
