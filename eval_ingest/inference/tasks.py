"""Which task a configuration declares: of several the chosen one, and what its class means.

Classes are known by name from the tables here and never imported: a class_path is code. How its
arguments become a Task is labels.py.
"""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field

from eval_ingest.core.task import TaskKind
from eval_ingest.inference.node import Node, Notes, check_class_path

TASK_KINDS = {
    "SegmentationTask": TaskKind.SEGMENTATION,
    "ClassificationTask": TaskKind.CLASSIFICATION,
    "PerPixelRegressionTask": TaskKind.REGRESSION,
    "RegressionTask": TaskKind.SCALAR_REGRESSION,
}
"""rslearn's task classes."""


@dataclass(frozen=True)
class _PlainTask:
    """A class of another package that is one of rslearn's with its labels prepared."""

    kind: TaskKind
    category_mapping: Mapping[str, str] = field(default_factory=dict)
    """Stored category to the one that is looked up among the classes."""
    by_name: bool = False
    """Categories are names, and features of others are passed over, whatever the arguments say."""


# What rslearn_projects' task classes do beyond those of rslearn that they extend.
_PLAIN_TASKS = {
    "ForestLossTask": _PlainTask(
        TaskKind.CLASSIFICATION,
        {
            "agriculture-generic": "agriculture",
            "agriculture-small": "agriculture",
            "agriculture-mennonite": "agriculture",
            "agriculture-rice": "agriculture",
            "coca": "agriculture",
            "flood": "river",
        },
        by_name=True,
    ),
}
_MULTI_TASKS = {
    "MultiTask": re.compile(r"(?!)"),
    "VesselAttributeMultiTask": re.compile(r"cog2?_(x|y|direction)|(length|width|sog)_bucket"),
}
"""Classes that hold several tasks, and the properties that they compute from others."""

_TARGET_IMAGES = {
    TaskKind.SEGMENTATION: ("classes", "valid"),
    TaskKind.REGRESSION: ("values", "valid"),
}


@dataclass(frozen=True)
class TaskDeclaration(_PlainTask):
    """The one task, and its arguments."""

    _: KW_ONLY
    node: Node
    """Where it is declared."""
    args: Node
    name: str | None = None
    """Its name within a MultiTask."""


def declare_task(node: Node, name: str | None = None) -> TaskDeclaration:
    """The task that a class_path with init_args stands for.

    Raises:
        UnsupportedError: it is none that can become an eval.
    """
    check_class_path(node)
    known = _known(node)
    if known is None:
        raise node.unsupported(
            f"is a {node.class_path}, which can't become an eval",
            f"supported are {', '.join((*TASK_KINDS, *_PLAIN_TASKS))}",
        )
    return TaskDeclaration(**vars(known), node=node, args=node.args, name=name)


def choose_task(node: Node, chosen: str | None, notes: Notes) -> TaskDeclaration:
    """The task; of a MultiTask the only one, or the one that `chosen` (--task) names.

    Raises:
        UnsupportedError: there are several and none is chosen, or it isn't supported.
    """
    if not node.class_path:
        raise node.error(
            "is missing" if node.value is None else "has no class_path",
            f"give one of {', '.join(TASK_KINDS)}, or ingest without model.yaml and with "
            "--task-type",
        )
    check_class_path(node)
    tasks = sub_tasks(node)
    if tasks is None:
        if chosen is not None:
            raise node.error(
                f"is a {node.class_name} without sub-tasks, but --task names {chosen!r}",
                "leave --task out",
            )
        return declare_task(node)
    name = _chosen_name(node, tasks, chosen)
    declared = declare_task(tasks[name], name)
    _check_computed(node, declared)
    if node.class_name not in _MULTI_TASKS:
        notes.warn(
            f"{node.place} is a {node.class_name}, which isn't known; its task {name!r} is read as "
            "a MultiTask's"
        )
    return declared


def sub_tasks(node: Node) -> dict[str, Node] | None:
    """The tasks of a MultiTask or a subclass of it, by name; None for a task."""
    tasks = node.args.get("tasks")
    if node.class_name in _MULTI_TASKS or isinstance(tasks.value, dict):
        return tasks.entries()
    return None


def target_images(node: Node) -> tuple[str, ...]:
    """Selectors of the images that rslearn's target dict has: `classes`, `segment/valid`."""
    tasks = sub_tasks(node)
    if tasks is None:
        return _images_of(node)
    return tuple(f"{name}/{image}" for name, task in tasks.items() for image in _images_of(task))


def _known(node: Node) -> _PlainTask | None:
    package, _, name = node.class_path.rpartition(".")
    if name in TASK_KINDS and package.partition(".")[0] in ("", "rslearn"):
        return _PlainTask(TASK_KINDS[name])
    return _PLAIN_TASKS.get(name)


def _images_of(node: Node) -> tuple[str, ...]:
    known = _known(node)
    return () if known is None else _TARGET_IMAGES.get(known.kind, ())


def _chosen_name(node: Node, tasks: dict[str, Node], chosen: str | None) -> str:
    listed = ", ".join(f"{name} ({task.class_name})" for name, task in tasks.items())
    if not tasks:
        raise node.unsupported("has no task", "add one to `tasks`")
    if chosen is not None and chosen not in tasks:
        raise node.error(f"has no task {chosen!r}", f"--task takes one of {listed}")
    if chosen is None and len(tasks) > 1:
        raise node.unsupported(
            f"has {len(tasks)} tasks: {listed}; an eval dataset has one",
            f"choose it, such as --task {next(iter(tasks))}; the same source may be ingested under "
            "several names",
        )
    return chosen or next(iter(tasks))


def _check_computed(node: Node, declared: TaskDeclaration) -> None:
    """Refuse properties that only exist once the class has computed them."""
    name = declared.args.get("property_name")
    computed = _MULTI_TASKS.get(node.class_name)
    if computed is not None and computed.fullmatch(name.text()):
        raise name.unsupported(
            f"is {name.shown}, which {node.class_name} computes from other properties; that isn't "
            "supported",
            "choose another task with --task",
        )
