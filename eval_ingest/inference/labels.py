"""The task and its label: class names in their places, nodata, and where the label is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from eval_ingest.core.bounds import MOST_CLASSES
from eval_ingest.core.resolved import LabelInput
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import LabelClass, Task, TaskKind
from eval_ingest.errors import InferenceError
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.inputs import check_bands, mask_input, raster_bands, read_layer
from eval_ingest.inference.model_yaml import DataInput
from eval_ingest.inference.node import Node, Notes
from eval_ingest.inference.run_yaml import LabelValue, OutputField, RunYaml, parse_color
from eval_ingest.inference.tasks import TaskDeclaration
from eval_ingest.inference.transforms import Replay

_Item = TypeVar("_Item")
_NODATA_NAME = re.compile(r"no[ _-]?data", re.IGNORECASE)
_VECTOR_KINDS = (TaskKind.CLASSIFICATION, TaskKind.SCALAR_REGRESSION)


@dataclass(frozen=True)
class _Names:
    """Class names as some file gives them."""

    place: str
    by_id: Mapping[int, str]
    count: int
    """Classes that the source knows of."""


@dataclass(frozen=True)
class TaskReader:
    """Everything that decides a task: the declaration, the other files, and the spec."""

    declared: TaskDeclaration
    label: DataInput
    dataset: DatasetJson
    run: RunYaml
    spec: DatasetSpec
    notes: Notes
    guessed: bool = False
    """There is no model.yaml: whatever other files hint at is better than nothing."""

    # --- the label ---

    def label_input(
        self, replayed: Replay, others: Mapping[str, Replay], inputs: Mapping[str, DataInput]
    ) -> LabelInput:
        """Where the label is read from."""
        self._check_label_type()
        self.label.check_supported()
        if replayed.label_problem is not None and not self.label.vector:
            raise replayed.label_problem
        for layer in self.label.layers:
            read_layer(self.label, layer, self.dataset)
        self.notes.origin("label", self.label.node.place)
        if self.label.vector:
            is_number = self.declared.kind is TaskKind.SCALAR_REGRESSION
            dtype = "float32" if is_number else "int32"
            return LabelInput(part=self.label.part, dtype=dtype)
        return LabelInput(
            part=self.label.part,
            band=self._label_band(),
            dtype=self.label.dtype,
            mask=mask_input(replayed.label_mask, inputs, self.dataset),
            pad=replayed.label_pad,
            pads=replayed.pads_beside(others, ""),
        )

    def _check_label_type(self) -> None:
        kind = self.declared.kind
        if self.label.vector != (kind in _VECTOR_KINDS):
            expected, found = (
                ("vector", "raster") if kind in _VECTOR_KINDS else ("raster", "vector")
            )
            raise self.label.node.error(
                f"the label {self.label.key!r} is a {found}, but {kind} needs a {expected}",
                "name a layer of that type as the target, or another --task-type",
            )

    def _label_band(self) -> str:
        bands = raster_bands(self.label, self.dataset)
        if len(bands) != 1:
            raise self.label.node.get("bands").unsupported(
                f"the label has {len(bands)} bands ({', '.join(bands)}), but a target is one band",
                "name the one band that holds the label",
            )
        check_bands(self.label, bands, self.dataset)
        return bands[0]

    # --- the task ---

    def task(self) -> Task:
        """The task, with classes named and placed."""
        self._check_spec()
        kind, args = self.declared.kind, self.declared.args
        self.notes.origin("task", self.declared.node.place)
        classes = self._classes() if kind.has_classes else ()
        return Task(
            kind=kind,
            num_classes=len(classes) if kind.has_classes else 1,
            classes=classes,
            nodata_value=self._nodata,
            class_id_mapping=self._mapping,
            scale_factor=self._scale_factor(),
            property_name=self._property_name(),
            read_class_id=args.get("read_class_id").flag() and not self.declared.by_name,
            allow_invalid=args.get("allow_invalid").flag(),
            skip_unknown_categories=self.declared.by_name
            or args.get("skip_unknown_categories").flag(),
            category_mapping=dict(self.declared.category_mapping),
        )

    def _check_spec(self) -> None:
        kind, where = self.declared.kind, self.declared.node
        if self.spec.task_type not in (None, kind):
            raise where.error(
                f"is a {kind} task, but --task-type says {self.spec.task_type}",
                "leave --task-type out, or name another folder with --olmoearth-run-config-path",
            )
        if self.spec.classes and not kind.has_classes:
            raise where.error(f"is a {kind} task, which has no classes", "leave --classes out")
        if self.spec.property_name and kind not in _VECTOR_KINDS:
            raise where.error(
                f"is a {kind} task, whose label is a raster without properties",
                "leave --property-name out",
            )

    def _scale_factor(self) -> float:
        if self.declared.kind.has_classes:
            return 1.0
        factor = self.declared.args.get("scale_factor").number()
        return 1.0 if factor is None else factor

    @cached_property
    def _mapping(self) -> dict[int, int] | None:
        """class_id_mapping."""
        node = self.declared.args.get("class_id_mapping")
        if self.declared.kind is not TaskKind.SEGMENTATION or not node.value:
            return None
        mapping = {}
        for key, value in node.entries().items():
            old, new = replace(node, value=key).integer(), value.integer()
            if old is None or new is None:
                raise node.error(f"maps {key} to {value.shown}", "give two whole numbers")
            mapping[old] = new
        self.notes.origin("class_id_mapping", node.place)
        return mapping

    def _property_name(self) -> str | None:
        if self.declared.kind not in _VECTOR_KINDS:
            return None
        layer, field = self.label.layers[0], self._field
        candidates = (
            (self.spec.property_name, "--property-name"),
            _name(self.declared.args.get("property_name")),
            _name(self.dataset.class_property(layer)),
            (field.name, field.node.place) if field else ("", ""),
        )
        for name, place in candidates:
            if name:
                self.notes.origin("property_name", place)
                return name
        raise self.label.node.error(
            f"nothing says which property of layer {layer!r} holds the label",
            "give --property-name (and --task-type)",
            InferenceError,
        )

    # --- nodata ---

    @cached_property
    def _nodata(self) -> float | None:
        if not self.declared.kind.per_pixel:
            return None
        args = self.declared.args
        zero, nodata = args.get("zero_is_invalid"), args.get("nodata_value")
        if self.declared.kind is TaskKind.SEGMENTATION and zero.flag():
            if nodata.given:
                raise nodata.error("and zero_is_invalid are both set", "keep one of them")
            self.notes.origin("nodata_value", zero.place)
            return 0.0
        if nodata.given:
            self.notes.origin("nodata_value", nodata.place)
            return self._nodata_number(nodata)
        return self._other_nodata()

    def _other_nodata(self) -> float | None:
        """The nodata value where the task says none, from the other files."""
        for node in self._nodata_hints():
            value = self._nodata_number(node) if node.given else None
            if value is None:
                continue
            if self._is_declared_class(value):
                self.notes.warn(
                    f"{node.place} is {node.value}, which is a class of "
                    f"{self.declared.node.place}; it stays a class"
                )
                continue
            self.notes.origin("nodata_value", node.place)
            self.notes.warn(f"the task names no nodata_value; {node.value} is from {node.place}")
            return value
        self.notes.origin("nodata_value", "default")
        return None

    def _nodata_hints(self) -> list[Node]:
        hints = [self._field.nodata] if self._field else []
        if self.guessed:
            layer, band = self.label.layers[0], self._label_band()
            stored = self.dataset.nodata_value(layer, band)
            hints += [self.run.prepared_nodata, *([stored] if stored else [])]
            names, _ = self.dataset.class_names(layer, band)
            node = self.dataset.node(layer).get("class_names")
            hints += [
                replace(node, value=value)
                for value, name in enumerate(names)
                if _NODATA_NAME.fullmatch(name)
            ]
        return hints

    def _is_declared_class(self, value: float) -> bool:
        count = self.declared.args.get("num_classes").integer()
        return self.declared.kind is TaskKind.SEGMENTATION and 0 <= value < (count or 0)

    def _nodata_number(self, node: Node) -> float | None:
        """Classes are whole numbers, and so is the value that marks their absence."""
        found = node.nodata()
        is_class = found is not None and self.declared.kind is TaskKind.SEGMENTATION
        return node.integer() if is_class else found

    # --- classes ---

    def _classes(self) -> tuple[LabelClass, ...]:
        names = self._names()
        count = self._count or (names.count if names else 0)
        if count < 1:
            raise self.declared.node.error(
                f"nothing says which classes layer {self.label.layers[0]!r} has",
                "give --classes",
                InferenceError,
            )
        if not self._count:
            self.notes.origin("num_classes", names.place if names else "default")
        self._note_names(names, count)
        by_id, colors = (names.by_id, self._colors(names, count)) if names else ({}, {})
        return tuple(
            LabelClass(name=by_id.get(i) or f"class_{i}", color=colors.get(i)) for i in range(count)
        )

    @cached_property
    def _count(self) -> int | None:
        """num_classes, or how many classes the task lists."""
        node = self.declared.args.get("num_classes")
        count = node.integer(1, MOST_CLASSES)
        if count is None:
            node = self.declared.args.get("classes")
            count = len(node.names()) or None
        if count is not None:
            self.notes.origin("num_classes", node.place)
        return count

    def _names(self) -> _Names | None:
        """Class names by class id, from the first place that has any."""
        if self.spec.classes:
            return self._spec_names()
        for key in ("classes", "class_names"):
            listed = self.declared.args.get(key)
            if listed.names():
                return self._task_names(listed)
        if self.declared.kind is TaskKind.CLASSIFICATION:
            # Here names are looked up in the features, and config.json lists just those.
            return self._layer_names() or self._run_names()
        return self._run_names() or self._layer_names()

    def _spec_names(self) -> _Names:
        """--classes, with or without the class that marks missing labels."""
        given, count, nodata = self.spec.classes, self._count, self._nodata
        ids = list(range(count or len(given)))
        if count and len(given) == count - 1 and nodata is not None and int(nodata) in ids:
            ids.remove(int(nodata))
        if len(given) != len(ids):
            raise self.declared.node.error(
                f"has {count} classes, but --classes names {len(given)} ({', '.join(given)})",
                "name as many as there are, in the order of their ids",
            )
        listed = self.declared.args.get("classes")
        if listed.names() and set(listed.names()) != set(given):
            self.notes.warn(
                "--classes differs from the classes of the task; features of other classes than "
                f"{', '.join(given)} become invalid"
            )
        return _Names("--classes", dict(zip(ids, given, strict=True)), len(ids))

    def _task_names(self, node: Node) -> _Names:
        names = node.names()
        if self._count is not None and len(names) != self._count:
            raise node.error(
                f"names {len(names)} classes, but num_classes is {self._count}",
                "correct one of them, or give --classes",
            )
        return _Names(node.place, dict(enumerate(names)), len(names))

    def _run_names(self) -> _Names | None:
        """Names from olmoearth_run.yaml, placed by the values they stand for."""
        if self._field is None or not self._field.values:
            return None
        place = f"{self._field.node.place}.allowed_values"
        names = {value: item.name for value, item in _numbered(self._field.values).items()}
        return self._named(place, names)

    def _layer_names(self) -> _Names | None:
        """Names from the label layer of config.json, by stored value."""
        band = None if self.label.vector else self._label_band()
        names, place = self.dataset.class_names(self.label.layers[0], band)
        if not names:
            return None
        count, mapping, first = self._count, self._mapping or {}, 0
        if self._nodata == 0 and not mapping and count is not None and len(names) == count - 1:
            first = 1  # as many as there are classes without nodata: zero isn't among the names
            self.notes.warn(f"{place} is read as the names of the values 1 to {len(names)}")
        stored = {mapping.get(value, value): n for value, n in enumerate(names, start=first)}
        return self._named(place, stored, mapped=True)

    def _named(self, place: str, names: Mapping[int, str], mapped: bool = False) -> _Names:
        """Names by stored value to names by class id.

        Without num_classes there are as many classes as reach the highest value.
        """
        count, mapping = self._count, None if mapped else self._mapping
        if count is None:
            ids = {mapping.get(v, v) if mapping else v: name for v, name in names.items()}
            highest = max((i for i in ids if i != self._nodata), default=-1)
            return _Names(place, ids, min(highest + 1, MOST_CLASSES))
        kept = {v: name for v, name in names.items() if v != self._nodata or v < count}
        return _Names(place, self._to_ids(kept, count, mapped), count)

    def _to_ids(
        self, values: Mapping[int, _Item], count: int, mapped: bool = False
    ) -> dict[int, _Item]:
        """Values of olmoearth_run.yaml to class ids.

        They are class ids where they fit; else stored values that the task maps, unless it has done
        so already; else counted from 1.
        """
        if all(0 <= value < count for value in values):
            return dict(values)
        if self._mapping is not None and not mapped:
            return {self._mapping.get(value, value): item for value, item in values.items()}
        first = 1 if min(values) == 1 and max(values) == count else 0
        return {value - first: item for value, item in values.items()}

    @cached_property
    def _field(self) -> OutputField | None:
        """The output field of this task in olmoearth_run.yaml."""
        return self.run.field(
            self.declared.name,
            self.spec.property_name,
            self.declared.args.get("property_name").text(),
        )

    def _colors(self, names: _Names, count: int) -> dict[int, tuple[int, int, int]]:
        """Colours by class id: by name where olmoearth_run.yaml uses the same, else by value."""
        listed = self.declared.args.get("colors")
        found: Mapping[int, tuple[int, int, int] | None] = {}
        if isinstance(listed.value, list):
            found = {i: parse_color(item.value) for i, item in enumerate(listed.items())}
        elif self._field is not None:
            values = _numbered(self._field.values)
            by_name = {item.name or str(item.value): item.color for item in values.values()}
            if set(by_name) & set(names.by_id.values()):
                found = {i: by_name.get(name) for i, name in names.by_id.items()}
            else:
                found = self._to_ids({v: item.color for v, item in values.items()}, count)
        return {i: color for i, color in found.items() if color}

    def _note_names(self, names: _Names | None, count: int) -> None:
        if names is None:
            self.notes.origin("classes", "default")
            self.notes.warn(
                f"no file names the classes; they are called class_0 to class_{count - 1} until "
                "--classes names them"
            )
            return
        self.notes.origin("classes", names.place)
        missing = [i for i in range(count) if not names.by_id.get(i) and i != self._nodata]
        if missing:
            listed = ", ".join(f"class_{i}" for i in missing[:8])
            self.notes.warn(
                f"{names.place} doesn't name all {count} classes; the others are called {listed}"
            )
        ids = (i for i in names.by_id if not 0 <= i < count and i != self._nodata)
        beyond = [names.by_id[i] for i in ids]
        if beyond:
            self.notes.warn(
                f"{names.place} names {', '.join(beyond[:8])} beyond the {count} classes; left out"
            )


def _name(node: Node) -> tuple[str, str]:
    return (node.name() if node.given else "", node.place)


def _numbered(values: tuple[LabelValue, ...]) -> dict[int, LabelValue]:
    """Values by number; by their place in the list if they are texts."""
    if all(isinstance(item.value, int) for item in values):
        return {int(item.value): item for item in values}
    return {
        i: LabelValue(i, item.name or str(item.value), item.color) for i, item in enumerate(values)
    }
