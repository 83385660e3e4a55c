"""The registry as the downstream tasks of OlmoEarth's own trainer, in Python or as overrides.

Its trainer wants one DownstreamTaskConfig per dataset. What doesn't follow from the registry is
said by the catalog (core/eval_settings.py); all else is as its own list mostly has it. Datasets of
other tools are in the list too, whose names may be any text: what is printed is code and arguments,
so a text is either a literal or a part of a line.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from eval_ingest.core.entry import split_counts
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.redaction import in_json, on_one_line
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.suite import PATCH_SIZE, settings_of

CALLBACK = "--trainer.callbacks.downstream_evaluator"

PATCH_SIZES = range(1, 9)
"""What OlmoEarth's encoders take, in pixels."""

MAX_TIMESTEPS = 13
"""The trainer's loader makes up monthly dates from September 2022 to September 2023."""

NEIGHBOURS = 20
"""Of the trainer's kNN."""

_SHORT = {"sentinel2_l2a": "s2", "sentinel1": "s1"}
"""Modalities in the names of tasks, as the trainer's list has them."""

_BUILT_IN = ("pretrain_subset", "gb2-", "m-", "pastis", "fifty_cities")
_FIELDS: dict[str, Any] = {
    "task_type": str, "modalities": list, "num_timesteps": int | None, "window_size": int | None,
}  # fmt: skip
"""Of what type an entry's fields are, whoever has written it."""

_BUILT_IN_NAMES = ("mados", "sen1floods11", "breizhcrops", "similar_but_different")
"""Names, and beginnings of names, that the trainer takes for data sets of its own."""


@dataclass(frozen=True)
class TrainerTask:
    """One downstream task."""

    name: str
    """The evaluation's name in metrics and overrides."""
    fields: dict[str, Any]
    """The fields of a DownstreamTaskConfig, as JSON would hold them."""
    note: str = ""
    """Why it isn't as the others are."""


@dataclass(frozen=True)
class TaskList:
    """The tasks of a registry."""

    registry: str
    """Path of registry.json."""
    tasks: list[TrainerTask]
    left_out: dict[str, str]
    """Data sets that the trainer can't read, and why."""


def trainer_tasks(
    root: EvalRoot,
    datasets: Sequence[str] = (),
    known: Mapping[str, DatasetSpec] = MappingProxyType({}),
) -> TaskList:
    """The tasks of the datasets with these names; of all, ours and others', if there are none.

    Args:
        root: whose registry is read.
        datasets: names in it.
        known: the catalog, which says how datasets of other tools are scored.

    Raises:
        UnknownDatasetError: not in the registry; names the near ones.
        SweepError: the registry is empty.
    """
    entries, registry = read_registry(root), root.shown(root.layout.registry)
    if not entries:
        raise SweepError(
            f"{registry} lists no dataset; run eval-ingest ingest, or set OLMOEARTH_EVAL_DATASETS"
        )
    for name in datasets:
        if name not in entries:
            raise UnknownDatasetError(name, entries, registry)
    tasks: list[TrainerTask] = []
    left_out = {}
    for name in dict.fromkeys(datasets) or sorted(entries):
        reason = _unreadable(name, entries[name])
        if reason:
            left_out[name] = reason
        else:
            settings = settings_of(name, _settings(entries[name]), lambda: known)
            tasks += _tasks_of(name, entries[name], {task.name for task in tasks}, settings)
    return TaskList(registry, tasks, left_out)


def _settings(entry: Mapping[str, Any]) -> EvalSettings:
    try:
        return EvalSettings.model_validate(entry.get("eval") or {})
    except ValidationError:
        return EvalSettings()  # of another version


def _unreadable(name: str, entry: Mapping[str, Any]) -> str:
    """Why the trainer can't read a dataset; empty if it can."""
    if entry.get("copy") in ("stream", "index"):
        return "it has no rslearn copy; ingest it with --copy windows"
    if name.startswith(_BUILT_IN) or name in _BUILT_IN_NAMES:
        return "the trainer takes this name for a dataset of its own; ingest it under another"
    if not entry.get("modalities"):
        return "its entry names no modality"
    for key, kinds in _FIELDS.items():
        value = entry.get(key)
        names = value if isinstance(value, list) else ()
        if not isinstance(value, kinds) or not all(isinstance(name, str) for name in names):
            return f"its entry says {key}: {json.dumps(value)[:80]}"
    most = entry.get("num_timesteps") or 1
    if most > MAX_TIMESTEPS:
        return f"it has {most} timesteps, and the trainer makes up dates for {MAX_TIMESTEPS}"
    # What is not counted need not be empty.
    empty = [s for s in ("train", "val") if split_counts(entry).get(s) == 0]
    if empty:
        return f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"
    return ""


def _tasks_of(
    name: str, entry: Mapping[str, Any], taken: set[str], settings: EvalSettings
) -> list[TrainerTask]:
    """One task with all modalities, or one for each where the trainer can't join them."""
    modalities = tuple(dict.fromkeys(entry["modalities"]))
    size = entry.get("window_size") or PATCH_SIZE
    wanted = settings.patch_size or PATCH_SIZE
    patch = wanted if size % wanted == 0 else patch_size(size)
    notes = []
    if patch != wanted:
        notes.append(f"{size} pixels don't divide by {wanted}")
    knn = settings.probe == "knn" or (not settings.probe and entry["task_type"] == "classification")
    if knn and split_counts(entry).get("train", NEIGHBOURS) < NEIGHBOURS:
        knn = False
        notes.append(f"the trainer's kNN fails on fewer than {NEIGHBOURS} train windows")
    there = [i for i in settings.inputs if set(i) <= set(modalities)]
    chosen = there or [modalities]
    if not there and len(modalities) > 1 and not entry.get("same_timesteps", True):
        chosen = [(modality,) for modality in modalities]
        notes.append("the trainer can't join modalities with different numbers of timesteps")
    mode = "knn" if knn else "linear_probe"
    common = {"dataset": name, "eval_mode": mode, "patch_size": patch, **_scored_by(settings)}
    common["norm_stats_from_pretrained"] = entry.get("use_pretrain_norm", True)
    tasks: list[TrainerTask] = []
    for k, inputs in enumerate(chosen):
        suffix = f"_{inputs[0]}" if len(chosen) > 1 else ""
        if there:  # the first has the dataset's own name, as in the trainer's list
            suffix = "".join(f"_{_SHORT.get(modality, modality)}" for modality in inputs if k)
        unique = _task_name(name + suffix, taken | {task.name for task in tasks})
        fields = {**common, "input_modalities": list(inputs)}
        tasks.append(TrainerTask(unique, fields, "; ".join(notes)))
    return tasks


def _scored_by(given: EvalSettings) -> dict[str, Any]:
    """The fields that a dataset's settings decide over."""
    center = given.pooling == "center"
    fields = {
        "embedding_batch_size": given.embedding_batch_size or 128,
        "probe_batch_size": given.probe_batch_size or 32,
        "num_workers": 8 if given.num_workers is None else given.num_workers,
        "pooling_type": "mean" if center else given.pooling or "mean",
        "norm_method": "norm_no_clip_2_std",
        "probe_lr": given.learning_rates[0] if given.learning_rates else 0.01,
        "epochs": given.epochs or 50,
        "eval_interval": {"value": 10, "unit": "epochs"},
        "primary_metric": given.primary_metric,
        "primary_metric_class": given.primary_metric_class,
        "use_center_token": center or None,
        "use_dice_loss": given.dice_loss or None,
        "probe_type": given.probe_type,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _task_name(name: str, taken: set[str]) -> str:
    """A name as the trainer's overrides can say it: letters, no bare number, not taken."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    plain = plain if plain.isidentifier() else f"eval_{plain}"
    unique, count = plain, 2
    while unique in taken:
        unique, count = f"{plain}_{count}", count + 1
    return unique


def patch_size(window_size: int) -> int:
    """The patch size nearest to 4 that divides a window's side; of two, the larger.

    >>> [patch_size(size) for size in (64, 25, 15, 6, 14, 31)]
    [4, 5, 5, 3, 2, 1]
    """
    fitting = [size for size in PATCH_SIZES if window_size % size == 0]
    return min(fitting, key=lambda size: (abs(size - PATCH_SIZE), -size))


# ------------------------------------------------------------------------------------ as text


_PYTHON_HEAD = '''\
"""Downstream tasks of the datasets in REGISTRY.

Written by `eval-ingest tasks --format olmoearth`; learning rates are a beginning, not tuned.
Beside it, `import eval_ingest.integrations.olmoearth_pretrain` reads packed samples, not rasters.
"""

from olmo_core.train.common import Duration
from olmoearth_pretrain.evals.datasets.normalize import NormMethod
from olmoearth_pretrain.evals.linear_probe import ProbeType
from olmoearth_pretrain.evals.metrics import EvalMetric
from olmoearth_pretrain.evals.studio_ingest import registry
from olmoearth_pretrain.nn.pooling import PoolingType
from olmoearth_pretrain.train.callbacks.evaluator_callback import DownstreamTaskConfig, EvalMode
from upath import UPath

REGISTRY = UPath({registry})


def _load(cls, path=None, *, load=registry.Registry.load):
    """Look datasets up in REGISTRY, and in the package's own list what isn't there."""
    if path is not None:
        return load(path)
    found = load(REGISTRY)
    found.datasets = {{**load().datasets, **found.datasets}}
    return found


registry.Registry.load = classmethod(_load)

EVAL_TASKS = {{'''

_NAMED_VALUES = {
    "eval_mode": lambda value: f"EvalMode.{value.upper()}",
    "pooling_type": lambda value: f"PoolingType.{value.upper()}",
    "norm_method": lambda value: f"NormMethod.{value.upper()}",
    "primary_metric": lambda value: f"EvalMetric.{value.upper()}",
    "probe_type": lambda value: f"ProbeType.{value.upper()}",
    "eval_interval": lambda value: f"Duration.{value['unit']}({value['value']})",
}


def as_python(tasks: TaskList) -> str:
    """A Python module that defines EVAL_TASKS."""
    lines = [_PYTHON_HEAD.format(registry=_text(tasks.registry))]
    for task in tasks.tasks:
        if task.note:
            lines.append(f"    # {on_one_line(task.note)}")
        lines.append(f"    {_text(task.name)}: DownstreamTaskConfig(")
        for name, value in task.fields.items():
            shown = _NAMED_VALUES.get(name, _text)(value)
            lines.append(f"        {name}={shown},")
        lines.append("    ),")
    lines.append("}")
    return "\n".join([*lines, *(f"# {line}" for line in left_out_lines(tasks))])


def _text(value: Any) -> str:
    """A string, a number, a truth value or a list of strings in Python, as formatters write it."""
    if isinstance(value, bool):
        return repr(value)
    # Beyond U+FFFF JSON has two escapes where Python has one.
    text = json.dumps(value, ensure_ascii=False)
    return in_json(text.encode("ascii", "backslashreplace").decode())


def as_overrides(tasks: TaskList) -> list[str]:
    """The trainer's command line arguments, one per task, quoted for a shell.

    Each sets a whole task: fields of a task that isn't there can't be set one by one.
    """
    return [
        shlex.quote(f"{CALLBACK}.tasks.{task.name}={in_json(json.dumps(task.fields))}")
        for task in tasks.tasks
    ]


def left_out_lines(tasks: TaskList) -> Iterable[str]:
    """What the list lacks, and why, a line each."""
    texts = (f"left out: {name}: {reason}" for name, reason in tasks.left_out.items())
    return [on_one_line(text, most=500) for text in texts]
