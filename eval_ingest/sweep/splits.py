"""A dataset's embedded splits, and which of their windows a probe is trained and chosen on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
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


@dataclass(frozen=True)
class Splits:
    """A dataset's embedded splits."""

    name: str
    root: str
    embedded: Embedded
    """train"""
    place: dict[tuple[str, Any], int]
    """A sample's key to its place in train."""
    val: Rows | None
    """None where the dataset has no val split."""
    test: Rows
    """The split that is scored."""
    split: str
    drawn: bool
    """Only the windows that are trained on are embedded."""
    seconds: float
    """What embedding took."""

    @classmethod
    def of(
        cls,
        root: str,
        metadata: Metadata,
        split: str,
        encoder: Encoder,
        embed: Callable[[EvalDataset, Encoder], Embedded],
        drawn: Mapping[str, Any],
        whole: bool = True,
        scored: Mapping[str, Any] = MappingProxyType({}),
    ) -> "Splits":
        """Embed the splits; of train only what `drawn`, arguments of EvalDataset, says, and of the
        others what `scored` does.

        With `whole`, label fractions are still to be drawn from what is embedded.
        """

        def opened(name: str) -> EvalDataset:
            return EvalDataset(
                metadata.name,
                name,
                root=root,
                normalize=encoder.normalize,
                method=encoder.method,
                nodata=getattr(encoder, "nodata", 0.0),
                **(drawn if name == "train" else scored),
            )

        train = opened("train")
        made = {"train": embed(train, encoder)}
        for name in ("val", split):
            if name not in made and metadata.splits[name].count:
                made[name] = embed(opened(name), encoder)
        return cls(
            metadata.name,
            root,
            made["train"],
            {train.key(i): i for i in range(len(train))},
            Rows.of(made["val"]) if "val" in made else None,
            Rows.of(made[split]),
            split,
            bool(drawn) and not whole,
            sum(found.seconds for found in made.values()),
        )

    def train_windows(
        self, label_fraction: float, seed: int, max_samples: int | None = None
    ) -> NDArray[np.int64]:
        """Places of the windows that EvalDataset(label_fraction=, seed=, max_samples=) has."""
        if self.drawn or (label_fraction == 1 and max_samples is None):
            return np.arange(len(self.embedded))
        drawn = EvalDataset(
            self.name,
            "train",
            root=self.root,
            normalize=None,
            label_fraction=label_fraction,
            seed=seed,
            max_samples=max_samples,
        )
        keys = [drawn.key(i) for i in range(len(drawn))]
        return np.array([self.place[key] for key in keys if key in self.place], np.int64)

    def train_and_val(self, samples: NDArray[np.int64], seed: int) -> tuple[Rows, Rows, list[str]]:
        """The rows to train on and to choose on, and what is unusual about them."""
        notes = []
        if self.split in ("train", "val"):
            notes.append(f"scored on {self.split}, which the probe has seen or was chosen on")
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
