"""One encoder on one dataset: its embedded splits, a probe on them, and the row of scores.

Which encoders meet which datasets, and what is kept, is for run.py and evaluate.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.task import TaskKind
from eval_ingest.engine import Progress
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.metrics import LOWER_IS_BETTER, primary_metric
from eval_ingest.sweep.probes import LEARNING_RATES, Probed, Rows, run_knn, run_linear
from eval_ingest.sweep.ranking import MAX_RANKED
from eval_ingest.sweep.results import ClassScore, Row, number

HELD_OUT = 0.2
"""Where a dataset has no val split, this part of the train windows stands for it."""


@dataclass(frozen=True)
class Case:
    """One row to be."""

    label_fraction: float
    seed: int
    key: str


@dataclass(frozen=True)
class Scoring:
    """How datasets are scored."""

    root: EvalRoot
    split: str
    """The split that is scored."""
    probe: str
    """`auto`, `knn` or `linear`."""
    embed: Callable[[EvalDataset, Encoder], Embedded]
    device: torch.device
    progress: Progress

    def probe_of(self, metadata: Metadata) -> str:
        """`knn` or `linear`: what is asked for, else what the dataset's settings say.

        Raises:
            SweepError: it isn't for this task.
        """
        kind, given = metadata.config.task.kind, metadata.spec.eval.probe
        usual = "knn" if kind is TaskKind.CLASSIFICATION else "linear"
        probe = self.probe if self.probe != "auto" else given or usual
        if probe == "knn" and kind is not TaskKind.CLASSIFICATION:
            cure = "say --probe linear" if self.probe == "auto" else "say --probe auto or linear"
            raise SweepError(
                f"{metadata.name} is a {kind}; the knn probe is for classification, {cure}"
            )
        return probe

    def row(
        self, encoder: Encoder, metadata: Metadata, probe: str, splits: "Splits", case: "Case"
    ) -> Row:
        """Probe an embedded dataset."""
        started = time.monotonic()
        self.progress(f"probing {encoder.name} on {metadata.name}", 0, 0)
        windows = splits.train_windows(case)
        train, val, notes = splits.train_and_val(windows, case)
        task, test, settings = metadata.config.task, splits.test, metadata.spec.eval
        metric = primary_metric(task, settings)
        if probe == "knn":
            probed = run_knn(task, train, val, test, self.device, metric)
        else:
            upsampled = settings.probe_type in ("interpolate_linear", "bilinear_conv")
            probed = run_linear(
                task, train, val, test, self.device, case.seed, metric=metric, upsampled=upsampled
            )
            notes += _differences(settings)
        low, high = probed.test.interval()
        if task.kind.has_classes and probed.test.ranked is None:
            notes.append(f"auroc and prauc are left out of more than {MAX_RANKED:,} labels")
        return Row(
            key=case.key,
            dataset=metadata.name,
            dataset_version=metadata.fingerprint,
            task=str(task.kind),
            encoder=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            weights=encoder.weights,
            probe=probe,
            split=self.split,
            label_fraction=case.label_fraction,
            seed=case.seed,
            n_train=len(train),
            n_val=len(val),
            n_test=len(test),
            normalize=encoder.normalize or "none",
            method=encoder.method if encoder.normalize else "none",
            patch_size=encoder.patch_size,
            bands={m.name: list(m.bands) for m in metadata.config.modalities},
            metric=metric,
            lower_is_better=metric in LOWER_IS_BETTER,
            ci_low=number(low),
            ci_high=number(high),
            notes=notes,
            device=self.device.type,
            seconds=round(time.monotonic() - started, 3),
            embed_seconds=round(splits.seconds, 3),
            finished_at=datetime.now(UTC).isoformat(),
            **_scores(probed, [known.name for known in task.classes]),
        )


def _differences(settings: EvalSettings) -> list[str]:
    """How a linear probe differs on purpose from that of the existing OlmoEarth eval code."""
    notes = [
        f"{len(LEARNING_RATES)} learning rates trained side by side; rate and epoch are chosen on "
        "val, for the val score too"
    ]
    if settings.probe_type == "attnpool":
        notes.append("its settings say attnpool; a linear layer was trained instead")
    if settings.dice_loss:
        notes.append("its settings say dice_loss; cross-entropy was used instead")
    return notes


def _scores(probed: Probed, classes: list[str]) -> dict[str, Any]:
    scores = {name: number(value) for name, value in probed.test.scores().items()}
    confusion = probed.test.confusion
    return {
        "learning_rate": probed.learning_rate,
        "epoch": probed.epoch,
        "val_score": number(probed.val.primary),
        "test_score": number(probed.test.primary),
        "metrics": scores,
        "per_class": [ClassScore(**found) for found in probed.test.per_class(classes)],
        "confusion": None if confusion is None else confusion.tolist(),
    }


def label_fractions(metadata: Metadata, given: Sequence[float | str]) -> list[float]:
    """Shares of the train windows, smallest first; names are looked up in the dataset's spec."""
    named = metadata.spec.label_fractions
    unknown = [name for name in given if isinstance(name, str) and name not in named]
    if unknown:
        raise SweepError(
            f"{metadata.name}: no label fraction {unknown[0]!r}; its spec names "
            f"{', '.join(named) or 'none'} (label_fractions); or give a share such as 0.1 or 10%"
        )
    return sorted({named[part] if isinstance(part, str) else part for part in given})


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
        scoring: "Scoring",
        encoder: Encoder,
        metadata: Metadata,
        drawn: Mapping[str, Any],
        whole: bool = False,
    ) -> "Splits":
        """Embed the splits; of train only what `drawn`, arguments of EvalDataset, says.

        With `whole`, label fractions are still to be drawn from what is embedded.
        """

        def opened(split: str) -> EvalDataset:
            return EvalDataset(
                metadata.name,
                split,
                root=scoring.root.address,
                normalize=encoder.normalize,
                method=encoder.method,
                nodata=getattr(encoder, "nodata", 0.0),
                **(drawn if split == "train" else {}),
            )

        def embedded(split: str) -> Embedded:
            return scoring.embed(opened(split), encoder)

        split = scoring.split
        made = {"train": embedded("train")}
        for name in ("val", split):
            if name not in made and metadata.splits[name].count:
                made[name] = embedded(name)
        train = opened("train")
        return cls(
            metadata.name,
            scoring.root.address,
            made["train"],
            {train.key(i): i for i in range(len(train))},
            Rows.of(made["val"]) if "val" in made else None,
            Rows.of(made[split]),
            split,
            bool(drawn) and not whole,
            sum(found.seconds for found in made.values()),
        )

    def train_windows(self, case: Case) -> NDArray[np.int64]:
        """Places of the windows that EvalDataset(label_fraction=, seed=) has."""
        if case.label_fraction == 1 or self.drawn:
            return np.arange(len(self.embedded))
        drawn = EvalDataset(
            self.name,
            "train",
            root=self.root,
            normalize=None,
            label_fraction=case.label_fraction,
            seed=case.seed,
        )
        keys = [drawn.key(i) for i in range(len(drawn))]
        return np.array([self.place[key] for key in keys if key in self.place], np.int64)

    def train_and_val(self, samples: NDArray[np.int64], case: Case) -> tuple[Rows, Rows, list[str]]:
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
        order = np.random.default_rng(case.seed).permutation(windows)
        notes.append(f"no val split: chosen on {held} train windows held out")
        # A window's crops stay together, in the order of the windows.
        place = np.argsort(order)[np.searchsorted(np.sort(order), window)]
        ordered, last = samples[np.argsort(place, kind="stable")], int((place < held).sum())
        return Rows.of(self.embedded, ordered[last:]), Rows.of(self.embedded, ordered[:last]), notes
