"""How a dataset is to be scored, where that isn't as its kind of task usually is.

Values alone; `sweep/tasks.py` and sweeps read them. The names are those of the existing OlmoEarth
eval code (olmoearth-pretrain 0.1.2).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eval_ingest.core.task import TaskKind

Metric = Literal[
    "accuracy", "f1", "class_f1", "micro_f1", "auroc", "prauc", "micro_map", "miou", "overall_acc",
    "macro_acc", "macro_f1", "mae", "rmse", "neg_rmse", "r2",
]  # fmt: skip
PRIMARY_METRICS: dict[TaskKind, Metric] = {
    TaskKind.SEGMENTATION: "miou",
    TaskKind.CLASSIFICATION: "accuracy",
    TaskKind.REGRESSION: "rmse",
    TaskKind.SCALAR_REGRESSION: "rmse",
}
"""What is told first of a kind of task, where nothing else is said."""


class EvalSettings(BaseModel):
    """What an evaluation needs beyond the data; None: as its kind of task usually is."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    primary_metric: Metric | None = None
    primary_metric_class: int | None = Field(default=None, ge=0)
    """class_f1: of which class."""
    pooling: Literal["mean", "max", "center"] | None = None
    """How an image's tokens become one vector; center: the token in the middle alone."""
    probe: Literal["knn", "linear"] | None = None
    """Default: kNN for classes of windows, linear for all else."""
    probe_type: Literal["linear", "attnpool", "interpolate_linear", "bilinear_conv"] | None = None
    """The head of a linear probe."""
    learning_rates: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """The trainer's tasks take the first; sweeps try their own, all at once."""
    patch_size: int | None = Field(default=None, ge=1)
    """Pixels; a window's side must divide by it."""
    epochs: int | None = Field(default=None, ge=1)
    dice_loss: bool = False
    """Segmentation: a weighted dice loss in the place of cross-entropy."""
    embedding_batch_size: int | None = Field(default=None, ge=1)
    probe_batch_size: int | None = Field(default=None, ge=1)
    num_workers: int | None = Field(default=None, ge=0)
    inputs: tuple[tuple[str, ...], ...] = ()
    """One evaluation each: the modalities that it reads. Default: one, with all of them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.primary_metric == "class_f1") != (self.primary_metric_class is not None):
            raise ValueError("primary_metric: class_f1 and primary_metric_class go together")
        if self.probe == "knn" and self.learning_rates:
            raise ValueError("learning_rates are of a linear probe, and probe is knn")
        if not all(self.inputs):
            raise ValueError("inputs: each needs a modality")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The fields that say something."""
        return self.model_dump(mode="json", exclude_defaults=True)
