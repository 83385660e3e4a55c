"""Suites: which evals belong together, in YAML.

    datasets: [tolbi_crops, nandi]     # or [all]
    split: val
    label_fractions: [0.1, 1.0]        # of the train windows; or names of the datasets' own
    encoders: [pixels, olmoearth:nano] # for `eval-ingest sweep`; training scores its own model

What is done with a suite stands in run.py, evaluate.py and integrations/lightning.py.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from eval_ingest.core.plain_yaml import YamlProblem, load_yaml
from eval_ingest.errors import SweepError
from eval_ingest.sweep.plan import ALL, SweepPlan


class Suite(BaseModel):
    """Evals that are run together, and how; see SweepPlan for the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: tuple[str, ...] = (ALL,)
    encoders: tuple[str, ...] = ()
    split: Literal["train", "val", "test"] = "test"
    label_fractions: tuple[float | str, ...] = (1.0,)
    seeds: tuple[int, ...] = (42,)
    patch_size: int | None = None
    probe: Literal["auto", "knn", "linear"] = "auto"
    normalize: Literal["dataset", "pretrained", "none"] | None = None
    method: str | None = None
    max_train_samples: int | None = None
    """At most so many train windows; for models in training, whose time is dear."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The suite in a YAML file.

        Raises:
            SweepError: it can't be read, or holds what a suite doesn't have.
        """
        path = Path(path).expanduser()
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YamlProblem) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SweepError(f"the suite {path} can't be read: {reason}") from error
        if not isinstance(content, dict):
            raise SweepError(f"the suite {path} must be a mapping, such as: datasets: [all]")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:2])
            raise SweepError(
                f"the suite {path}: {where}: {first['msg']}; a suite has "
                f"{', '.join(cls.model_fields)}"
            ) from error

    def plan(self, out: Path) -> SweepPlan:
        """As a sweep's plan.

        Raises:
            SweepError: it names no encoder.
        """
        if not self.encoders:
            raise SweepError(
                "no encoder is named; say --encoder pixels, or list encoders in the suite"
            )
        fields = self.model_dump(exclude={"max_train_samples"})
        return SweepPlan(**fields, out=out)
