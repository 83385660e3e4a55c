"""Evals inside a Lightning training, the framework of rslearn's own users.

    trainer = Trainer(callbacks=[EvalCallback("suites/inloop.yaml", every_n_steps=1000)])
    trainer.fit(model, datamodule=EvalDataModule("tolbi_crops"))

How a model is scored is sweep/evaluate.py; when, and where its scores go, is here. What a sample is
stands in loading/dataset.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_ingest.errors import LoadError, optional_part
from eval_ingest.loading.dataset import EvalDataset
from eval_ingest.sweep.encoders.module import Adapter
from eval_ingest.sweep.evaluate import Evaluation, evaluate
from eval_ingest.sweep.suite import Suite

with optional_part("lightning", "what is for Lightning"):
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer


class EvalDataModule(LightningDataModule):
    """An eval dataset's splits for a Lightning Trainer, each for what it is for.

    Batches are dicts as `EvalDataset.loader` makes them.

    Args:
        name: the dataset.
        batch_size: default: chosen by the size of a sample.
        num_workers: default: chosen by where samples come from.
        train: arguments of EvalDataset for train alone, such as label_fraction=0.1, crop="random".
        loader: further arguments of DataLoader, such as pin_memory.
        **arguments: of EvalDataset for all splits, such as normalize, modalities, version.

    >>> data = EvalDataModule("tolbi_crops", train={"label_fraction": 0.1})    # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        batch_size: int | None = None,
        num_workers: int | None = None,
        *,
        train: Mapping[str, Any] | None = None,
        loader: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._dataset, self.batch_size, self.num_workers = name, batch_size, num_workers
        self._train, self._loader, self._arguments = train or {}, loader or {}, arguments

    def dataset(self, split: str) -> EvalDataset:
        """A split as it is loaded, of the version that the first one was of.

        Raises:
            UnknownDatasetError: no such dataset.
            OutdatedError: it was ingested anew since: its splits may be others.
            LoadError: an argument that it can't satisfy.
        """
        own = self._train if split == "train" else {}
        found = EvalDataset(self._dataset, split, **{**self._arguments, **own})
        self._arguments.setdefault("version", found.version)
        return found

    def _dataloader(self, split: str) -> Any:
        return self.dataset(split).loader(self.batch_size, self.num_workers, **self._loader)

    def train_dataloader(self) -> Any:
        """Train, shuffled."""
        return self._dataloader("train")

    def val_dataloader(self) -> Any:
        """Val, in order."""
        return self._dataloader("val")

    def test_dataloader(self) -> Any:
        """Test, in order."""
        return self._dataloader("test")

    def predict_dataloader(self) -> Any:
        """Test, in order: what predictions are asked for of."""
        return self._dataloader("test")


class EvalCallback(Callback):
    """Scores the model every so many steps, and logs through the trainer's loggers.

    Every metric is logged as `prefix/dataset/metric` (wandb, TensorBoard, CSV, ...), and can be
    monitored by that name. On several ranks the windows are shared out. Between evals a step costs
    one comparison.

    Args:
        suite: names of datasets, a Suite, or the path of one in YAML.
        every_n_steps: optimizer steps between evals.
        adapter: `adapter(model, batch, dataset)` gives patches (B, h, w, D) or pooled (B, D);
            needed unless the module, or its `encoder`, is OlmoEarth's.
        at_end: also score when the training ends.
        prefix: of the logged names.
        arguments: further ones of `evaluate`, such as split, max_train_samples, dtype; normalize
            and method as the training's own data has them, where EvalDataModule was given any.
    """

    def __init__(
        self,
        suite: str | Path | Sequence[str] | Suite = "all",
        every_n_steps: int = 1000,
        *,
        adapter: Adapter | None = None,
        at_end: bool = True,
        prefix: str = "eval",
        **arguments: Any,
    ) -> None:
        if every_n_steps < 1:
            raise LoadError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self._suite, self._every = suite, every_n_steps
        self._adapter, self._at_end, self._prefix = adapter, at_end, prefix
        self._arguments = arguments
        self._scored_at = 0
        self.last: Evaluation | None = None
        """What the last eval found."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that goes on from a checkpoint has been scored up to there."""
        self._scored_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Score when it is time: once per step, also where gradients are accumulated.

        A batch may take several steps, one an optimizer, and so pass over a multiple.
        """
        step = trainer.global_step
        if step // self._every > self._scored_at // self._every:
            self._score(trainer, pl_module, step, monitored=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what came out."""
        if self._at_end and trainer.global_step != self._scored_at:
            self._score(trainer, pl_module, trainer.global_step, monitored=False)

    def _score(
        self, trainer: Trainer, pl_module: LightningModule, step: int, monitored: bool
    ) -> None:
        self._scored_at = step
        arguments = {"adapter": self._adapter, "device": pl_module.device, **self._arguments}
        self.last = evaluate(pl_module, self._suite, **arguments)
        scores = self.last.scores(self._prefix)
        if monitored:
            # The loggers are told below, whatever log_every_n_steps is.
            pl_module.log_dict(scores, logger=False, batch_size=1)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(scores, step)
        for failure in self.last.failures:
            trainer.print(f"{failure.dataset}: not scored: {failure.message}")
