"""What a suite of evals says: its fields, for YAML, for the command line and for Dagster.

What doesn't belong here: reading one, and what is done with it (sweep/suite.py).
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, field_validator

ALL = "all"
DEFAULT_OUT = "sweep_results"
"""Where sweeps write."""


class SuiteFields(BaseModel):
    """Every encoder on every dataset, at every label fraction, with every seed."""

    # Docstrings of fields are the help of their flags, too: flags.py.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    datasets: Annotated[tuple[str, ...], FailFast()] = (ALL,)
    """Names, or `all` for every dataset under the eval root; default all."""
    encoders: tuple[str, ...] = ()
    """pixels, olmoearth:nano@random, olmoearth:base@/path/to/weights, module:factory"""
    split: str = "test"
    """The split that is scored; default test."""
    label_fractions: tuple[float | str, ...] = (1.0,)
    """Parts of the train split: 0.01 0.1 1.0, 10%, or names of the datasets' own label_fractions;
    each holds the smaller ones; default 1.0."""
    seeds: tuple[int, ...] = (42,)
    """Each draws the label fraction, as EvalDataset(label_fraction=, seed=), and starts a probe;
    default 42, as in the existing OlmoEarth eval code."""
    patch_size: int | None = None
    """Default: what a dataset's eval settings say, else 4."""
    probe: str = "auto"
    """auto (what a dataset's settings say, else knn for window classes, linear for all else), knn
    or linear"""
    normalize: str | None = None
    """dataset, pretrained or none; default: as the encoder wants it."""
    method: str | None = None
    """Such as norm_no_clip_2_std; default: as the encoder wants it."""
    max_train_samples: int | None = None
    """At most so many train windows; for models in training, whose time is dear."""

    @field_validator("datasets", "encoders", "label_fractions", "seeds", mode="before")
    @classmethod
    def _several(cls, values: object) -> object:
        """One value alone is one of several; names may be the keys of what tells about them."""
        if isinstance(values, str | int | float):
            return (values,)
        return tuple(values) if isinstance(values, Mapping) else values

    @field_validator("label_fractions", mode="after")
    @classmethod
    def _shares(cls, values: tuple[float | str, ...]) -> tuple[float | str, ...]:
        return tuple(map(_share, values))


def _share(given: float | str) -> float | str:
    """A label fraction: 0.1 and 10% are the same; whatever else is a name."""
    if isinstance(given, str):
        try:
            return float(given[:-1]) / 100 if given.endswith("%") else float(given)
        except ValueError:
            return given
    return given
