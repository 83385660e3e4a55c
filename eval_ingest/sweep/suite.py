"""Which evals belong together, and how they are scored; as YAML:

    datasets: [tolbi_crops, nandi]     # or [all]
    split: val
    label_fractions: [0.1, 1.0]        # of the train windows; or names of the datasets' own
    encoders: [pixels, olmoearth:nano] # for `eval-ingest sweep`; training scores its own model

Its fields stand in core/suite.py; what is done with it in run.py, evaluate.py and
integrations/lightning.py.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.norm import METHODS
from eval_ingest.core.plain_yaml import YamlProblem, load_whole_yaml
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.core.suite import ALL, SuiteFields
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.catalog import read_catalog
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.encoders.base import Encoder
from eval_ingest.sweep.encoders.registry import check_encoder

PROBES = ("auto", "knn", "linear")
NORMALISATIONS = ("dataset", "pretrained", "none")

PATCH_SIZE = 4


class Suite(SuiteFields):
    """Every encoder on every dataset, at every label fraction, with every seed."""

    def having(self, where: str = "", /, **given: Any) -> Self:
        """The same with other values; where none is given, it stays.

        Raises:
            SweepError: there is no such field, or it can't have that value.
        """
        values = {name: value for name, value in given.items() if value is not None}
        try:
            return type(self).model_validate({**dict(self), **values})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"][:2])
            if first["type"] == "extra_forbidden":
                known = ", ".join(type(self).model_fields)
                raise SweepError(f"{where}there is no {name!r}; a suite has {known}") from error
            found = first["input"]
            text = repr(found) if isinstance(found, str | int | float) else type(found).__name__
            raise SweepError(f"{where}{name}: {first['msg']}; it is {text}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The suite in a YAML file.

        Raises:
            SweepError: it can't be read, or holds what a suite doesn't have.
        """
        path = user_path(path)
        try:
            content = load_whole_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YamlProblem) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SweepError(f"the suite {path} can't be read: {reason}") from error
        if not isinstance(content, dict):
            raise SweepError(f"the suite {path} must be a mapping, such as: datasets: [all]")
        return cls().having(f"the suite {path}: ", **{str(k): v for k, v in content.items()})

    def checked(self, root: EvalRoot) -> Self:
        """The same with `all` spelled out, and nothing twice.

        Raises:
            SweepError: a value that can't be; the message says which would.
            UnknownDatasetError: names the near ones.
        """
        for encoder in self.encoders:
            check_encoder(encoder)
        for what, values in (
            ("dataset", self.datasets),
            ("label fraction", self.label_fractions),
            ("seed", self.seeds),
        ):
            if not values:
                raise SweepError(f"a sweep needs at least one {what}")
        for what, value, known in (
            ("split", self.split, SPLITS),
            ("probe", self.probe, PROBES),
            ("normalize", self.normalize, (None, *NORMALISATIONS)),
            ("method", self.method, (None, *METHODS)),
        ):
            if value not in known:
                there = ", ".join(name for name in known if name is not None)
                raise SweepError(f"no {what} {value!r}; there are {there}")
        for what, number, least in (
            ("patch size", self.patch_size, 1),
            ("max_train_samples", self.max_train_samples, 1),
            ("seed", min(self.seeds), 0),
        ):
            if number is not None and number < least:
                raise SweepError(f"{what} is {number}; it must be at least {least}")
        wrong = [f for f in self.label_fractions if not isinstance(f, str) and not 0 < f <= 1]
        if wrong:
            raise SweepError(f"label fraction is {wrong[0]:g}; it must be above 0 and at most 1")
        found = {"datasets": self._names(root)}
        for name in ("encoders", "label_fractions", "seeds"):
            found[name] = tuple(dict.fromkeys(getattr(self, name)))
        return self.model_copy(update=found)

    def patch_size_for(self, settings: EvalSettings) -> int:
        """Pixels per side of a patch, on a dataset with these settings."""
        return self.patch_size or settings.patch_size or PATCH_SIZE

    def normalised(self, encoder: Encoder) -> Encoder:
        """The encoder, with the normalisation that the suite says, if it says one."""
        if self.normalize is not None:
            encoder.normalize = None if self.normalize == "none" else self.normalize  # type: ignore[assignment]
        if self.method is not None:
            encoder.method = self.method
        return encoder

    def _names(self, root: EvalRoot) -> Sequence[str]:
        known = root.dataset_names()
        if not known:
            raise SweepError(
                f"no dataset is ingested under {root.url}; "
                "run eval-ingest ingest, or set OLMOEARTH_EVAL_DATASETS"
            )
        if ALL in self.datasets:
            return tuple(known)
        for name in self.datasets:
            if name not in known:
                raise UnknownDatasetError(name, known, f"the eval root {root.url}")
        return tuple(dict.fromkeys(self.datasets))


def catalog_of(settings: Settings) -> Callable[[], Mapping[str, DatasetSpec]]:
    """What reads the catalog when asked for, and once; broken entries are not there."""
    return functools.cache(lambda: read_catalog(settings, broken={}))


def settings_of(
    name: str, own: EvalSettings, catalog: Callable[[], Mapping[str, DatasetSpec]]
) -> EvalSettings:
    """A dataset's own settings, else those that the catalog has for its name."""
    if own.given:
        return own
    known = catalog().get(name)
    return own if known is None else known.eval
