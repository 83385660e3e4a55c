"""A stored label, raster or vector, as the task's target."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.task import IGNORE_LABEL, Task, TaskKind
from eval_ingest.decoding.problems import Unreadable


def raster_target(stored: NDArray[Any], task: Task) -> NDArray[Any]:
    """The target of a stored label raster (H, W), by the rules of rslearn's task classes.

    Segmentation: int64 class ids, -1 where the label is nodata. Regression: float32, NaN there.
    """
    if task.kind is TaskKind.SEGMENTATION:
        labels = stored.astype(np.int64)
        if task.class_id_mapping:
            mapped = labels.copy()
            for old, new in task.class_id_mapping.items():
                mapped[labels == old] = new
            labels = mapped
        if task.nodata_value is not None:
            labels[labels == int(task.nodata_value)] = IGNORE_LABEL
        return labels
    values = stored.astype(np.float32)
    if task.scale_factor != 1:
        values = values * np.float32(task.scale_factor)
    if task.nodata_value is not None:
        values = np.where(stored == task.nodata_value, np.float32(np.nan), values)
    return values


def vector_target(features: list[dict[str, Any]], task: Task) -> NDArray[Any]:
    """The target of a window from its features' properties: the first that has one counts.

    Raises a label problem if none has, or if a class is unknown and not to be skipped; where the
    task expects it (allow_invalid), that is no sign of broken data.
    """
    unknown: list[str] = []
    for properties in features:
        if task.property_name is None or task.property_name not in properties:
            continue
        value = properties[task.property_name]
        if task.kind is TaskKind.SCALAR_REGRESSION:
            try:
                return np.asarray(float(value) * task.scale_factor, dtype=np.float32)
            except (TypeError, ValueError, OverflowError) as error:
                raise Unreadable(
                    "label_unreadable", f"{task.property_name} = {value!r} is not a number"
                ) from error
        class_id = _class_id(value, task)
        if 0 <= class_id < task.num_classes:
            return np.asarray(class_id, dtype=np.int64)
        if not task.skip_unknown_categories:
            raise Unreadable(
                "label_out_of_range", f"{task.property_name} = {value!r} is none of the classes"
            )
        unknown.append(repr(value))
    detail = f"no feature has the property {task.property_name!r}"
    if unknown:
        found = ", ".join(dict.fromkeys(unknown[:8]))
        detail = f"{task.property_name} is {found}: no class, and skip_unknown_categories is set"
    raise Unreadable("unlabelled" if task.allow_invalid else "label_missing", detail)


def _class_id(value: Any, task: Task) -> int:
    if task.read_class_id:
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            return -1
    if isinstance(value, str):
        value = task.category_mapping.get(value, value)
    return next((k for k, known in enumerate(task.classes) if known.name == value), -1)
