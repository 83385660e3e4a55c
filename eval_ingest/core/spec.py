"""DatasetSpec: what a person says about a dataset. Name and source; the rest is inferred."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from eval_ingest.core.bounds import Pixels
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.resolved import SPLITS as SPLITS
from eval_ingest.core.task import TaskKind
from eval_ingest.errors import SpecError, brief
from eval_ingest.redaction import holds_secret

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
"""File systems take no longer ones, with what is written beside a dataset's folder."""
SPLIT_OPTION = "eval_split"
"""The option of a window in the rslearn copy that says which split it belongs to."""
_ALIASES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_called(value: Any) -> str | None:
    """The split that a window's option means; None if it is none's name."""
    return _ALIASES.get(str(value).lower())


def kept_split(options: Mapping[str, Any]) -> str | None:
    """The split that an earlier ingest gave a window, by the option `eval_split`."""
    return split_called(options.get(SPLIT_OPTION))


RESERVED = frozenset({"catalog", "registry", "sweep_results", "suites", "report"})
"""What an eval root uses itself, or lies beside it."""


def check_name(name: str) -> str:
    """Return the name if it can be a dataset's; raise SpecError if not.

    Names become folders, asset keys and partition keys, so they stay plain.
    """
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise SpecError(
            f"dataset name {brief(name, 60)} is not allowed; use up to 128 lower-case letters, "
            "digits, _ and -, beginning with a letter or digit, such as tolbi_crops"
        )
    return name


def check_not_reserved(name: str) -> None:
    """Raise SpecError if a new dataset can't have a name because the eval root uses it."""
    if name in RESERVED:
        raise SpecError(
            f"the name {name!r} is used by the eval root itself; give the dataset another --name, "
            f"such as {name}_data"
        )


def is_name(name: str) -> bool:
    """True if it can be a dataset's name: see `check_name`."""
    return NAME_PATTERN.fullmatch(name) is not None


def name_from(text: str) -> str:
    """A dataset name made from a folder's.

    >>> name_from("Tolbi crops (2025)")
    'tolbi_crops_2025'
    """
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower())[:100].strip("_-") or "dataset"


def _plain(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """True is no 1, and bytes are no text."""
    is_switch = info.field_name and cls.model_fields[info.field_name].annotation is bool
    if isinstance(value, bytes) or (isinstance(value, bool) and not is_switch):
        raise ValueError(f"can't be {brief(value, 60)}")
    return value


class SplitPolicy(BaseModel):
    """How windows are divided into train, val and test."""

    # Docstrings of fields are the help of their flags, too: flags.py.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    strategy: Literal["auto", "random", "stratified", "spatial"] = "auto"
    """auto: the dataset's own splits where it declares them, else random; random: by a hash of the
    window; stratified: the same, with rare classes in every split; spatial: whole blocks."""
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """train, val, test; percentages (80 10 10) are taken too."""
    seed: int = 42
    """of the split"""
    block_size_m: float = Field(default=5120.0, gt=0, allow_inf_nan=False)
    """spatial: side in metres of the blocks that stay together."""
    buffer_m: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """spatial: train windows nearer than this to a val or test window are left out."""

    _plain = field_validator("*", mode="before")(classmethod(_plain))

    @field_validator("ratios", mode="before")
    @classmethod
    def _normalise_ratios(cls, value: Any) -> Any:
        """Take fractions or percentages; insist that they add up."""
        try:
            ratios = [float(ratio) for ratio in value]
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"needs three numbers (train val test), got {value!r}") from None
        if len(ratios) != 3:
            raise ValueError(f"needs three numbers (train val test), got {len(ratios)}")
        if any(ratio < 0 for ratio in ratios):
            raise ValueError(f"{ratios} has a negative part")
        total = sum(ratios)
        for whole in (1.0, 100.0):
            if abs(total - whole) < 1e-6 * whole:
                return tuple(ratio / whole for ratio in ratios)
        raise ValueError(f"{ratios} add up to {total:g}; they must add up to 1 or 100")


class DatasetSpec(BaseModel):
    """A dataset to ingest. Only name and source are needed."""

    # Docstrings of fields are the help of their flags, too: flags.py.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str
    source: str
    """Path or URL of the rslearn dataset; `${VAR:-default}` is expanded."""
    config: str | None = None
    """A model.yaml of any name, or a folder with it, dataset.json or olmoearth_run.yaml; default
    the source itself."""
    display_name: str | None = None
    """for people"""
    groups: tuple[str, ...] = ()
    """Only windows of these groups; empty means those that model.yaml names, else all."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Only windows whose options have all of these; an empty value: the key is present."""
    task: str | None = None
    """Which of model.yaml's tasks, where it has several."""
    task_type: TaskKind | None = None
    """segmentation, classification, regression or scalar_regression"""
    label_layer: str | None = None
    """Without model.yaml: the layer that holds the label."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their ids."""
    property_name: str | None = None
    """Vector labels: the property that holds the label."""
    modalities: tuple[str, ...] = ()
    """Only these modalities; empty means all that model.yaml reads."""
    temporal_range: tuple[str, str] | None = None
    """ISO dates: only windows whose time range lies within."""
    crop_size: Pixels | None = None
    """Side of a sample; default: as model.yaml says."""
    all_crops: tuple[Literal["train", "val", "test"], ...] | None = None
    """Splits in which every crop of a window is a sample, or none; default: those of which
    model.yaml says so (load_all_crops)."""
    splits: SplitPolicy = SplitPolicy()
    max_samples: int | None = Field(default=None, gt=0)
    """At most this many windows over all splits, stratified by class, chosen by hash."""
    label_fractions: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Names for shares of the train split: EvalDataset(label_fraction="few"). They are nested."""
    max_invalid_fraction: float = Field(default=0.1, ge=0, le=1)
    """More invalid windows than this stop the ingest; 0 to 1, default 0.1."""
    copy_mode: Literal["windows", "stream", "index", "adopted"] = Field(
        default="windows", alias="copy"
    )
    """windows: the rslearn windows and the packed samples; stream: the packed samples alone;
    index: neither, samples are read from the source; adopted: another tool's copy stays as it is,
    and is the source of the packed samples."""
    correct: bool = False
    """adopted: what we find stands in the registry in the place of what the other tool said."""
    eval: EvalSettings = EvalSettings()
    """How it is to be scored, where that isn't as its kind of task usually is."""
    licence: str | None = None
    """such as CC-BY-4.0"""
    notes: str | None = None
    """for people"""

    _plain = field_validator("*", mode="before")(classmethod(_plain))

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r} must match {NAME_PATTERN.pattern}")
        return value

    @field_validator("groups", "classes", "modalities", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """YAML reads `groups: 20251210` as a number; take a single value as a list of one."""
        if value is None:
            return ()
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, str | int | float) for item in values):
            raise ValueError(f"must be a list of texts, got {value!r}")
        return tuple(map(str, values))

    @field_validator("all_crops", mode="before")
    @classmethod
    def _named_splits(cls, value: Any) -> Any:
        """Take `none` for no split, and a single split as a list of one."""
        given = [value] if isinstance(value, str) else value
        return () if given in (["none"], ("none",)) else given

    @field_validator("temporal_range")
    @classmethod
    def _dates(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        """Whole days, the first one first."""
        if value is None:
            return None
        try:
            first, last = (date.fromisoformat(text).isoformat() for text in value)
        except ValueError:
            raise ValueError(f"needs two dates such as 2025-01-31, got {list(value)}") from None
        if first > last:
            raise ValueError(f"{first} is after {last}")
        return first, last

    @field_validator("tags", mode="before")
    @classmethod
    def _tag_texts(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): "" if v is None else str(v) for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _source_given(self) -> Self:
        if not self.source.strip():
            raise ValueError("source is empty")
        if holds_secret(self.source) or holds_secret(self.config or ""):
            raise ValueError(
                "source holds a password or a signature, and a spec is kept for others to read; "
                "set an environment variable to the URL and give source: ${ITS_NAME}"
            )
        return self

    @model_validator(mode="after")
    def _adopted_as_it_is(self) -> Self:
        if not self.adopted:
            return self
        fields = ("groups", "tags", "temporal_range", "max_samples", "splits")
        asked = [name for name in fields if getattr(self, name) != _default(type(self), name)]
        if asked:
            raise ValueError(
                f"{self.name} is adopted, and its windows stay in the splits that another tool "
                f"gave them: no {', '.join(asked)} can be asked for; under another name it is "
                f"divided anew: eval-ingest ingest {self.resplit_as}"
            )
        return self

    @property
    def adopted(self) -> bool:
        """True if the windows under the eval root are another tool's."""
        return self.copy_mode == "adopted"

    @property
    def asked(self) -> str:
        """By which of their own facts windows are chosen, for people; empty: all are."""
        asked = [
            f"tag {key}={value}" if value else f"tag {key}" for key, value in self.tags.items()
        ]
        if self.temporal_range:
            asked.append("temporal_range {} to {}".format(*self.temporal_range))
        return ", ".join(asked)

    @property
    def resplit_as(self) -> str:
        """What to give `eval-ingest ingest` to divide it otherwise: an adopted one, once more."""
        return f"{self.name}_2 --source {self.source}" if self.adopted else self.name

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Build a spec from plain values; `where` names their origin in a SpecError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError(f"{where}: {_first_problems(error, cls)}") from error


def _default(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].get_default(call_default_factory=True)


def _first_problems(error: ValidationError, model: type[BaseModel]) -> str:
    texts = []
    for problem in error.errors(include_url=False)[:3]:
        field = ".".join(f"{part!s:.80}" for part in problem["loc"]) or "spec"
        if problem["type"] == "extra_forbidden":
            import difflib

            inner: dict[str, type[BaseModel]] = {"splits": SplitPolicy, "eval": EvalSettings}
            of = model if len(problem["loc"]) == 1 else inner.get(str(problem["loc"][0]), model)
            fields = list(of.model_fields)
            if "splits" in fields:
                fields += [f"splits.{name}" for name in SplitPolicy.model_fields]
            wrong = f"{problem['loc'][-1]!s:.80}"
            near = difflib.get_close_matches(wrong, fields, n=1) or difflib.get_close_matches(
                f"splits.{wrong}", fields, n=1, cutoff=0.8
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            texts.append(f"unknown field {field!r}{hint}")
        else:
            text = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
            if problem["type"] != "value_error":
                text += f", not {brief(problem['input'], 80)}"
            texts.append(f"{field}: {text}")
    return "; ".join(texts)
