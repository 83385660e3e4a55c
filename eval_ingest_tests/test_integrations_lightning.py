"""Evals inside a Lightning training."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from eval_ingest import EvalDataset
from eval_ingest.errors import LoadError, OutdatedError
from eval_ingest.integrations.lightning import EvalCallback, EvalDataModule
from eval_ingest_tests.support.fake_evals import write_fake


class Module(LightningModule):
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(12, 4, 4, stride=4)
        self.modes: list[bool] = []
        self.number, self.automatic_optimization = optimizers, optimizers == 1

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        self.modes.append(self.training and self.layer.training)
        for optimizer in [] if self.number == 1 else self.optimizers():
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(self.parameters(), 0.01) for _ in range(self.number)]
        return made if self.number > 1 else made[0]


def adapter(module: Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
    assert not module.training and not torch.is_grad_enabled()
    image = batch["sentinel2_l2a"].mean(3).permute(0, 3, 1, 2)
    return module.layer(image).permute(0, 2, 3, 1)


def train(
    folder: Path, *callbacks: Any, steps: int = 5, optimizers: int = 1, again: str | None = None,
    **arguments: Any,
) -> Module:  # fmt: skip
    module = Module(optimizers)
    trainer = Trainer(
        **arguments,
        max_steps=steps,
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2 * steps,  # never: it ends before
    )
    data = torch.randn(2 * steps, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    loaders = (DataLoader(data, batch_size=1), DataLoader(data, batch_size=1))
    trainer.fit(module, *loaders, ckpt_path=again)
    if not arguments.get("enable_checkpointing", True):
        trainer.save_checkpoint(folder / "last.ckpt")
    return module


def test_all_splits_of_a_data_module_are_of_one_version(tmp_path: Path) -> None:
    folder = write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2), version="one")
    data = EvalDataModule("crops", root=tmp_path)
    assert data.dataset("train").metadata.fingerprint == "one"
    folder.rename(tmp_path / ".old")
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2), version="two")
    with pytest.raises(OutdatedError, match=r"of version two, .* not 'one'"):
        data.dataset("val")


def scored_steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as stream:
        return [int(row["step"]) for row in csv.DictReader(stream) if row["eval/crops/miou"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_fake(root, "crops", "segmentation", counts=(20, 8, 8))
    return root


def test_scores_are_logged_every_n_steps_and_can_be_monitored(root: Path, tmp_path: Path) -> None:
    evals = EvalCallback("crops", 2, adapter=adapter, root=root, normalize="dataset")
    best = ModelCheckpoint(
        tmp_path / "best", monitor="eval/crops/miou", mode="max", every_n_train_steps=2
    )
    module = train(tmp_path, evals, best)
    assert scored_steps(tmp_path) == [2, 4, 5]  # and at the end
    assert evals.last is not None and 0 <= evals.last["crops"].metrics["miou"] <= 1
    assert module.modes and all(module.modes)  # training goes on in training mode
    assert best.best_model_score is not None
    assert evals.last is not None and evals.last.names == ["crops"]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"num_sanity_val_steps": 2, "val_check_interval": 3, "limit_val_batches": 0.5}, [4, 6]),
        ({"accumulate_grad_batches": 2}, [4, 6]),
        # A batch takes three steps: after 3, 6, 9 and 12 of them.
        ({"optimizers": 3, "max_steps": 12}, [6, 9, 12]),
    ],
)
def test_a_score_is_due_after_so_many_steps_however_they_come(
    arguments: dict[str, Any], steps: list[int], root: Path, tmp_path: Path
) -> None:
    evals = EvalCallback("crops", 4, adapter=adapter, root=root, normalize="dataset")
    steps_in_all = arguments.pop("max_steps", 6)
    train(tmp_path, evals, steps=steps_in_all, **arguments)
    assert scored_steps(tmp_path) == steps


@pytest.mark.filterwarnings(
    "ignore:Experiment logs directory", "ignore:You're resuming from a checkpoint"
)
def test_a_training_that_goes_on_is_scored_when_the_next_time_comes(
    root: Path, tmp_path: Path
) -> None:
    for steps, again, expected in ((3, None, [2, 3]), (5, tmp_path / "last.ckpt", [4, 5])):
        evals = EvalCallback("crops", 2, adapter=adapter, root=root, normalize="dataset")
        train(tmp_path, evals, steps=steps, again=again, enable_checkpointing=False)  # type: ignore[arg-type]
        assert scored_steps(tmp_path) == expected


def test_training_is_the_same_with_and_without_evals(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    plain = train(tmp_path / "plain")
    torch.manual_seed(5)
    evals = EvalCallback("crops", 1, adapter=adapter, root=root, normalize="dataset")
    scored = train(tmp_path / "scored", evals)
    for ours, theirs in zip(plain.parameters(), scored.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_between_evals_a_step_does_next_to_nothing(root: Path, tmp_path: Path) -> None:
    class Counted(EvalCallback):
        calls, steps = 0, 0

        def on_train_batch_end(self, *arguments: Any, **more: Any) -> None:
            sys.setprofile(self._count)
            super().on_train_batch_end(*arguments, **more)
            sys.setprofile(None)
            self.steps += 1

        def _count(self, frame: FrameType, event: str, argument: Any) -> None:
            self.calls += event in ("call", "c_call")

    evals = Counted("crops", 10_000, adapter=adapter, root=root, at_end=False)
    train(tmp_path, evals, steps=60)
    assert evals.steps == 60 and evals.last is None
    assert 60 <= evals.calls <= 60 * 16, evals.calls


def test_an_interval_must_be_one() -> None:
    with pytest.raises(LoadError, match="every_n_steps is 0"):
        EvalCallback("crops", 0)


def test_a_datamodule_hands_out_the_splits(ingested: Callable[[str], Path]) -> None:
    root = ingested("segmentation")
    data = EvalDataModule(
        "segmentation", 4, train={"max_samples": 6, "crop": "random"}, root=root, normalize=None
    )
    assert [len(batch["window"]) for batch in data.train_dataloader()] == [4, 2]
    for split, loader in (
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ):
        wanted = EvalDataset("segmentation", split, root=root)
        windows = [window for batch in loader for window in batch["window"]]
        assert windows == [wanted.window(i) for i in range(len(wanted))]
