"""What is predicted from what, where model.yaml is missing: from layer names and run hints.

A guess is always a warning too: it names what was assumed and the flags that say otherwise.
"""

import re

from eval_ingest.core.modality import modality_of_layer
from eval_ingest.core.resolved import LayerRead
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import TaskKind
from eval_ingest.errors import InferenceError, UnsupportedError
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.model_yaml import DataInput, Declaration
from eval_ingest.inference.node import Node
from eval_ingest.inference.notes import Notes
from eval_ingest.inference.run_yaml import RunYaml
from eval_ingest.inference.tasks import TaskDeclaration, declare_task

_OUTPUT = re.compile(r"output|pred", re.IGNORECASE)
_KIND_CURE = f"give --task-type (one of {', '.join(TaskKind)})"


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
        raise run.root.get("model", "tasks").error(
            f"has {len(tasks)} tasks ({', '.join(tasks)}); an eval dataset has exactly one",
            "leave one in a copy and name its folder with --olmoearth-run-config-path",
            UnsupportedError,
        )
    for name, node in tasks.items():
        return declare_task(node, name)
    return None


def _label_layer(
    dataset: DatasetJson, run: RunYaml, spec: DatasetSpec, declared: TaskDeclaration | None
) -> str:
    """The layer that holds the label."""
    if spec.label_layer is not None:
        if spec.label_layer not in dataset.layer_names:
            raise dataset.root.get("layers").error(
                f"has no layer {spec.label_layer!r} (it has {', '.join(dataset.layer_names)})",
                "correct --label-layer",
            )
        return spec.label_layer
    named = run.label_layer.text()
    if named:
        if named not in dataset.layer_names:
            raise run.label_layer.error(
                f"is {named!r}, which config.json doesn't have "
                f"(it has {', '.join(dataset.layer_names)})",
                "correct it, or supply a model.yaml",
            )
        return named
    for kind in _label_kinds(spec, declared):
        layers = [name for name in dataset.layer_names if _may_be_label(dataset, name, kind)]
        by_name = [name for name in layers if name.lower().startswith("label")]
        by_classes = [name for name in layers if dataset.class_names(name, None)[0]]
        for candidates in (by_name, by_classes if kind == "raster" else []):
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                raise dataset.root.get("layers").error(
                    f"has several layers that may be the label ({', '.join(candidates)}) and "
                    "there is no model.yaml",
                    "choose one with --label-layer, or supply a model.yaml "
                    "(--olmoearth-run-config-path)",
                    InferenceError,
                )
    return _only_unfilled(dataset, _label_kinds(spec, declared))


def _only_unfilled(dataset: DatasetJson, kinds: tuple[str, ...]) -> str:
    """The one layer, whatever its name, that no data source fills and no modality stands for."""
    layers = [
        name
        for kind in kinds
        for name in dataset.layer_names
        if _may_be_label(dataset, name, kind)
        and modality_of_layer(name) is None
        and (kind == "vector" or len(_bands(dataset, name)) == 1)
    ]
    if len(layers) == 1:
        return layers[0]
    if layers:
        raise dataset.root.get("layers").error(
            f"has several layers that may be the label ({', '.join(layers)}) and there is no "
            "model.yaml",
            "choose one with --label-layer, or supply a model.yaml (--olmoearth-run-config-path)",
            InferenceError,
        )
    raise dataset.root.get("layers").error(
        f"has no layer that looks like a label (it has {', '.join(dataset.layer_names)}) and "
        "there is no model.yaml",
        "choose one with --label-layer, or supply a model.yaml (--olmoearth-run-config-path)",
        InferenceError,
    )


def _label_kinds(spec: DatasetSpec, declared: TaskDeclaration | None) -> tuple[str, ...]:
    """The layer types to look at for a label, in order."""
    kind = spec.task_type or (declared.kind if declared else None)
    if kind is not None:
        return ("raster",) if kind.per_pixel else ("vector",)
    return ("vector",) if spec.property_name else ("raster", "vector")


def _may_be_label(dataset: DatasetJson, name: str, kind: str) -> bool:
    fetched = dataset.node(name).get("data_source").value is not None
    return dataset.kind(name) == kind and not fetched and not _OUTPUT.search(name)


def _kind(label: str, dataset: DatasetJson, run: RunYaml, spec: DatasetSpec) -> TaskKind:
    """What kind of task the label layer is for."""
    if spec.task_type is not None:
        return spec.task_type
    field = run.field(spec.property_name)
    names, _ = dataset.class_names(label, None)
    has_classes = bool(spec.classes or names or (field and field.values))
    node = dataset.node(label)
    if dataset.kind(label) == "vector":
        if has_classes:
            return TaskKind.CLASSIFICATION
        cure = f"{_KIND_CURE} and --property-name"
    else:
        if has_classes:
            return TaskKind.SEGMENTATION
        band_set = node.get("band_sets").items()[:1]
        if (field and field.regression) or (
            band_set and band_set[0].get("dtype").text().lower() == "float32"
        ):
            return TaskKind.REGRESSION
        cure = f"{_KIND_CURE} and --classes"
    raise node.error(
        "there is no model.yaml, and nothing says what this label layer is for",
        f"{cure}, or name another layer with --label-layer",
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
