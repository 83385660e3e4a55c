"""Stand-ins for classes that configurations name and that no package on PyPI holds."""

from typing import Any

from rslearn.train.tasks.classification import ClassificationTask

_MERGED = {
    "agriculture": ("agriculture-generic", "agriculture-small", "agriculture-mennonite",
                    "agriculture-rice", "coca"),
    "river": ("flood",),
}  # fmt: skip


class ForestLossTask(ClassificationTask):
    """Merges six categories into two, and passes over those that it doesn't know."""

    def process_inputs(
        self, raw_inputs: dict[str, Any], metadata: Any, load_targets: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        names = {raw: merged for merged, raws in _MERGED.items() for raw in raws}
        for feature in raw_inputs["targets"]:
            if self.property_name in (feature.properties or {}):
                found = feature.properties[self.property_name]
                feature.properties[self.property_name] = names.get(found, found)
        self.skip_unknown_categories = True
        return super().process_inputs(raw_inputs, metadata, load_targets)
