"""A dataset's embedded splits, and which of their windows a probe is trained and chosen on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.loading.selection import drawn
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.rows import Rows

HELD_OUT = 0.2
"""Where a dataset has no val split, this part of the train windows stands for it."""


def require_windows(metadata: Metadata, split: str) -> None:
    """Refuse a dataset that no probe can be trained or scored on.

    Raises:
        SweepError: train or the split has no windows.
    """
    counts = {name: found.count for name, found in metadata.splits.items()}
    if not counts.get("train"):
        raise SweepError(
            f"{metadata.name}: the train split has no windows, so no probe can be trained; "
            "check splits in its spec"
        )
    if not counts.get(split):
        others = " or ".join(f"--split {name}" for name in ("test", "val") if counts.get(name))
        raise SweepError(
            f"{metadata.name}: the {split} split has no windows; "
            + (f"say {others}" if others else "check splits in its spec")
        )


Case = tuple[float, int]
"""A label fraction and a seed."""


@dataclass(frozen=True)
class OpenSplits:
    """A dataset's splits, all of one version, as an encoder wants them."""

    datasets: dict[str, EvalDataset]
    """train, val if there is one, and the split that is scored."""
    split: str
    """The one that is scored."""
    total: int
    """Samples of train."""
    rows: NDArray[np.int64] | None
    """Those that are in `datasets`; None: all of them, in order."""

    @classmethod
    def of(
        cls,
        root: str,
        metadata: Metadata,
        split: str,
        encoder: Encoder,
        cases: Sequence[Case] | None = None,
        max_train: int | None = None,
        max_scored: int | None = None,
    ) -> "OpenSplits":
        """Open them, of train only what these cases draw of at most so many; None: all of it.

        Raises:
            EvalIngestError: they can't be opened, or are no longer of this version.
        """

        def opened(name: str) -> EvalDataset:
            return EvalDataset(
                metadata.name,
                name,
                root=root,
                version=metadata.fingerprint,
                normalize=encoder.normalize,
                method=encoder.method,
                nodata=getattr(encoder, "nodata", 0.0),
                max_samples=None if name == "train" else max_scored,
            )

        train = opened("train")
        rows = None
        if cases is not None and split != "train":
            rows = _union(drawn(len(train), share, max_train, seed) for share, seed in cases)
        datasets = {"train": train if rows is None else train[rows]}
        for name in ("val", split):
            if name not in datasets and metadata.splits[name].count:
                datasets[name] = opened(name)
        return cls(datasets, split, len(train), rows)

    def embedded(self, embed: Callable[[EvalDataset], Embedded]) -> dict[str, Embedded]:
        """Each of them."""
        return {name: embed(dataset) for name, dataset in self.datasets.items()}


def _union(draws: Iterable[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """Rows that any of them has, the first ones first; None: all there are."""
    found: dict[int, None] = {}
    for rows in draws:
        if rows is None:
            return None
        found |= dict.fromkeys(rows.tolist())
    return np.array(list(found), np.int64)


@dataclass(frozen=True)
class Splits:
    """A dataset's embedded splits."""

    opened: OpenSplits
    embedded: Embedded
    """train"""
    val: Rows | None
    """None where the dataset has no val split."""
    test: Rows
    """The split that is scored."""
    seconds: float
    """What embedding took."""

    @classmethod
    def of(cls, opened: OpenSplits, made: Mapping[str, Embedded]) -> "Splits":
        """What was made of the opened ones."""
        return cls(
            opened,
            made["train"],
            Rows.of(made["val"]) if "val" in made else None,
            Rows.of(made[opened.split]),
            sum(found.seconds for found in made.values()),
        )

    def train_windows(
        self, label_fraction: float, seed: int, max_samples: int | None = None
    ) -> NDArray[np.int64]:
        """Places of the windows that EvalDataset(label_fraction=, seed=, max_samples=) has."""
        total, there = self.opened.total, self.opened.rows
        wanted = drawn(total, label_fraction, max_samples, seed)
        if wanted is None:
            wanted = np.arange(total)
        if there is None:
            return wanted
        order = np.argsort(there)
        return order[np.searchsorted(there, wanted, sorter=order)]

    def train_and_val(self, samples: NDArray[np.int64], seed: int) -> tuple[Rows, Rows, list[str]]:
        """The rows to train on and to choose on, and what is unusual about them."""
        notes = []
        if self.opened.split in ("train", "val"):
            notes.append(
                f"scored on {self.opened.split}, which the probe has seen or was chosen on"
            )
        if self.val is not None:
            return Rows.of(self.embedded, samples), self.val, notes
        known = self.embedded.windows
        window = samples if known is None else known[samples]
        windows = window[np.sort(np.unique(window, return_index=True)[1])]
        held = int(len(windows) * HELD_OUT)
        if held == 0:
            train = Rows.of(self.embedded, samples)
            notes.append(
                "no val split, and too few train windows to hold some out: chosen on train"
            )
            return train, train, notes
        order = np.random.default_rng(seed).permutation(windows)
        notes.append(f"no val split: chosen on {held} train windows held out")
        # A window's crops stay together, in the order of the windows.
        place = np.argsort(order)[np.searchsorted(np.sort(order), window)]
        ordered, last = samples[np.argsort(place, kind="stable")], int((place < held).sum())
        return Rows.of(self.embedded, ordered[last:]), Rows.of(self.embedded, ordered[:last]), notes
