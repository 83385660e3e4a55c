"""What a config.json and a model.yaml ask of a dataset: groups, options, item groups, label values.

For writing a small dataset that matches them. Read from the files as they stand and by rslearn's
own rules, so that it can be held against what `inference` makes of the same files; how it is
written is datasets.py.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eval_ingest.core.plain_yaml import load_yaml
from eval_ingest.inference.node import parse_yaml

SPLITS = ("train", "val", "test")
ITEM_GROUPS = 3
"""Where an input reads all item groups there are, however many."""

_SPACE = 8
"""Windows are larger than a crop or a Pad by so many pixels."""


@dataclass(frozen=True)
class Place:
    """A group and options that some split selects, or that none does."""

    group: str
    options: dict[str, Any]
    names: tuple[str, ...] = ()
    """Names that its windows must have; empty: any."""


@dataclass(frozen=True)
class Described:
    """A pair of configuration files."""

    config: dict[str, Any]
    """The content of config.json."""
    data: dict[str, Any]
    """The arguments of model.yaml's data module."""

    @classmethod
    def parse(cls, config_json: str, model_yaml: str) -> "Described":
        """Read the two texts."""
        data = parse_yaml(model_yaml, "model.yaml", "").get("data").value
        return cls(json.loads(config_json), _init_args(data))

    # --- inputs ---

    @cached_property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """The data module's inputs, as arguments of rslearn's DataInput."""
        return {key: _init_args(value) for key, value in self.data["inputs"].items()}

    def item_groups(self, layer: str) -> int:
        """How many item groups windows have of a layer, at most."""
        counts = [1]
        for data_input in self.inputs.values():
            for read in map(str, data_input["layers"]):
                name, _, number = read.partition(".")
                if name != layer:
                    continue
                counts.append(int(number or 0) + 1)
                if data_input.get("load_all_item_groups"):
                    counts.append(self._stored_groups(layer))
        return max(counts)

    def may_lack_groups(self, layer: str) -> bool:
        """True if a window with fewer item groups is whole: nothing names them one by one."""
        query = (self.config["layers"][layer].get("data_source") or {}).get("query_config") or {}
        read_whole = [
            bool(data_input.get("load_all_item_groups"))
            for data_input in self.inputs.values()
            if layer in {str(read).partition(".")[0] for read in data_input["layers"]}
        ]
        fewest = query.get("min_matches", 0)
        return bool(read_whole) and all(read_whole) and fewest < query.get("max_matches", 1)

    def _stored_groups(self, layer: str) -> int:
        source = self.config["layers"][layer].get("data_source")
        if source is None:
            return 1
        return min(int((source.get("query_config") or {}).get("max_matches", 1)), ITEM_GROUPS)

    # --- tasks ---

    @cached_property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The tasks by name, or the lone one under ""; each a class_path with init_args."""
        task = self.data["task"]
        return dict(_init_args(task).get("tasks") or {"": task})

    def label_input(self, task: str) -> str:
        """The input that a task's targets are made from."""
        mapping = (_init_args(self.data["task"]).get("input_mapping") or {}).get(task) or {}
        return next((key for key, name in mapping.items() if name == "targets"), "targets")

    @cached_property
    def label_layers(self) -> dict[str, list[dict[str, Any]]]:
        """The layers that hold labels, and the tasks that read each."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, task in self.tasks.items():
            for read in self.inputs[self.label_input(name)]["layers"]:
                found.setdefault(str(read).partition(".")[0], []).append(task)
        return found

    @cached_property
    def binary_layers(self) -> set[str]:
        """Layers of zeros and ones: masks, and targets that no task reads."""
        labels = {self.label_input(name) for name in self.tasks}
        keys = {key for key, value in self.inputs.items() if value.get("is_target")} - labels
        keys |= {
            str(args.get("mask_selector", "mask")).removeprefix("input/")
            for name, args in self.transforms()
            if name == "Mask"
        }
        return {
            str(read).partition(".")[0]
            for key in keys & self.inputs.keys()
            for read in self.inputs[key]["layers"]
            if self.inputs[key]["data_type"] == "raster"
        }

    # --- splits ---

    def split_config(self, split: str) -> dict[str, Any]:
        """A split's configuration, laid over the default one as rslearn does."""
        own = _init_args(self.data.get(f"{split}_config") or {})
        default = _init_args(self.data.get("default_config") or {})
        return {**default, **{key: value for key, value in own.items() if value or value == 0}}

    def transforms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Class name and arguments of every transform of every split."""
        for split in SPLITS:
            for transform in self.split_config(split).get("transforms") or []:
                yield transform["class_path"].rpartition(".")[2], _init_args(transform)

    def places(self, split: str) -> list[Place]:
        """Where a split's windows lie: one place a group."""
        config = self.split_config(split)
        options = {str(key): _option(value) for key, value in (config.get("tags") or {}).items()}
        weight = _init_args(config.get("sampler") or {}).get("option_key")
        if weight:
            options[weight] = 1.0
        names = tuple(map(str, config.get("names") or ()))
        groups = config.get("groups") or ["default"]
        return [Place(str(group), options, names) for group in groups]

    # --- sizes ---

    def sides(self, least: int) -> list[tuple[int, int]]:
        """Heights and widths of windows, so that every crop and Pad has something to do."""
        crops = [_largest(config.get(key)) for config in map(self.split_config, SPLITS)
                 for key in ("crop_size", "patch_size") if config.get(key)]  # fmt: skip
        crops += [_largest(args["crop_size"]) for name, args in self.transforms() if name == "Crop"]
        pads = [(args["size"], args.get("mode", "topleft"))
                for name, args in self.transforms() if name == "Pad"]  # fmt: skip
        every = any(self.split_config(split).get(key) for split in SPLITS
                    for key in ("load_all_crops", "load_all_patches"))  # fmt: skip
        largest = max([least, *crops, *(_largest(size) for size, _ in pads)])
        if any(mode == "topleft" for _, mode in pads):  # it can't cut off
            smallest = min(_largest(size) for size, mode in pads if mode == "topleft")
            return [(smallest, smallest)]
        if every:
            return [(2 * largest + largest // 2,) * 2, (largest, 2 * largest)]
        if largest >= 128:
            return [(largest, largest)]
        return [(largest + _SPACE,) * 2, (largest, largest + 2 * _SPACE)]


def stored_labels(task: dict[str, Any], dtype: str, rng: np.random.Generator) -> Any:
    """A raster label's possible values in its stored type."""
    args = _init_args(task)
    if not task["class_path"].endswith("SegmentationTask"):
        values = rng.uniform(0.5, 90, 64)
        if args.get("nodata_value") is not None:
            values = np.append(values, [args["nodata_value"]] * 8)
        return values.astype(dtype)
    ids = [*range(int(args["num_classes"]))]
    mapping = args.get("class_id_mapping")
    if mapping:
        ids = [*map(int, mapping), *(v for v in ids if v not in mapping)]
    if args.get("nodata_value") is not None:
        ids.append(int(args["nodata_value"]))
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    return np.array([v for v in dict.fromkeys(ids) if limits.min <= v <= limits.max], dtype)


def feature_properties(
    task: dict[str, Any], names: list[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Properties of a feature that give a vector task its label.

    `names` are the layer's class names, which may be more than the task's.
    """
    args = _init_args(task)
    name = args["property_name"]
    if "classes" not in args:
        return {name: round(float(rng.uniform(1, 200)), 3)}
    if args.get("read_class_id"):
        return {name: int(rng.integers(len(args["classes"])))}
    known = list(map(str, args["classes"]))
    if args.get("skip_unknown_categories") or not task["class_path"].endswith(
        ".ClassificationTask"
    ):
        known += names
    return {name: known[int(rng.integers(len(known)))]}


def may_lack_label(task: dict[str, Any]) -> bool:
    """True if a window without the task's label is expected."""
    return bool(_init_args(task).get("allow_invalid"))


def _init_args(value: Any) -> dict[str, Any]:
    """The arguments of `class_path` with `init_args`, or the plain mapping."""
    if not isinstance(value, dict):
        return {}
    if "class_path" in value or "init_args" in value:
        return dict(value.get("init_args") or {})
    return value


def _option(value: Any) -> Any:
    """A window option that a tag of this value selects; an empty one needs any."""
    if isinstance(value, str):
        value = load_yaml(value)  # as jsonargparse reads a text where any type may stand
    return value if value or (isinstance(value, float) and math.isnan(value)) else "given"


def _largest(size: Any) -> int:
    """The larger side of 16, [width, height] or [smallest, beyond largest]."""
    return max(map(int, size)) if isinstance(size, list | tuple) else int(size)
