"""What is predicted: the task kinds, their classes, and how a stored label becomes a target."""

from enum import StrEnum
from functools import cached_property
from typing import Annotated

from pydantic import Field

from eval_ingest.core.bounds import MOST_CLASSES, Record, Whole

IGNORE_LABEL = -1
"""The target value of pixels and windows without a valid class."""


class TaskKind(StrEnum):
    """The kinds of task, by the names that the OlmoEarth registry uses."""

    SEGMENTATION = "segmentation"
    """One class per pixel, from a raster label."""
    CLASSIFICATION = "classification"
    """One class per window, from a vector label."""
    REGRESSION = "regression"
    """One number per pixel, from a raster label."""
    SCALAR_REGRESSION = "scalar_regression"
    """One number per window, from a vector label."""

    @property
    def has_classes(self) -> bool:
        """True if the target is a class id rather than a number."""
        return self in (TaskKind.SEGMENTATION, TaskKind.CLASSIFICATION)

    @property
    def per_pixel(self) -> bool:
        """True if the target has a value per pixel, read from a raster label."""
        return self in (TaskKind.SEGMENTATION, TaskKind.REGRESSION)


_Shade = Annotated[int, Field(ge=0, le=255)]


class LabelClass(Record):
    """One class; its id is its place in `Task.classes`."""

    name: str
    color: tuple[_Shade, _Shade, _Shade] | None = None
    """Red, green, blue, 0 to 255."""


class Task(Record):
    """One prediction task, with the rules of rslearn's task classes that decide a target."""

    kind: TaskKind
    num_classes: Annotated[int, Field(gt=0, le=MOST_CLASSES)] = 1
    """Classes including those that no pixel has; 1 for both regressions."""
    classes: tuple[LabelClass, ...] = ()
    """As many as num_classes for the kinds with classes, else empty."""

    nodata_value: float | None = None
    """Pixels of this value have no label; compared after `class_id_mapping`, before scaling."""
    class_id_mapping: dict[Whole, Whole] | None = None
    """Stored class id to class id; ids that are not listed stay."""
    scale_factor: float = 1.0
    """Regressions: target = stored value * scale_factor."""

    property_name: str | None = None
    """Vector labels: the feature property that holds the class or the number."""
    read_class_id: bool = False
    """Classification: the property holds the class id, not its name."""
    allow_invalid: bool = False
    """A window without a label is expected, not an error; it is in no split all the same."""
    skip_unknown_categories: bool = False
    """Classification: features of unlisted classes are passed over."""
    category_mapping: dict[str, str] = Field(default_factory=dict)
    """Classification: stored category to the one that is looked up among the classes."""

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """Ids by name; of two classes of a name, the first one's."""
        return {known.name: k for k, known in reversed([*enumerate(self.classes)])}

    @property
    def ignored_id(self) -> int | None:
        """The class id that only marks missing labels, if it counts among the classes."""
        if self.kind is TaskKind.SEGMENTATION and self.nodata_value is not None:
            value = int(self.nodata_value)
            if 0 <= value < self.num_classes:
                return value
        return None
