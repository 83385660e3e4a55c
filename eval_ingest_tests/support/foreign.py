"""Stand-ins for classes that configurations name and that no package on PyPI holds.

Each does what the public source of the class does, read there and written anew.
"""

from typing import Any

import torch
from rslearn.train.tasks.classification import ClassificationTask

_MERGED = {
    "agriculture": ("agriculture-generic", "agriculture-small", "agriculture-mennonite",
                    "agriculture-rice", "coca"),
    "river": ("flood",),
}  # fmt: skip


class ForestLossTask(ClassificationTask):
    """The first feature whose category, some of them merged, is among the classes.

    It goes by names alone: `filters`, `read_class_id` and `skip_unknown_categories` do nothing.
    """

    def process_inputs(
        self, raw_inputs: dict[str, Any], metadata: Any, load_targets: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if not load_targets:
            return {}, {}
        names = {raw: merged for merged, raws in _MERGED.items() for raw in raws}
        given = [f.properties[self.property_name] for f in raw_inputs["targets"]
                 if self.property_name in f.properties]  # fmt: skip
        known = [name for name in (names.get(found, found) for found in given)
                 if name in self.classes]  # fmt: skip
        if not known and not self.allow_invalid:
            raise ValueError("no feature gives a class")
        place = self.classes.index(known[0]) if known else 0
        return {}, {"class": torch.tensor(place), "valid": torch.tensor(float(bool(known)))}
