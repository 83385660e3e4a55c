"""Digests of what is packed of a window: equal pixels, equal digest; and of its label."""

import hashlib
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def pixel_digest(
    pixels: Mapping[str, NDArray[Any]], moments: Mapping[str, NDArray[np.float64]]
) -> str | None:
    """Sixteen hex digits over the CRC32C, shape and moments of each modality's packed pixels.

    CRC32C is forty times faster than a hash of all the bytes, but its 32 bits alone would pair
    strangers among 100,000 windows; with each band's sums beside it they don't meet.
    None for a window without any pixels.

    >>> import numpy as np
    >>> sums = {"s2": np.zeros((5, 1))}
    >>> pixel_digest({"s2": np.ones((2, 2, 1, 1))}, sums)
    'ccd56f646ce4f9e0'
    """
    if not pixels:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, array in sorted(pixels.items()):
        view = np.ascontiguousarray(array).view()
        view.flags.writeable = False  # google_crc32c reads only such arrays without a copy
        digest.update(f"{name} {view.shape} {view.dtype} {google_crc32c.value(view)} ".encode())
        digest.update(moments[name].tobytes())
    return digest.hexdigest()


def label_digest(target: NDArray[Any]) -> int:
    """CRC32C of a target as it is packed: enough to notice damage, and nothing is paired by it.

    >>> import numpy as np
    >>> label_digest(np.zeros((2, 2), np.int8))
    1214729159
    """
    view = np.ascontiguousarray(target).view()
    view.flags.writeable = False
    return int(google_crc32c.value(view))
