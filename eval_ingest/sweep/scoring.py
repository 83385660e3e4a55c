"""One encoder on datasets: embedded splits, probes on them, and the rows of scores.

Which encoders meet which datasets, and what becomes of the rows, is for run.py and evaluate.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eval_ingest.core.entry import Metadata
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import TaskKind
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import EvalIngestError, OutdatedError, SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.report.terminal import plural
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep import embed, probes
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.module import Adapter, encoder_of
from eval_ingest.sweep.encoders.registry import load_encoder
from eval_ingest.sweep.metrics import LOWER_IS_BETTER, number, primary_metric
from eval_ingest.sweep.probes import Probed, run_knn, run_linear
from eval_ingest.sweep.ranking import MAX_RANKED
from eval_ingest.sweep.ranks import Ranks
from eval_ingest.sweep.results import (
    ROW_VERSION,
    ClassScore,
    Failure,
    ResultTable,
    Row,
    read_row,
    write_row,
)
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.splits import Case, OpenSplits, Splits, require_windows
from eval_ingest.sweep.suite import Suite, settings_of

Tell = Callable[[str], None]


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; by default a GPU if there is one.

    Raises:
        SweepError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # nothing comes back from the device "meta"
    except (RuntimeError, AssertionError) as error:
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu alone"
        raise SweepError(f"no device {name!r} here: there is {there}") from error
    return device


@dataclass(frozen=True)
class Encoders:
    """A model, or the name of one, as an encoder for each dataset's settings."""

    model: Any
    suite: Suite
    device: torch.device
    adapter: Adapter | None = None
    loaded: dict[int, Encoder] = field(default_factory=dict)
    """By patch size."""

    def of(self, settings: EvalSettings) -> Encoder:
        """The encoder for a dataset with these settings."""
        size = self.suite.patch_size_for(settings)
        if size not in self.loaded:
            self.loaded[size] = self.suite.normalised(self._load(size))
        return self.loaded[size]

    def _load(self, patch_size: int) -> Encoder:
        if not isinstance(self.model, str):
            found: Encoder = encoder_of(self.model, self.adapter, patch_size, self.device)
            return found
        if self.adapter is not None:
            raise SweepError(f"{self.model!r} is an encoder by name, which needs no adapter")
        return load_encoder(self.model, patch_size, self.device)


@dataclass(frozen=True)
class Scorer:
    """Scores an encoder on datasets."""

    suite: Suite
    root: EvalRoot
    encoders: Encoders
    embed: Callable[[EvalDataset, Encoder, str], Embedded]
    """Embeds a split, pooled so."""
    catalog: Callable[[], Mapping[str, DatasetSpec]]
    """Says how datasets are scored that don't say it themselves."""
    out: Path | None = None
    """Where rows are kept."""
    resume: bool = False
    """Rows that are there are not made again, and all of train is embedded, for other rows too."""
    unnamed: Sequence[Row] = ()
    """Kept rows that don't say their setup, as those of version 1."""
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = no_progress
    tell: Tell = lambda text: None

    def datasets(self, raising: bool = False) -> ResultTable:
        """The rows of every dataset; one that can't be scored is a failure, unless it raises."""
        table, encoder = ResultTable([], 0), self.encoders.of(EvalSettings()).name
        for name in self.suite.datasets:
            try:
                table += self.dataset(name)
            except EvalIngestError as error:
                if raising:
                    raise
                table.failures.append(Failure(encoder, name, str(error)))
                self.tell(f"{name}, {encoder}: failed: {str(error).removeprefix(f'{name}: ')}")
        return table

    def dataset(self, name: str) -> ResultTable:
        """The rows of a dataset, one for each label fraction and seed, all of one version.

        Raises:
            EvalIngestError: it can't be scored.
        """
        try:
            return self._rows_of(name)
        except OutdatedError:  # ingested anew meanwhile: the new version is scored
            return self._rows_of(name)

    def _rows_of(self, name: str) -> ResultTable:
        # All ranks score the version that the first one finds.
        metadata, settings = self.ranks.from_first(lambda: self._looked_up(name))
        scored, cases = self.ranks.agreed(lambda: self._asked_for(metadata, settings))
        encoder = scored.encoder
        kept: dict[str, Row | None] = dict.fromkeys(cases)
        if self.resume and self.out is not None:
            self._name_setup(self.out, scored)
            kept = {key: read_row(self.out, key) for key in kept}
        missing = [key for key in cases if kept[key] is None]
        if missing:
            opened = self.ranks.agreed(lambda: scored.opened(list(cases.values())))
            pooling = settings.pooling or "mean"
            made = opened.embedded(lambda dataset: self.embed(dataset, encoder, pooling))

            def probed() -> list[Row]:
                splits = Splits.of(opened, made)
                return [self._kept(scored.row(key, *cases[key], splits)) for key in missing]

            new = self.ranks.from_first(probed)
            kept |= {row.key: row for row in new}
        else:
            self.tell(f"{name}, {encoder.name}: up to date, nothing to do")
        return ResultTable([row for row in kept.values() if row is not None], len(missing))

    def _looked_up(self, name: str) -> tuple[Metadata, EvalSettings]:
        metadata = require_metadata(self.root, name)
        return metadata, settings_of(name, metadata.spec.eval, self.catalog)

    def _asked_for(
        self, metadata: Metadata, settings: EvalSettings
    ) -> "tuple[_Scored, dict[str, Case]]":
        """What is to be scored, and the cases by their rows' keys."""
        encoder = self.encoders.of(settings)
        scored = _Scored(self, encoder, metadata, settings, self._probe(metadata, settings))
        require_windows(metadata, self.suite.split)
        return scored, {
            scored.key(fraction, seed): (fraction, seed)
            for fraction in _label_fractions(metadata, self.suite.label_fractions)
            for seed in self.suite.seeds
        }

    def _name_setup(self, out: Path, scored: "_Scored") -> None:
        """Rows of version 1 of this setup, which their keys tell, now say so: all seeds of it."""
        for row in self.unnamed:
            if row.key == scored.key(row.label_fraction, row.seed):
                named = row.model_copy(update={"version": ROW_VERSION, "setup": scored.setup})
                write_row(out, named)

    def _kept(self, row: Row) -> Row:
        if self.out is not None:
            write_row(self.out, row)
        self.tell(_line(row))
        return row

    def _probe(self, metadata: Metadata, settings: EvalSettings) -> str:
        """`knn` or `linear`: what is asked for, else what the dataset's settings say."""
        kind, asked = metadata.config.task.kind, self.suite.probe
        usual = "knn" if kind is TaskKind.CLASSIFICATION else "linear"
        probe = asked if asked != "auto" else settings.probe or usual
        if probe == "knn" and kind is not TaskKind.CLASSIFICATION:
            cure = "say --probe linear" if asked == "auto" else "say --probe auto or linear"
            raise SweepError(
                f"{metadata.name} is a {kind}; the knn probe is for classification, {cure}"
            )
        return probe


@dataclass(frozen=True)
class _Scored:
    """A dataset that an encoder is being scored on."""

    scorer: Scorer
    encoder: Encoder
    metadata: Metadata
    settings: EvalSettings
    probe: str

    @cached_property
    def setup(self) -> str:
        """See Row."""
        if not self.scorer.resume:  # a model that is being trained is another one each time
            return str(time.time_ns())
        return self._fingerprint()

    def key(self, fraction: float, seed: int) -> str:
        """Of the row that is to be."""
        if not self.scorer.resume:
            return f"{self.metadata.name}-{fraction:g}-{seed}-{self.setup}"
        return self._fingerprint(fraction, seed)

    def _fingerprint(self, *case: float) -> str:
        encoder, metadata, suite = self.encoder, self.metadata, self.scorer.suite
        return fingerprint(
            "sweep_row", probes.VERSION, embed.VERSION, encoder.name, encoder.fingerprint,
            encoder.patch_size, encoder.normalize, encoder.method, metadata.name,
            metadata.fingerprint, suite.split, self.probe, *case, self.settings.given,
            suite.max_train_samples,
        )  # fmt: skip

    def opened(self, cases: Sequence[Case]) -> OpenSplits:
        """Its splits: of train what is drawn; all where rows are resumed, for other rows too."""
        scorer, suite = self.scorer, self.scorer.suite
        return OpenSplits.of(
            scorer.root.address, self.metadata, suite.split, self.encoder,
            None if scorer.resume else cases, suite.max_train_samples,
        )  # fmt: skip

    def row(self, key: str, fraction: float, seed: int, splits: Splits) -> Row:
        """Probe it."""
        started = time.monotonic()
        device = self.scorer.encoders.device
        encoder, metadata = self.encoder, self.metadata
        self.scorer.progress(f"probing {encoder.name} on {metadata.name}", 0, 0)
        windows = splits.train_windows(fraction, seed, self.scorer.suite.max_train_samples)
        train, val, notes = splits.train_and_val(windows, seed)
        task = metadata.config.task
        wanted = self.settings.pooling or "mean"
        if not task.kind.per_pixel and wanted != splits.embedded.pooling:
            notes.append(f"its settings say pooling {wanted}; the encoder pools by itself")
        with torch.autocast(device.type, enabled=False):
            probed = self._probed(seed, (train, val, splits.test), notes)
        metric, (low, high) = probed.test.metric, probed.test.interval()
        if task.kind.has_classes and probed.test.ranked is None:
            notes.append(f"auroc and prauc are left out of more than {MAX_RANKED:,} labels")
        return Row(
            key=key,
            setup=self.setup,
            dataset=metadata.name,
            dataset_version=metadata.fingerprint,
            task=str(task.kind),
            encoder=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            weights=encoder.weights,
            probe=self.probe,
            split=self.scorer.suite.split,
            label_fraction=fraction,
            seed=seed,
            n_train=len(train),
            n_val=len(val),
            n_test=len(splits.test),
            normalize=encoder.normalize or "none",
            method=encoder.method if encoder.normalize else "none",
            patch_size=encoder.patch_size,
            bands={m.name: list(m.bands) for m in metadata.config.modalities},
            metric=metric,
            lower_is_better=metric in LOWER_IS_BETTER,
            ci_low=number(low),
            ci_high=number(high),
            notes=notes,
            device=device.type,
            seconds=round(time.monotonic() - started, 3),
            embed_seconds=round(splits.seconds, 3),
            finished_at=datetime.now(UTC).isoformat(),
            **_scores(probed, [known.name for known in task.classes]),
        )

    def _probed(self, seed: int, rows: tuple[Rows, Rows, Rows], notes: list[str]) -> Probed:
        """What the probe finds by train, val and test; notes tell how it differs from theirs."""
        task, given, device = self.metadata.config.task, self.settings, self.scorer.encoders.device
        metric = primary_metric(task, given)
        if self.probe == "knn":
            return run_knn(task, *rows, device, metric)
        rates = tuple(dict.fromkeys((*probes.LEARNING_RATES, *given.learning_rates)))
        notes.append(
            f"{len(rates)} learning rates trained side by side, in float32; rate and epoch are "
            "chosen on val, for the val score too"
        )
        if given.probe_type == "attnpool":
            notes.append("its settings say attnpool; a linear layer was trained instead")
        return run_linear(
            task, *rows, device, seed,
            learning_rates=rates,
            epochs=given.epochs or probes.EPOCHS,
            metric=metric,
            upsampled=given.probe_type in ("interpolate_linear", "bilinear_conv"),
            dice=given.dice_loss,
            batch_size=given.probe_batch_size or probes.WINDOWS_PER_BATCH,
        )  # fmt: skip


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


def _label_fractions(metadata: Metadata, given: Sequence[float | str]) -> list[float]:
    """Shares of the train windows, smallest first; names are looked up in the dataset's spec."""
    named = metadata.spec.label_fractions
    unknown = [name for name in given if isinstance(name, str) and name not in named]
    if unknown:
        raise SweepError(
            f"{metadata.name}: no label fraction {unknown[0]!r}; its spec names "
            f"{', '.join(named) or 'none'} (label_fractions); or give a share such as 0.1 or 10%"
        )
    return sorted({named[part] if isinstance(part, str) else part for part in given})


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
