"""What checks ask of the moments of all windows, gathered piece by piece.

Moments are by far the largest column of an index: half a kilobyte a window with twelve bands. They
are never in memory as a whole; what is here is a tenth of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.norm import BandStats, BandSums


@dataclass(frozen=True)
class BandFacts:
    """Of some windows (N) and a modality's bands (C)."""

    stats: list[BandStats]
    """Per band, of all of the windows."""
    train_pixels: NDArray[np.float64]
    """(C,) of the windows in train."""
    fewest: NDArray[np.float64]
    """(N,) pixels of the band that has fewest."""
    most: NDArray[np.float64]
    """(N,) of the band that has most."""
    lowest: NDArray[np.float64]
    """(N,) of all bands; infinite where there is no pixel."""
    lowest_positive: NDArray[np.float64]
    """(N,) of the bands whose lowest isn't 0 or less, which marks missing data."""
    constant: NDArray[np.bool_]
    """(N, C): the band is the same everywhere in the window."""

    @classmethod
    def of(
        cls, parts: Iterable[NDArray[np.float64]], in_train: NDArray[np.bool_], bands: int
    ) -> Self:
        """The facts of moments (N, 5, C), given in pieces."""
        sums, train = BandSums(bands), np.zeros(bands)
        rows = np.zeros((4, len(in_train)))
        constant = np.zeros((len(in_train), bands), bool)
        done = 0
        for moments in parts:
            here = slice(done, done + len(moments))
            counts, low, high = moments[:, 0], moments[:, 3], moments[:, 4]
            sums.add(moments)
            train += counts[in_train[here]].sum(axis=0)
            lowest = (low, np.where(low > 0, low, np.inf))
            rows[:2, here] = counts.min(axis=1, initial=np.inf), counts.max(axis=1, initial=0)
            rows[2:, here] = [values.min(axis=1, initial=np.inf) for values in lowest]
            constant[here] = (counts > 0) & (low == high)
            done = here.stop
        return cls(sums.stats, train, rows[0], rows[1], rows[2], rows[3], constant)
