"""How well a dataset tells models apart: figures from the scores of models of known order.

Values and formulas alone; which models are scored is for sweep/signal.py. Scores are utilities
here: higher is better, so that an error is its negative.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

Utilities = NDArray[np.float64]

NO_SIGNAL = 3.0
"""A gap of fewer standard errors may be chance: less than one in 700 is that large by it."""
TOLD_APART = 1.96
"""Standard errors between two models that differ at the 5 % level, both ways."""
_POWER = 0.8416
"""The 80 % quantile of the normal distribution."""
_DRAWS, _SAME = 100, 0.95
"""Draws of windows, and the part of them that must rank models as all windows do."""
FEWEST = 8
"""Windows of the smallest draw."""


class Level(BaseModel):
    """A model's scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str
    val: float | None
    """None where the metric says nothing: R2 of labels that are all alike, for one."""
    test: float | None


class Signal(BaseModel):
    """What a dataset's val and test split can tell of models."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    verdict: str
    """none, weak, saturated or good; see `verdict_of`."""
    metric: str
    levels: list[Level]
    """Two models that know nothing, then from the worst to the best as they are made; those of
    unknown order come last."""
    gap: float
    """Test score of the model that is best on val, less that of the best which knows nothing (a
    constant, or noise); in the metric's units, above 0 if better."""
    gap_in_errors: float
    """The same in units of its standard error."""
    smallest_difference: float | None
    """Between two models, that this test split shows four times in five; None if not known."""
    headroom: float
    """From the best score to a perfect one."""
    val_ranks_as_test: float | None
    """Kendall's tau-b of both splits' scores, -1 to 1; None if all are alike on one."""
    steps: list[float]
    """Gaps between neighbours of known order on test, in standard errors."""
    train_windows: int | None
    """The fewest with which models that the test split tells apart are ranked alike; None: no two
    are told apart."""
    test_windows: int | None
    """The same of test windows."""
    n_train: int
    n_test: int
    """Windows that were used."""
    seconds: float
    """Of embedding and probing the `pixels` once."""

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Signal | None":
        """What metadata.json keeps; None if it was never measured, or by another version."""
        try:
            return cls.model_validate(kept)
        except ValidationError:
            return None

    def lines(self) -> list[str]:
        """For people."""
        far = f"{self.gap:.4g} {self.metric}, {self.gap_in_errors:.1f} standard errors"
        lines = [
            f"signal: {self.verdict}; the best of simple models is {far} above those that know "
            "nothing",
            f"  a difference below {_text(self.smallest_difference)} between two models can't be "
            f"shown on test; val ranks them as test does: tau {_text(self.val_ranks_as_test)}",
        ]
        if self.train_windows is not None and self.test_windows is not None:
            lines.append(
                f"  the same ranking needs {self.train_windows:,} train windows and "
                f"{self.test_windows:,} test windows"
            )
        return lines

    @property
    def entry(self) -> dict[str, Any]:
        """For registry.json."""
        names = ("verdict", "gap_in_errors", "smallest_difference", "val_ranks_as_test",
                 "train_windows", "test_windows", "seconds")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def verdict_of(gap_in_errors: float, gap: float, smallest: float, headroom: float) -> str:
    """One word.

    `none`: no model is better than those that know nothing. `saturated`: what is left above the
    best score is less than what can be shown. `weak`: not even half of the gap can be. Else `good`.
    """
    if not gap_in_errors >= NO_SIGNAL:
        return "none"
    if headroom < smallest:
        return "saturated"
    return "weak" if smallest > gap / 2 else "good"


def standard_errors(redrawn: Utilities, utilities: Utilities, n: int) -> Utilities:
    """(M, M) of the differences between models, from (M, B) utilities of the same B redraws.

    The paired bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 6;
    windows are redrawn, as pixels of one aren't independent. Where the windows all say the same,
    redraws don't differ, however few there are: so n windows are no more than n - 1 errors.
    """
    spread = np.nanstd(redrawn[:, None] - redrawn[None], axis=2, ddof=1)
    apart = abs(utilities[:, None] - utilities[None])
    return np.asarray(np.maximum(spread, apart / max(n - 1, 1)))


def smallest_difference(errors: Sequence[float], n_used: int, n_all: int) -> float:
    """That a two-sided test at 5 % shows with a power of 80 %: (1.96 + 0.84) standard errors.

    Cohen, Statistical Power Analysis (1988); Card et al., With Little Power Comes Great
    Responsibility (2020). The error falls with the root of the windows. NaN if none is above 0.
    """
    known = [error for error in errors if error > 0]
    middle = float(np.median(known)) if known else math.nan
    return (TOLD_APART + _POWER) * middle * math.sqrt(n_used / max(n_all, 1))


def tau_b(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's rank correlation with ties (Kendall, The Treatment of Ties, 1945); NaN of none.

    >>> tau_b([1, 2, 3, 4], [1, 2, 4, 3])
    0.6666666666666666
    """
    signs = [
        (np.sign(one[i] - one[j]), np.sign(other[i] - other[j]))
        for i, j in combinations(range(len(one)), 2)
    ]
    a, b = (np.array(side) for side in zip(*signs, strict=True)) if signs else (np.zeros(1),) * 2
    scale = math.sqrt(np.count_nonzero(a) * np.count_nonzero(b))
    return float(a @ b) / scale if scale else math.nan


def clear_pairs(utilities: Utilities, errors: Utilities) -> list[tuple[int, int]]:
    """(better, worse) of the models that the split tells apart."""
    pairs = []
    for i, j in combinations(range(len(utilities)), 2):
        apart = utilities[i] - utilities[j]
        if abs(apart) > TOLD_APART * errors[i, j]:
            pairs.append((i, j) if apart > 0 else (j, i))
    return pairs


def fewest_train(pairs: Sequence[tuple[int, int]], by_count: Mapping[int, Utilities]) -> int | None:
    """The smallest number of train windows from which on all pairs are ranked alike.

    Args:
        pairs: from `clear_pairs`.
        by_count: utilities (M,) on test by number of train windows.
    """
    fewest = None
    for count in sorted(by_count, reverse=True):
        found = by_count[count]
        if not pairs or not all(found[i] > found[j] for i, j in pairs):
            break
        fewest = count
    return fewest


def fewest_test(
    pairs: Sequence[tuple[int, int]], n: int, redraw: Callable[[NDArray[np.int64]], Utilities]
) -> int | None:
    """The smallest number of test windows that rank all pairs alike in 95 % of draws.

    Numbers are halved, as sizes of draws without replacement; `redraw` gives utilities (M, B) of
    draws (B, n) that count windows.
    """
    if not pairs:
        return None
    rng, fewest, size = np.random.default_rng(0), n, n // 2
    better, worse = np.array(pairs).T
    while size >= FEWEST:
        places = rng.permuted(np.tile(np.arange(n), (_DRAWS, 1)), axis=1)[:, :size]
        times = np.zeros((_DRAWS, n), np.int64)
        np.put_along_axis(times, places, 1, axis=1)
        found = redraw(times)
        if (found[better] > found[worse]).all(0).mean() < _SAME:
            break
        fewest, size = size, size // 2
    return fewest


def neighbours(utilities: Utilities, errors: Utilities, order: Sequence[int]) -> list[float]:
    """Gaps between models that follow each other, in standard errors; 0 where there is no error."""
    return [
        float((utilities[j] - utilities[i]) / errors[i, j]) if errors[i, j] > 0 else 0.0
        for i, j in pairwise(order)
    ]


def propose(found: Mapping[str, Signal], budget_s: float) -> list[str]:
    """The datasets that together rank models best per second, within so many seconds.

    A pair of neighbours is ranked rightly with the probability Phi(z); independent datasets add
    their z as roots of sums of squares (Stouffer's method with weights of 1 / error: the sum of
    two scores divided by their errors). What is gained falls with every dataset, so the greedy
    choice by gain per second is near the best (Nemhauser, Wolsey and Fisher 1978; Khuller, Moss
    and Naor 1999).
    """
    usable = {name: s for name, s in found.items() if s.verdict != "none"}
    squares = {name: np.square(np.clip(s.steps, 0, None)) for name, s in usable.items()}
    chosen: list[str] = []
    sums, left = np.zeros(max((len(s) for s in squares.values()), default=0)), budget_s
    while True:
        gains = {
            name: (_ranked(sums + squares[name]) - _ranked(sums)) / max(usable[name].seconds, 1e-3)
            for name in squares
            if name not in chosen and usable[name].seconds <= left
        }
        best = max(gains, key=lambda name: gains[name], default=None)
        if best is None or gains[best] <= 1e-9:
            return chosen
        chosen.append(best)
        sums, left = sums + squares[best], left - usable[best].seconds


def _ranked(squares: NDArray[np.float64]) -> float:
    """The mean probability that neighbours are ranked rightly."""
    return float(np.mean([(1 + math.erf(math.sqrt(z2 / 2))) / 2 for z2 in squares]))
