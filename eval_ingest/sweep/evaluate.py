"""`evaluate`: scores of a model on registered datasets, from inside its training.

Nothing is written unless asked, and the model is afterwards as it was. The same datasets, probes
and metrics as in a sweep (run.py), which is for many encoders and keeps what it found.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from eval_ingest.core.entry import Metadata
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError, SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.settings import Settings
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep.embed import Embedded, EmbeddedBatch, embedded_batches, joined
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.module import Adapter, encoder_of, undisturbed
from eval_ingest.sweep.encoders.registry import load_encoder
from eval_ingest.sweep.plan import ALL, SweepPlan
from eval_ingest.sweep.ranks import Ranks, ranks
from eval_ingest.sweep.results import Failure, Row, write_row, write_tables
from eval_ingest.sweep.run import choose_device
from eval_ingest.sweep.scoring import Case, Scoring, Splits, label_fractions, require_windows
from eval_ingest.sweep.suite import Suite

_COLUMNS = ("dataset", "metric", "score", "95% interval", "train", "scored", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """Scores by dataset; printed, a table."""

    rows: list[Row]
    """One per dataset, in the order in which they were asked for."""
    failures: list[Failure] = field(default_factory=list)
    """Datasets that couldn't be scored, and why."""
    seconds: float = 0.0
    """What all of it took."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, dataset: str) -> Row:
        for row in self.rows:
            if row.dataset == dataset:
                return row
        raise KeyError(f"no scores of {dataset!r}; there are {', '.join(self.names) or 'none'}")

    @property
    def names(self) -> list[str]:
        """The datasets that were scored."""
        return [row.dataset for row in self.rows]

    def scores(self, prefix: str = "eval") -> dict[str, float]:
        """Every metric by `prefix/dataset/metric`, and the seconds, for a trainer's logger."""
        found: dict[str, float] = {}
        for row in self.rows:
            name = f"{prefix}/{row.dataset}{_case_of(row)}"
            scores = {key: value for key, value in row.metrics.items() if value is not None}
            found |= {f"{name}/{key}": value for key, value in scores.items()}
            found[f"{name}/seconds"] = _seconds(row)
        return {**found, f"{prefix}/seconds": self.seconds}

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [_COLUMNS]
        cells += [_cells(row) for row in self.rows]
        cells += [(f.dataset, "failed", f.message, "", "", "", "") for f in self.failures]
        widths = [
            max(len(row[k]) for row in cells if row[1] != "failed") for k in range(len(_COLUMNS))
        ]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join(lines)


def evaluate(
    model: Any,
    datasets: str | Path | Sequence[str] | Suite = ALL,
    *,
    split: Literal["train", "val", "test"] | None = None,
    adapter: Adapter | None = None,
    root: str | Path | None = None,
    label_fraction: float | str | None = None,
    seed: int | None = None,
    max_train_samples: int | None = None,
    probe: Literal["auto", "knn", "linear"] | None = None,
    patch_size: int | None = None,
    normalize: Literal["dataset", "pretrained", "none"] | None = None,
    method: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Score a model on registered datasets: embed, train a probe on train, score a split.

        scores = evaluate(model, ["tolbi_crops"], adapter=lambda m, batch, dataset: m(batch))
        logger.log(scores.scores())

    Under torch.distributed, every rank calls it alike: batches are shared out, the probe is trained
    on rank 0, and all get the same scores, equal to those of one rank. The model's mode, gradients
    and the random states are afterwards as they were.

    Args:
        model: an nn.Module, an Encoder, the name of one (`pixels`, `olmoearth:nano@random`), or
            `module:factory`. OlmoEarth's models need no adapter.
        datasets: names, "all" for every dataset under the root, a Suite, or the path of one (a
            name that ends in .yaml); arguments win over what a suite says.
        split: the split that is scored, default val; the probe is trained on train and chosen on
            val.
        adapter: `adapter(model, batch, dataset)` gives patches (B, h, w, D) or pooled (B, D).
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        label_fraction: share of the train windows, or a name that the dataset gives to one.
        seed: draws train windows, and starts the probe; default 42.
        max_train_samples: at most so many train windows are embedded and trained on.
        probe: "auto" is what a dataset's settings say, else kNN for window classification, and a
            linear probe for all else.
        patch_size: pixels per side of a patch; default what a dataset's settings say, else 4.
        normalize: "pretrained" (the default for modules), "dataset" or "none": see EvalDataset.
        method: see EvalDataset; default norm_no_clip_2_std.
        batch_size: windows per batch; default what makes some tens of MiB of pixels.
        device: where the model is; default that of its parameters, else a GPU if there is one.
        dtype: autocast to this type, such as torch.bfloat16.
        out: also keep the rows there, as a sweep does; nothing is written by default.

    Raises:
        SweepError: no dataset, or the model can't be used.
        UnknownDatasetError: no such dataset; names the near ones.
    """
    started = time.monotonic()
    suite = _suite(
        datasets,
        split=split,
        label_fractions=None if label_fraction is None else (label_fraction,),
        seeds=None if seed is None else (seed,),
        max_train_samples=max_train_samples,
        probe=probe,
        patch_size=patch_size,
        normalize=normalize,
        method=method,
    )
    eval_root = open_root(Settings.load(), root)
    # The plan's check of names and values; its encoder is the model.
    plan = suite.model_copy(update={"encoders": ("pixels",)}).plan(Path(out or "."))
    plan = plan.checked(eval_root)
    there = _device_of(model, device)
    encoders = _Encoders(model, adapter, plan, there)
    encoder = encoders.of(EvalSettings())
    precision = torch.autocast(there.type, dtype) if dtype else nullcontext()
    found = Evaluation([])
    with ranks() as together, undisturbed(model, there), precision:
        run = _Run(encoders, plan, suite.max_train_samples, batch_size, together, out is not None)
        scoring = Scoring(eval_root, plan.split, plan.probe, run.embed, there, no_progress)
        for name in plan.datasets:
            try:
                found.rows.extend(run.score(scoring, name))
            except EvalIngestError as error:
                if len(plan.datasets) == 1:
                    raise
                found.failures.append(Failure(encoder.name, name, str(error)))
        if out is not None and together.rank == 0:
            write_tables(plan.out, found.rows)
    return Evaluation(found.rows, found.failures, time.monotonic() - started)


@dataclass(frozen=True)
class _Run:
    """An evaluation that is going on."""

    encoders: "_Encoders"
    plan: SweepPlan
    max_train_samples: int | None
    batch_size: int | None
    ranks: Ranks
    keep: bool

    def score(self, scoring: Scoring, name: str) -> list[Row]:
        """The scores on one dataset, one for each label fraction and seed."""
        metadata = require_metadata(scoring.root, name)
        encoder = self.encoders.of(metadata.spec.eval)
        probe = scoring.probe_of(metadata)
        require_windows(metadata, self.plan.split)
        fractions = label_fractions(metadata, self.plan.label_fractions)
        cases = [Case(fraction, seed, "") for fraction in fractions for seed in self.plan.seeds]
        # One draw alone needs no other train windows; several are drawn from all that are embedded.
        drawn = self._drawn(cases[0]) if len(cases) == 1 else self._drawn(Case(1.0, 42, ""))
        splits = Splits.of(scoring, encoder, metadata, drawn, whole=len(cases) > 1)
        return self.ranks.from_first(
            lambda: [self._row(scoring, encoder, metadata, probe, splits, case) for case in cases]
        )

    def _row(
        self,
        scoring: Scoring,
        encoder: Encoder,
        metadata: Metadata,
        probe: str,
        splits: Splits,
        case: Case,
    ) -> Row:
        with torch.set_grad_enabled(True), torch.autocast(scoring.device.type, enabled=False):
            row = scoring.row(encoder, metadata, probe, splits, case)
        if self.keep:
            row = row.model_copy(update={"key": f"{row.dataset}-{time.time_ns()}"})
            write_row(self.plan.out, row)
        return row

    def _drawn(self, case: Case) -> dict[str, Any]:
        return {
            "label_fraction": case.label_fraction,
            "seed": case.seed,
            "max_samples": self.max_train_samples,
        }

    def embed(self, dataset: EvalDataset, encoder: Encoder) -> Embedded:
        """A split's embeddings on rank 0; empty ones elsewhere, where no probe is trained."""
        started = time.monotonic()

        def share() -> list[EmbeddedBatch]:
            return list(
                embedded_batches(
                    dataset, encoder, batch_size=self.batch_size, shard=self.ranks.shard
                )
            )

        batches = self.ranks.interleaved(share)
        return joined(batches, dataset, time.monotonic() - started)


@dataclass(frozen=True)
class _Encoders:
    """The model as an encoder, for each patch size that datasets ask for."""

    model: Any
    adapter: Adapter | None
    plan: SweepPlan
    device: torch.device
    loaded: dict[int, Encoder] = field(default_factory=dict)

    def of(self, settings: EvalSettings) -> Encoder:
        """The encoder for a dataset with these settings."""
        size = self.plan.patch_size_for(settings)
        if size not in self.loaded:
            self.loaded[size] = self.plan.normalised(self._load(size))
        return self.loaded[size]

    def _load(self, patch_size: int) -> Encoder:
        if not isinstance(self.model, str):
            found: Encoder = encoder_of(self.model, self.adapter, patch_size, self.device)
            return found
        if self.adapter is not None:
            raise SweepError(f"{self.model!r} is an encoder by name, which needs no adapter")
        return load_encoder(self.model, patch_size, self.device)


def _suite(datasets: str | Path | Sequence[str] | Suite, **given: Any) -> Suite:
    """The suite that is meant, with what arguments say otherwise."""
    if isinstance(datasets, Suite):
        suite = datasets
    elif isinstance(datasets, Path) or str(datasets).endswith((".yaml", ".yml")):
        suite = Suite.load(str(datasets))
    else:
        names = (datasets,) if isinstance(datasets, str) else tuple(datasets)
        suite = Suite(datasets=names, split="val")
    return suite.model_copy(update={k: v for k, v in given.items() if v is not None})


def _case_of(row: Row) -> str:
    """What tells a row from others of its dataset; empty for all labels and the usual seed."""
    share = "" if row.label_fraction == 1 else f"@{row.label_fraction:g}"
    return share if row.seed == 42 else f"{share}#{row.seed}"


def _device_of(model: Any, given: str | torch.device | None) -> torch.device:
    if given is not None:
        return choose_device(str(given))
    parameters: Callable[[], Iterator[torch.Tensor]] | None = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return choose_device() if first is None else first.device


def _seconds(row: Row) -> float:
    return round(row.seconds + row.embed_seconds, 3)


def _cells(row: Row) -> tuple[str, ...]:
    score = "-" if row.test_score is None else f"{row.test_score:.4g}"
    known = row.ci_low is not None and row.ci_high is not None
    interval = f"{row.ci_low:.4g} to {row.ci_high:.4g}" if known else "-"
    counts = str(row.n_train), str(row.n_test)
    return (row.dataset, row.metric, score, interval, *counts, f"{_seconds(row):.1f}")
