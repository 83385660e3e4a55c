"""The registry as the downstream tasks of OlmoEarth's own trainer, in Python or as overrides.

Its trainer wants one DownstreamTaskConfig per dataset. All but the learning rate follows from the
registry; the values here are those that its own list mostly has.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot

CALLBACK = "--trainer.callbacks.downstream_evaluator"

PATCH_SIZE = 4
PATCH_SIZES = range(1, 9)
"""What OlmoEarth's encoders take, in pixels."""

MAX_TIMESTEPS = 13
"""The trainer's loader makes up monthly dates from September 2022 to September 2023."""

NEIGHBOURS = 20
"""Of the trainer's kNN."""

_BUILT_IN = ("pretrain_subset", "gb2-", "m-", "pastis", "fifty_cities")
_BUILT_IN_NAMES = ("mados", "sen1floods11", "breizhcrops", "similar_but_different")
"""Names, and beginnings of names, that the trainer takes for data sets of its own."""


@dataclass(frozen=True)
class TrainerTask:
    """One downstream task: what differs from data set to data set."""

    name: str
    """The evaluation's name in metrics and overrides."""
    dataset: str
    """In the registry."""
    input_modalities: tuple[str, ...]
    eval_mode: str
    """`knn` or `linear_probe`."""
    patch_size: int
    norm_stats_from_pretrained: bool = True
    note: str = ""
    """Why it isn't as the others are."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a DownstreamTaskConfig, as JSON would hold them."""
        return {
            "dataset": self.dataset,
            "input_modalities": list(self.input_modalities),
            "eval_mode": self.eval_mode,
            "patch_size": self.patch_size,
            "embedding_batch_size": 128,
            "probe_batch_size": 32,
            "num_workers": 8,
            "pooling_type": "mean",
            "norm_stats_from_pretrained": self.norm_stats_from_pretrained,
            "norm_method": "norm_no_clip_2_std",
            "probe_lr": 0.01,
            "epochs": 50,
            "eval_interval": {"value": 10, "unit": "epochs"},
        }


@dataclass(frozen=True)
class TaskList:
    """The tasks of a registry."""

    registry: str
    """Path of registry.json."""
    tasks: list[TrainerTask]
    left_out: dict[str, str]
    """Data sets that the trainer can't read, and why."""


def trainer_tasks(root: EvalRoot, datasets: Sequence[str] = ()) -> TaskList:
    """The tasks of the datasets with these names; of all if there are none.

    Raises:
        UnknownDatasetError: not in the registry; names the near ones.
        SweepError: the registry is empty.
    """
    entries = read_registry(root)
    if not entries:
        raise SweepError(
            f"{root.shown(root.layout.registry)} lists no dataset; run eval-ingest ingest, "
            "or set OLMOEARTH_EVAL_DATASETS"
        )
    for name in datasets:
        if name not in entries:
            raise UnknownDatasetError(
                name,
                entries,
                root.shown(root.layout.registry),
                f"To ingest it: eval-ingest ingest --name {name}",
            )
    tasks: list[TrainerTask] = []
    left_out = {}
    for name in dict.fromkeys(datasets) or sorted(entries):
        reason = _unreadable(name, entries[name])
        if reason:
            left_out[name] = reason
        else:
            tasks += _tasks_of(name, entries[name], {task.name for task in tasks})
    return TaskList(root.shown(root.layout.registry), tasks, left_out)


def _unreadable(name: str, entry: Mapping[str, Any]) -> str:
    """Why the trainer can't read a dataset; empty if it can."""
    if entry.get("copy") in ("stream", "index"):
        return "it has no rslearn copy; ingest it with --copy windows"
    if name.startswith(_BUILT_IN) or name in _BUILT_IN_NAMES:
        return "the trainer takes this name for a dataset of its own; ingest it under another"
    most = entry.get("num_timesteps") or 1
    if most > MAX_TIMESTEPS:
        return f"it has {most} timesteps, and the trainer makes up dates for {MAX_TIMESTEPS}"
    counts = {split: found["count"] for split, found in entry["split_stats"].items()}
    empty = [split for split in ("train", "val") if not counts.get(split)]
    if empty:
        return f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"
    return ""


def _tasks_of(name: str, entry: Mapping[str, Any], taken: set[str]) -> list[TrainerTask]:
    """One task with all modalities, or one for each where the trainer can't join them."""
    modalities = tuple(entry["modalities"])
    size = entry["window_size"]
    patch = patch_size(size)
    notes = []
    if patch != PATCH_SIZE:
        notes.append(f"{size} pixels don't divide by {PATCH_SIZE}")
    knn = entry["task_type"] == "classification"
    if knn and entry["split_stats"]["train"]["count"] < NEIGHBOURS:
        knn = False
        notes.append(f"the trainer's kNN fails on fewer than {NEIGHBOURS} train windows")
    chosen = [modalities]
    if len(modalities) > 1 and not entry.get("same_timesteps", True):
        chosen = [(modality,) for modality in modalities]
        notes.append("the trainer can't join modalities with different numbers of timesteps")
    tasks: list[TrainerTask] = []
    for inputs in chosen:
        suffix = f"_{inputs[0]}" if len(chosen) > 1 else ""
        unique = _task_name(name + suffix, taken | {task.name for task in tasks})
        tasks.append(
            TrainerTask(
                name=unique,
                dataset=name,
                input_modalities=inputs,
                eval_mode="knn" if knn else "linear_probe",
                patch_size=patch,
                norm_stats_from_pretrained=entry.get("use_pretrain_norm", True),
                note="; ".join(notes),
            )
        )
    return tasks


def _task_name(name: str, taken: set[str]) -> str:
    """A name as the trainer's overrides can say it: without dashes, no bare number, not taken."""
    plain = name.replace("-", "_")
    plain = f"eval_{plain}" if plain.isdigit() else plain
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
"""Downstream tasks of {registry}.

Written by `eval-ingest tasks --format olmoearth`; learning rates are a beginning, not tuned.
"""

from pathlib import Path

from olmo_core.train.common import Duration
from olmoearth_pretrain.evals.datasets.normalize import NormMethod
from olmoearth_pretrain.evals.studio_ingest import registry
from olmoearth_pretrain.nn.pooling import PoolingType
from olmoearth_pretrain.train.callbacks.evaluator_callback import DownstreamTaskConfig, EvalMode

# Where the datasets are looked up, instead of in the package's own list.
registry.REGISTRY_PATH = Path({quoted})

EVAL_TASKS = {{'''

_NAMED_VALUES = {
    "eval_mode": lambda value: f"EvalMode.{value.upper()}",
    "pooling_type": lambda value: f"PoolingType.{value.upper()}",
    "norm_method": lambda value: f"NormMethod.{value.upper()}",
    "eval_interval": lambda value: f"Duration.{value['unit']}({value['value']})",
}


def as_python(tasks: TaskList) -> str:
    """A Python module that defines EVAL_TASKS."""
    lines = [_PYTHON_HEAD.format(registry=tasks.registry, quoted=_text(tasks.registry))]
    for task in tasks.tasks:
        if task.note:
            lines.append(f"    # {task.note}")
        lines.append(f"    {_text(task.name)}: DownstreamTaskConfig(")
        for field, value in task.fields.items():
            shown = _NAMED_VALUES.get(field, _text)(value)
            lines.append(f"        {field}={shown},")
        lines.append("    ),")
    lines.append("}")
    return "\n".join([*lines, *(f"# {line}" for line in left_out_lines(tasks))])


def _text(value: Any) -> str:
    """A string, a number, a truth value or a list of strings, as formatters write it."""
    return repr(value) if isinstance(value, bool) else json.dumps(value)


def as_overrides(tasks: TaskList) -> list[str]:
    """The trainer's command line arguments, one per task, quoted for a shell.

    Each sets a whole task: fields of a task that isn't there can't be set one by one.
    """
    return [
        shlex.quote(f"{CALLBACK}.tasks.{task.name}={json.dumps(task.fields)}")
        for task in tasks.tasks
    ]


def left_out_lines(tasks: TaskList) -> Iterable[str]:
    """What the list lacks, and why."""
    return [f"left out: {name}: {reason}" for name, reason in tasks.left_out.items()]
