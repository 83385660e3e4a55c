"""Which samples of a split are drawn: label fractions, at random or by class."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.core.index import fifths
from eval_ingest.core.task import Task
from eval_ingest.errors import LoadError, brief


def share_of(given: float | str, metadata: Metadata) -> float:
    """A label fraction as a number: 0.1, "10%", or a name in the spec's label_fractions.

    Raises:
        LoadError: it is none of these, or not in (0, 1].
    """
    named = metadata.spec.label_fractions
    try:
        share = named[given] if isinstance(given, str) and given in named else _number(given)
    except (ValueError, TypeError):
        raise LoadError(
            f"no label_fraction {brief(given, 60)}; {metadata.name} names "
            f"{', '.join(named) or 'none'}; or give a share such as 0.1 or '10%'"
        ) from None
    if not 0 < share <= 1:
        raise LoadError(f"label_fraction is {given}; it must be in (0, 1]")
    return share


def _number(given: float | str) -> float:
    if isinstance(given, str) and given.endswith("%"):
        return float(given[:-1]) / 100
    return float(given)


def drawn(
    total: int,
    share: float,
    most: int | None,
    seed: int,
    strata: Callable[[], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64] | None:
    """The rows of a share of a split, or None for all of them in order.

    Without strata, the first of torch.randperm, as the existing OlmoEarth eval code draws them.
    With strata, of each stratum the first in that order, one of each at first and then in
    proportion. Either way smaller shares are parts of larger ones.

    Args:
        total: rows of the split.
        share: in (0, 1].
        most: at most so many; None: no limit.
        seed: of the order.
        strata: gives a number per row; asked only where not all rows are drawn.

    Raises:
        LoadError: `most` isn't at least 1.
    """
    if most is not None and most < 1:
        raise LoadError(f"max_samples is {most}; it must be at least 1")
    count = min(max(1, int(total * share)), total if most is None else most)
    if share == 1 and count >= total:
        return None
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    if strata is not None:
        found = strata()[order]
        place = np.empty(total)
        for stratum in np.unique(found):
            here = np.flatnonzero(found == stratum)
            place[here] = np.arange(len(here)) / len(here)
        order = order[np.argsort(place, kind="stable")]
    return order[:count]


def strata_of(targets: Iterable[NDArray[Any]], task: Task) -> NDArray[np.int64]:
    """A stratum per sample: its most frequent class, or the fifth of all means that its lies in.

    -1 where a sample has no label.
    """
    if task.kind.has_classes:
        found = []
        for target in targets:
            labels = target[(target >= 0) & (target < task.num_classes)]
            found.append(int(np.bincount(labels.ravel()).argmax()) if labels.size else -1)
        return np.array(found, np.int64)
    return fifths(np.array([_mean(target) for target in targets]))


def _mean(target: NDArray[Any]) -> float:
    known = target[np.isfinite(target)]
    return float(known.mean()) if known.size else float("nan")
