"""What is predicted from what, where model.yaml is missing: from layer names and run hints.

A guess is always a warning too: it names what was assumed and the flags that say otherwise.
"""

import re
from collections.abc import Callable

from eval_ingest.core.modality import modality_of_layer
from eval_ingest.core.resolved import LayerRead
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import TaskKind
from eval_ingest.errors import InferenceError
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.model_yaml import DataInput, Declaration
from eval_ingest.inference.node import Node, Notes
from eval_ingest.inference.run_yaml import RunYaml
from eval_ingest.inference.tasks import TaskDeclaration, declare_task

_OUTPUT = re.compile(r"output|pred", re.IGNORECASE)


def guess(dataset: DatasetJson, run: RunYaml, spec: DatasetSpec, notes: Notes) -> Declaration:
    """A declaration from config.json, olmoearth_run.yaml and the spec alone."""
    declared = _run_task(run)
    label = _label_layer(dataset, run, spec, declared)
    task = declared or TaskDeclaration(
        kind=_kind(label, dataset, run, spec),
        node=dataset.node(label),
        args=Node(None, dataset.root.file, dataset.node(label).path, dataset.root.where),
    )
    inputs = _inputs(dataset, label)
    notes.warn(
        f"there is no model.yaml: assumed {task.kind} of layer {label} from "
        f"{', '.join(i.key for i in inputs) or 'no layer'}, all item groups stacked; "
        "--olmoearth-run-config-path names the folder with a model.yaml, and --task-type "
        "--classes --property-name --modalities correct the assumptions"
    )
    vector = dataset.kind(label) == "vector"
    number = task.kind in (TaskKind.REGRESSION, TaskKind.SCALAR_REGRESSION)
    return Declaration(
        task=task,
        label=DataInput(
            key="label",
            node=dataset.node(label),
            vector=vector,
            reads=(LayerRead(layer=label, item_group=0),),
            stack=False,
            bands=() if vector else _bands(dataset, label),
            is_target=True,
            dtype="float32" if number else "int32",
        ),
        inputs=inputs,
    )


def _run_task(run: RunYaml) -> TaskDeclaration | None:
    """The task of a second-generation olmoearth_run.yaml."""
    tasks = run.tasks
    if len(tasks) > 1:
        raise run.root.get("model", "tasks").unsupported(
            f"has {len(tasks)} tasks ({', '.join(tasks)}); an eval dataset has exactly one",
            "leave one in a copy and name its folder with --olmoearth-run-config-path",
        )
    return next((declare_task(node, name) for name, node in tasks.items()), None)


def _label_layer(
    dataset: DatasetJson, run: RunYaml, spec: DatasetSpec, declared: TaskDeclaration | None
) -> str:
    """The layer that holds the label: as named, or the only one that looks like it."""
    layers, there = dataset.root.get("layers"), f"it has {', '.join(dataset.layer_names)}"
    named = spec.label_layer or run.label_layer.text()
    if named and named not in dataset.layer_names:
        if spec.label_layer:
            raise layers.error(f"has no layer {named!r} ({there})", "correct --label-layer")
        missing = f"is {named!r}, which config.json doesn't have ({there})"
        raise run.label_layer.error(missing, "correct it, or supply a model.yaml")
    found = [named] if named else _label_candidates(dataset, _label_kinds(spec, declared))
    if len(found) == 1:
        return found[0]
    problem = (
        f"has several layers that may be the label ({', '.join(found)})"
        if found
        else f"has no layer that looks like a label ({there})"
    )
    raise layers.error(
        f"{problem} and there is no model.yaml",
        "choose one with --label-layer, or supply a model.yaml (--olmoearth-run-config-path)",
        InferenceError,
    )


def _label_candidates(dataset: DatasetJson, kinds: tuple[str, ...]) -> list[str]:
    """The layers that may be the label, from the first rule that finds any.

    By name; by the classes that they name; else whatever its name, what no data source fills and no
    modality stands for.
    """
    rules: list[Callable[[str, str], bool]] = [
        lambda name, _: name.lower().startswith("label"),
        lambda name, kind: kind == "raster" and bool(dataset.class_names(name, None)[0]),
    ]

    def left(name: str, kind: str) -> bool:
        return modality_of_layer(name) is None and (
            kind == "vector" or len(_bands(dataset, name)) == 1
        )

    choices = [[(kind, rule)] for kind in kinds for rule in rules]
    choices.append([(kind, left) for kind in kinds])
    found = (
        [n for kind, rule in choice for n in _unfilled(dataset, kind) if rule(n, kind)]
        for choice in choices
    )
    return next(filter(None, found), [])


def _label_kinds(spec: DatasetSpec, declared: TaskDeclaration | None) -> tuple[str, ...]:
    """The layer types to look at for a label, in order."""
    kind = spec.task_type or (declared.kind if declared else None)
    if kind is not None:
        return ("raster",) if kind.per_pixel else ("vector",)
    return ("vector",) if spec.property_name else ("raster", "vector")


def _unfilled(dataset: DatasetJson, kind: str) -> list[str]:
    """Layers of a type that no data source fills, and that aren't named like an output."""
    return [
        name
        for name in dataset.layer_names
        if dataset.kind(name) == kind
        and dataset.node(name).get("data_source").value is None
        and not _OUTPUT.search(name)
    ]


def _kind(label: str, dataset: DatasetJson, run: RunYaml, spec: DatasetSpec) -> TaskKind:
    """What kind of task the label layer is for."""
    if spec.task_type is not None:
        return spec.task_type
    field = run.field(spec.property_name)
    vector = dataset.kind(label) == "vector"
    if spec.classes or dataset.class_names(label, None)[0] or (field and field.values):
        return TaskKind.CLASSIFICATION if vector else TaskKind.SEGMENTATION
    first = dataset.node(label).get("band_sets").items()[:1]
    floats = bool(first) and first[0].get("dtype").text().lower() == "float32"
    if not vector and (floats or (field and field.regression)):
        return TaskKind.REGRESSION
    raise dataset.node(label).error(
        "there is no model.yaml, and nothing says what this label layer is for",
        f"give --task-type (one of {', '.join(TaskKind)}) and "
        f"{'--property-name' if vector else '--classes'}, or name another layer with --label-layer",
        InferenceError,
    )


def _inputs(dataset: DatasetJson, label: str) -> tuple[DataInput, ...]:
    """Every raster layer that was fetched or that a modality stands for, each one an input."""
    names = [
        name
        for name in dataset.layer_names
        if name != label
        and dataset.kind(name) == "raster"
        and not _OUTPUT.search(name)
        and (
            modality_of_layer(name) is not None
            or dataset.node(name).get("data_source").value is not None
        )
    ]
    return tuple(
        DataInput(
            key=name,
            node=dataset.node(name),
            vector=False,
            reads=(LayerRead(layer=name, item_group=None),),
            stack=True,
            bands=_bands(dataset, name),
            passthrough=True,
        )
        for name in sorted(names, key=_by_time)
    )


def _by_time(layer: str) -> int:
    """Before and after an event, in that order; config.json is often sorted by name."""
    if layer.startswith("pre_"):
        return 0
    return 2 if layer.startswith("post_") else 1


def _bands(dataset: DatasetJson, name: str) -> tuple[str, ...]:
    """Every band of a layer."""
    layer = dataset.layer(name, dataset.node(name))
    return tuple(dict.fromkeys(band for band_set in layer.band_sets for band in band_set.bands))
