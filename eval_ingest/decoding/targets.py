"""A stored label, raster or vector, as the task's target."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.task import IGNORE_LABEL, Task, TaskKind
from eval_ingest.decoding.problems import Unreadable

_SHOWN = 8
"""Categories that a message names, at most."""


def raster_target(stored: NDArray[Any], task: Task) -> NDArray[Any]:
    """The target of a stored label raster (H, W), by the rules of rslearn's task classes.

    Segmentation: int64 class ids, -1 where the label is nodata. Regression: float32, NaN there.
    """
    if task.kind is TaskKind.SEGMENTATION:
        labels = stored.astype(np.int64)
        if task.class_id_mapping:
            old, new = np.array(sorted(task.class_id_mapping.items())).T
            at = np.searchsorted(old, labels).clip(max=len(old) - 1)
            labels = np.where(old[at] == labels, new[at], labels)
        if task.nodata_value is not None:
            labels[labels == int(task.nodata_value)] = IGNORE_LABEL
        return labels
    values = stored.astype(np.float32)
    if task.scale_factor != 1:
        values = values * np.float32(task.scale_factor)
    if task.nodata_value is not None:
        values = np.where(stored == task.nodata_value, np.float32(np.nan), values)
    return values


def vector_target(features: Iterable[dict[str, Any]], task: Task) -> NDArray[Any]:
    """The target of a window from its features' properties: the first that has one counts.

    Raises a label problem if none has, or if a class is unknown and not to be skipped; where the
    task expects it (allow_invalid), that is no sign of broken data.
    """
    unknown: dict[str, None] = {}
    for properties in features:
        value = feature_target(properties, task)
        if value is not None:
            return np.asarray(value, np.int64 if task.kind.has_classes else np.float32)
        if task.property_name in properties and len(unknown) < _SHOWN:
            unknown[repr(properties[task.property_name])] = None
    detail = f"no feature has the property {task.property_name!r}"
    if unknown:
        found = ", ".join(unknown)
        detail = f"{task.property_name} is {found}: no class, and skip_unknown_categories is set"
    raise Unreadable("unlabelled" if task.allow_invalid else "label_missing", detail)


def feature_target(properties: dict[str, Any], task: Task) -> float | None:
    """The target that a feature's properties give; None if they give none.

    Raises:
        Unreadable: what stands there is no number, or no class that is known.
    """
    if task.property_name is None or task.property_name not in properties:
        return None
    value = properties[task.property_name]
    if task.kind is TaskKind.SCALAR_REGRESSION:
        try:
            return np.asarray(float(value) * task.scale_factor, np.float32).item()
        except (TypeError, ValueError, OverflowError) as error:
            raise Unreadable(
                "label_unreadable", f"{task.property_name} = {value!r} is not a number"
            ) from error
    class_id = _class_id(value, task)
    if 0 <= class_id < task.num_classes:
        return class_id
    if task.skip_unknown_categories:
        return None
    raise Unreadable(
        "label_out_of_range", f"{task.property_name} = {value!r} is none of the classes"
    )


def _class_id(value: Any, task: Task) -> int:
    if task.read_class_id:
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            return -1
    if not isinstance(value, str):
        return -1
    return task.class_ids.get(task.category_mapping.get(value, value), -1)
