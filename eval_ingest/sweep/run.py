"""Run a plan: embed what isn't in the cache, probe what isn't in the results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.task import TaskKind
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import EvalIngestError, SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.report.terminal import plural
from eval_ingest.settings import Settings
from eval_ingest.store.paths import EvalRoot
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep import embed, probes
from eval_ingest.sweep.embed import Embedded, embed_split, writable
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.registry import load_encoder
from eval_ingest.sweep.metrics import LOWER_IS_BETTER, PRIMARY
from eval_ingest.sweep.plan import SweepPlan
from eval_ingest.sweep.probes import Probed, Rows, run_knn, run_linear
from eval_ingest.sweep.results import (
    ClassScore,
    Failure,
    ResultTable,
    Row,
    number,
    read_row,
    read_rows,
    write_row,
    write_tables,
)

HELD_OUT = 0.2
"""Where a dataset has no val split, this part of the train windows stands for it."""

Tell = Callable[[str], None]


def run_sweep(
    plan: SweepPlan,
    settings: Settings | None = None,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    tell: Tell | None = None,
) -> ResultTable:
    """Score every encoder of the plan on every dataset.

    Rows that are in the results already are not made again, and each new one is kept as soon as
    it is done: so a sweep that was killed goes on where it stopped. An encoder that fails on one
    dataset, or one of several that can't be loaded, is a `Failure` of the table; the sweep goes on
    with the others.

    Args:
        plan: what to score.
        settings: default: the environment's.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        device: `cuda`, `cpu`, ...; default a GPU if there is one.
        progress: called with (what, done, total).
        tell: called with a line about each score, and about what a reader must know.

    Raises:
        SweepError: the plan can't be carried out, or its only encoder can't be loaded.
        UnknownDatasetError: no such dataset.
        StoreError: the results can't be written.
    """
    settings = settings or Settings.load()
    eval_root = open_root(settings, root)
    plan = plan.checked(eval_root)
    writable(plan.out, "say --out FOLDER of yours")
    run = _Run(
        plan,
        eval_root,
        Path(settings.cache).expanduser(),
        choose_device(device),
        progress,
        tell or (lambda text: None),
    )
    table = run.everything()
    if table.rows:
        write_tables(plan.out, read_rows(plan.out))
    return table


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; by default a GPU if there is one.

    Raises:
        SweepError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu alone"
        raise SweepError(f"no device {name!r} here: there is {there}") from error
    return device


@dataclass(frozen=True)
class _Case:
    """One row to be."""

    label_fraction: float
    seed: int
    key: str


@dataclass(frozen=True)
class _Run:
    """A sweep that is going on."""

    plan: SweepPlan
    root: EvalRoot
    cache: Path
    device: torch.device
    progress: Progress
    tell: Tell

    def everything(self) -> ResultTable:
        rows: list[Row] = []
        failures: list[Failure] = []
        computed = 0
        for spec in self.plan.encoders:
            try:
                encoder = self._encoder(spec)
            except SweepError as error:
                if len(self.plan.encoders) == 1:
                    raise
                failures += [Failure(spec, name, str(error)) for name in self.plan.datasets]
                self.tell(f"failed: {error}")
                continue
            if "random" in encoder.weights:
                self.tell(
                    f"{encoder.name}: {encoder.weights}; its scores are no pretrained model's"
                )
            for name in self.plan.datasets:
                try:
                    found, new = self._dataset(encoder, name)
                except EvalIngestError as error:
                    failures.append(Failure(encoder.name, name, str(error)))
                    reason = str(error).removeprefix(f"{name}: ")
                    self.tell(f"{name}, {encoder.name}: failed: {reason}")
                    continue
                rows += found
                computed += new
        return ResultTable(rows, computed, failures)

    def _encoder(self, spec: str) -> Encoder:
        encoder = load_encoder(spec, self.plan.patch_size, self.device)
        if self.plan.normalize is not None:
            encoder.normalize = None if self.plan.normalize == "none" else self.plan.normalize
        if self.plan.method is not None:
            encoder.method = self.plan.method
        return encoder

    def _dataset(self, encoder: Encoder, name: str) -> tuple[list[Row], int]:
        """Rows of an encoder on a dataset, and how many of them are new."""
        metadata = require_metadata(self.root, name)
        probe = self._probe(metadata)
        _require_windows(metadata, self.plan.split)
        cases = [
            _Case(fraction, seed, self._key(encoder, metadata, probe, fraction, seed))
            for fraction in _fractions(metadata, self.plan.label_fractions)
            for seed in self.plan.seeds
        ]
        kept = {case.key: read_row(self.plan.out, case.key) for case in cases}
        missing = [case for case in cases if kept[case.key] is None]
        if missing:
            splits = _Splits.of(self, encoder, metadata)
            for case in missing:
                row = self._row(encoder, metadata, probe, splits, case)
                write_row(self.plan.out, row)
                kept[case.key] = row
                self.tell(_line(row))
        else:
            self.tell(f"{name}, {encoder.name}: up to date, nothing to do")
        return [row for row in kept.values() if row is not None], len(missing)

    def _probe(self, metadata: Metadata) -> str:
        kind = metadata.config.task.kind
        if self.plan.probe == "auto":
            return "knn" if kind is TaskKind.CLASSIFICATION else "linear"
        if self.plan.probe == "knn" and kind is not TaskKind.CLASSIFICATION:
            raise SweepError(
                f"{metadata.name} is a {kind}; the knn probe is for classification, "
                "say --probe auto or linear"
            )
        return self.plan.probe

    def _key(
        self, encoder: Encoder, metadata: Metadata, probe: str, fraction: float, seed: int
    ) -> str:
        return fingerprint(
            "sweep_row", probes.VERSION, embed.VERSION, encoder.name, encoder.fingerprint,
            encoder.patch_size, encoder.normalize, encoder.method, metadata.name,
            metadata.fingerprint, self.plan.split, probe, fraction, seed,
        )  # fmt: skip

    def _row(
        self, encoder: Encoder, metadata: Metadata, probe: str, splits: "_Splits", case: _Case
    ) -> Row:
        started = time.monotonic()
        self.progress(f"probing {encoder.name} on {metadata.name}", 0, 0)
        windows = splits.train_windows(case)
        train, val, notes = splits.train_and_val(windows, case)
        task, test = metadata.config.task, splits.test
        if probe == "knn":
            probed = run_knn(task, train, val, test, self.device)
        else:
            probed = run_linear(task, train, val, test, self.device, case.seed)
        low, high = probed.test.interval()
        metric = PRIMARY[task.kind]
        return Row(
            key=case.key,
            dataset=metadata.name,
            dataset_version=metadata.fingerprint,
            task=str(task.kind),
            encoder=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            weights=encoder.weights,
            probe=probe,
            split=self.plan.split,
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


def _fractions(metadata: Metadata, given: Sequence[float | str]) -> list[float]:
    """Shares of the train windows, smallest first; names are looked up in the dataset's spec."""
    named = metadata.spec.label_fractions
    unknown = [name for name in given if isinstance(name, str) and name not in named]
    if unknown:
        raise SweepError(
            f"{metadata.name}: no label fraction {unknown[0]!r}; its spec names "
            f"{', '.join(named) or 'none'} (label_fractions); or give a share such as 0.1 or 10%"
        )
    return sorted({named[part] if isinstance(part, str) else part for part in given})


def _require_windows(metadata: Metadata, split: str) -> None:
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
class _Splits:
    """A dataset's embedded splits."""

    name: str
    root: str
    embedded: Embedded
    """train"""
    place: dict[tuple[str, Any], int]
    """Window name to its place in train."""
    val: Rows | None
    """None where the dataset has no val split."""
    test: Rows
    """The split that is scored."""
    split: str
    seconds: float
    """What embedding took."""

    @classmethod
    def of(cls, run: _Run, encoder: Encoder, metadata: Metadata) -> "_Splits":
        def opened(split: str) -> EvalDataset:
            return EvalDataset(
                metadata.name,
                split,
                root=run.root.address,
                normalize=encoder.normalize,
                method=encoder.method,
            )

        def embedded(split: str) -> Embedded:
            return embed_split(opened(split), encoder, run.cache, run.progress)

        split = run.plan.split
        made = {"train": embedded("train")}
        for name in ("val", split):
            if name not in made and metadata.splits[name].count:
                made[name] = embedded(name)
        train = opened("train")
        return cls(
            metadata.name,
            run.root.address,
            made["train"],
            {train.key(i): i for i in range(len(train))},
            Rows.of(made["val"]) if "val" in made else None,
            Rows.of(made[split]),
            split,
            sum(found.seconds for found in made.values()),
        )

    def train_windows(self, case: _Case) -> NDArray[np.int64]:
        """Places of the windows that EvalDataset(label_fraction=, seed=) has."""
        if case.label_fraction == 1:
            return np.arange(len(self.embedded))
        drawn = EvalDataset(
            self.name,
            "train",
            root=self.root,
            normalize=None,
            label_fraction=case.label_fraction,
            seed=case.seed,
        )
        return np.array([self.place[drawn.key(i)] for i in range(len(drawn))], np.int64)

    def train_and_val(
        self, samples: NDArray[np.int64], case: _Case
    ) -> tuple[Rows, Rows, list[str]]:
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


def _line(row: Row) -> str:
    score = "no score" if row.test_score is None else f"{row.metric} {row.test_score:.4g}"
    if row.ci_low is not None and row.ci_high is not None:
        score += f" [{row.ci_low:.4g}, {row.ci_high:.4g}]"
    chosen = row.probe if row.learning_rate is None else f"{row.probe}, lr {row.learning_rate:g}"
    text = (
        f"{row.dataset}, {row.encoder}: {score} on {row.split}; "
        f"{plural(row.n_train, 'train window')} ({100 * row.label_fraction:.4g}%), "
        f"seed {row.seed}, {chosen}, {row.seconds:.1f} s"
    )
    return "; ".join([text, *row.notes])
