"""`evaluate`: scores of a model on registered datasets, from inside its training.

Nothing is written unless asked, and the model is afterwards as it was. The same datasets, probes
and metrics as in a sweep (run.py), which is for many encoders and keeps what it found.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from eval_ingest.core.arguments import check_arguments
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.suite import ALL
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.report.printing import table
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.roots.open import open_root
from eval_ingest.sweep.embed import Embedded, embedded_batches, joined
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.module import Adapter, undisturbed
from eval_ingest.sweep.ranks import Ranks, ranks
from eval_ingest.sweep.results import Failure, Row, readable_rows, write_tables
from eval_ingest.sweep.scoring import Encoders, Scorer, choose_device
from eval_ingest.sweep.suite import Suite, catalog_of

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
        failed = [f"{f.dataset} failed: {f.message}" for f in self.failures]
        return "\n".join([*table(cells, indent=""), *failed])


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

        adapter = lambda m, batch, dataset: m(batch)
        scores = evaluate(model, ["tolbi_crops"], adapter=adapter)
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
        normalize: "dataset", "pretrained" or "none": see EvalDataset. Default: with an adapter
            "dataset", so that batches are those of EvalDataset; OlmoEarth's models "pretrained".
        method: see EvalDataset; default norm_no_clip_2_std.
        batch_size: windows per batch; default what makes some tens of MiB of pixels.
        device: where the model is; default that of its parameters, else a GPU if there is one.
        dtype: autocast to this type, torch.bfloat16 or torch.float16; default that of the model's
            parameters.
        out: also keep the rows there, as a sweep does; nothing is written by default.

    Raises:
        SweepError: no dataset, or the model can't be used.
        UnknownDatasetError: no such dataset; names the near ones.
    """
    started = time.monotonic()
    check_arguments({"root": root} | ({} if out is None else {"out": out}), SweepError)
    if isinstance(model, type):
        raise SweepError(f"{model.__name__} is a class; give what it makes: {model.__name__}(...)")
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise SweepError(f"batch_size is {batch_size!r}; it must be a whole number above 0")
    given = {
        "split": split, "label_fractions": label_fraction, "seeds": seed, "probe": probe,
        "max_train_samples": max_train_samples, "patch_size": patch_size, "normalize": normalize,
        "method": method,
    }  # fmt: skip
    folder = None if out is None else user_path(out)
    with ranks() as together:
        settings = together.agreed(Settings.load)
        eval_root = together.agreed(lambda: open_root(settings, root))
        suite = together.from_first(lambda: _suite(datasets, given).checked(eval_root))
        encoders = together.agreed(lambda: _encoders(model, suite, device, adapter))
        there = encoders.device
        with undisturbed(model, there), _precision(model, there, dtype):
            scorer = Scorer(
                suite, eval_root, encoders, _embedding(together, batch_size), catalog_of(settings),
                folder, ranks=together,
            )  # fmt: skip
            found = scorer.datasets(raising=len(suite.datasets) == 1)
            if folder is not None and found.rows:
                together.from_first(lambda: write_tables(folder, readable_rows(folder)))
    return Evaluation(found.rows, found.failures, time.monotonic() - started)


def _embedding(
    together: Ranks, batch_size: int | None
) -> Callable[[EvalDataset, Encoder, str], Embedded]:
    """What embeds a split in memory: all of it on rank 0, nothing where no probe is trained."""

    def embed(dataset: EvalDataset, encoder: Encoder, pooling: str) -> Embedded:
        started = time.monotonic()
        share = embedded_batches(
            dataset, encoder, batch_size=batch_size, shard=together.shard, pooling=pooling
        )
        batches = together.interleaved(lambda: list(share))
        return together.agreed(lambda: joined(batches, dataset, started))

    return embed


def _encoders(
    model: Any, suite: Suite, device: str | torch.device | None, adapter: Adapter | None
) -> Encoders:
    """The model as encoders; if it can't be used as one, that is told before anything is done."""
    encoders = Encoders(model, suite, _device_of(model, device), adapter)
    encoders.of(EvalSettings())
    return encoders


def _suite(datasets: str | Path | Sequence[str] | Suite, given: Mapping[str, Any]) -> Suite:
    """The suite that is meant, with what arguments say otherwise."""
    if isinstance(datasets, Suite):
        suite = datasets
    elif isinstance(datasets, Path) or str(datasets).endswith((".yaml", ".yml")):
        suite = Suite.load(str(datasets))
    else:
        suite = Suite(split="val").having(datasets=() if datasets is None else datasets)
    return suite.having(**given)


def _case_of(row: Row) -> str:
    """What tells a row from others of its dataset; empty for all labels and the usual seed."""
    share = "" if row.label_fraction == 1 else f"@{row.label_fraction:g}"
    return share if row.seed == 42 else f"{share}#{row.seed}"


def _first_parameter(model: Any) -> torch.Tensor | None:
    parameters: Callable[[], Iterator[torch.Tensor]] | None = getattr(model, "parameters", None)
    return next(iter(parameters()), None) if callable(parameters) else None


def _device_of(model: Any, given: str | torch.device | None) -> torch.device:
    first = _first_parameter(model)
    if given is None and first is not None:
        given = first.device
    return choose_device(None if given is None else str(given))


_HALVES = torch.bfloat16, torch.float16


def _precision(
    model: Any, device: torch.device, dtype: torch.dtype | None
) -> AbstractContextManager[Any]:
    """Autocast to what is asked for, else to the model's own type, where that is a half.

    Raises:
        SweepError: nothing is computed in such a type.
    """
    if dtype not in (None, torch.float32, *_HALVES):
        raise SweepError(
            f"dtype is {dtype!r}; there are torch.bfloat16, torch.float16 and torch.float32"
        )
    first = _first_parameter(model)
    wanted = first.dtype if dtype is None and first is not None else dtype
    return torch.autocast(device.type, wanted) if wanted in _HALVES else nullcontext()


def _seconds(row: Row) -> float:
    return round(row.seconds + row.embed_seconds, 3)


def _cells(row: Row) -> tuple[str, ...]:
    score = "-" if row.test_score is None else f"{row.test_score:.4g}"
    known = row.ci_low is not None and row.ci_high is not None
    interval = f"{row.ci_low:.4g} to {row.ci_high:.4g}" if known else "-"
    counts = str(row.n_train), str(row.n_test)
    return (row.dataset, row.metric, score, interval, *counts, f"{_seconds(row):.1f}")
