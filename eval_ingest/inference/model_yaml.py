"""model.yaml: which inputs rslearn reads, for which task, in which splits.

This follows rslearn's DataInput, MultiTask and SplitConfig without importing them. What it gives
is a `Declaration`, which `inference.guess` makes up where model.yaml is missing.
"""

import math
from dataclasses import dataclass
from typing import Any

from eval_ingest.core.plain_yaml import YamlProblem, check_whole, untyped
from eval_ingest.core.resolved import InputPart, LayerRead, SplitSelector
from eval_ingest.core.spec import SPLITS
from eval_ingest.inference.node import Node, Notes, check_class_paths, parse_yaml
from eval_ingest.inference.tasks import TaskDeclaration, choose_task, target_images

_WHOLE = (1, "1", "1/1", {"numerator": 1}, {"numerator": 1, "denominator": 1})
"""Resolution factors that change nothing."""


@dataclass(frozen=True)
class DataInput:
    """rslearn's DataInput, as far as it decides what is read."""

    key: str
    node: Node
    """Its place, for messages."""
    vector: bool
    reads: tuple[LayerRead, ...]
    stack: bool
    bands: tuple[str, ...] = ()
    """Empty: all bands of the band set `band_set_index`."""
    band_set_index: int = 0
    required: bool = True
    passthrough: bool = False
    is_target: bool = False
    dtype: str = "float32"
    """The type that rslearn casts to: float32 or int32."""

    @property
    def part(self) -> InputPart:
        """What of it the index and the pack need to know."""
        return InputPart(key=self.key, reads=self.reads, stack=self.stack, required=self.required)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads, each once, in order."""
        return tuple(dict.fromkeys(read.layer for read in self.reads))

    def check_supported(self) -> None:
        """Refuse what would make our pixels differ from rslearn's."""
        factor = self.node.get("resolution_factor")
        if factor.given and factor.args.value not in _WHOLE:
            raise factor.unsupported(
                f"is {factor.shown}: input {self.key!r} is not read at the window's resolution, "
                "which isn't supported",
                "set it to 1 or leave the modality out with --modalities",
            )
        resampling = self.node.get("resampling")
        if resampling.given and resampling.text().lower() not in ("nearest", "0"):
            raise resampling.unsupported(
                f"is {resampling.shown}: only nearest is supported (rslearn 0.1.19 reads every "
                "raster so)",
                "remove it from the input",
            )


@dataclass(frozen=True)
class Declaration:
    """What is to be predicted from what: by model.yaml, or guessed without one."""

    task: TaskDeclaration
    label: DataInput
    inputs: tuple[DataInput, ...]
    """All but the label, in the file's order."""
    transforms: tuple[Node, ...] = ()
    """Those of the evaluation splits."""
    train_transforms: tuple[Node, ...] = ()
    targets: tuple[str, ...] = ()
    """Selectors of the target images of all tasks, such as `segment/classes`."""
    splits: "SplitConfigs | None" = None


@dataclass(frozen=True)
class SplitConfigs:
    """rslearn's default_config, train_config, val_config and test_config, merged as it does."""

    node: Node
    """The data module's arguments."""

    def own(self, split: str, key: str) -> Node:
        """A value of the split's own configuration."""
        return self.node.get(f"{split}_config").args.get(key)

    def merged(self, split: str, key: str) -> Node:
        """A value of the split, or of default_config where the split's is missing or empty."""
        own = self.own(split, key)
        return own if own.value else self.own("default", key)

    def first(self, split: str, *keys: str) -> Node:
        """The first of some keys that the split has, or else default_config: false counts."""
        nodes = [self.own(config, key) for config in (split, "default") for key in keys]
        return next((node for node in nodes if node.value is not None), nodes[0])

    def transforms(self, split: str) -> tuple[Node, ...]:
        """The split's transforms, or the default's: they replace each other."""
        return tuple(self.merged(split, "transforms").items())

    def judged_by(self) -> str:
        """The split whose transforms all splits take: val; where it isn't mentioned, the next.

        Val may be without any: then its samples are as they are stored.
        """
        if self.node.get("val_config").value is None and not self.transforms("val"):
            return next((s for s in ("test", "train") if self.transforms(s)), "val")
        return "val"

    def others(self) -> tuple[str, ...]:
        """The other splits that model.yaml has a configuration for."""
        used = self.judged_by()
        return tuple(
            s for s in SPLITS if s != used and self.node.get(f"{s}_config").value is not None
        )

    def selectors(self, notes: Notes) -> dict[str, SplitSelector]:
        """Which windows each split takes; nothing where no window is chosen by anything."""
        own = {split for split in SPLITS if self._selects(split)}
        chosen = set(own)
        if self._selects("default"):
            # A test split that is never mentioned isn't all windows of the default's groups.
            chosen |= {"train"} if own else set(SPLITS)
        return {split: self._selector(split, notes) for split in SPLITS if split in chosen}

    def _selects(self, config: str) -> bool:
        keys = ("groups", "names", "tags", "num_samples")
        return any(self.own(config, key).value for key in keys)

    def _selector(self, split: str, notes: Notes) -> SplitSelector:
        groups, names, tags = (self.merged(split, key) for key in ("groups", "names", "tags"))
        entries = tags.entries()
        for key in tags.value or ():
            if not isinstance(key, str):
                raise tags.error(f"has the key {key!r}, which isn't a text", "write it in quotes")
        for node in (*elements(groups), *elements(names), *entries.values()):
            if node.unset:
                notes.warn(f"{node.place} is the unset placeholder {node.value}; it is ignored")
        return SplitSelector(
            groups=tuple(node.name() for node in elements(groups) if node.given),
            names=tuple(node.name() for node in elements(names) if node.given),
            tags={key: _tag(value, notes) for key, value in entries.items() if not value.unset},
            num_samples=self._limit(split),
        )

    def _limit(self, split: str) -> int | None:
        """num_samples; none or zero is no limit."""
        node = self.merged(split, "num_samples")
        count = node.integer() or None
        if count is not None and count < 0:
            raise node.error(f"is {count}, but must be a number of windows")
        return count


def _tag(node: Node, notes: Notes) -> Any:
    """The value that a window's option must equal, of the type that jsonargparse gives it.

    "" for any value: so rslearn takes whatever is empty or false.
    """
    value = untyped(node.text()) if isinstance(node.value, str) else node.value
    try:
        check_whole(value)
    except YamlProblem as problem:
        raise node.error(str(problem), "correct the tag") from None
    if not value:
        if value not in (None, ""):
            notes.warn(
                f"{node.place} is {value}, which rslearn takes for: the option is there, whatever "
                "its value"
            )
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise node.error(f"is {node.shown}, which equals no option of a window", "correct the tag")
    return value


def parse_model_yaml(
    text: str, where: str, file: str, notes: Notes, chosen_task: str | None = None
) -> Declaration:
    """What model.yaml, called `file`, declares; `chosen_task` names one of several."""
    root = parse_yaml(text, file, where)
    data = root.get("data")
    if not isinstance(data.value, dict):
        raise root.error(
            "has no `data` section",
            "is this the file that rslearn model fit takes? --olmoearth-run-config-path names the "
            "right one",
        )
    check_class_paths(data)
    args = data.args
    if args.get("data_modules").given:
        raise data.unsupported(
            f"is a {data.class_name} of several datasets: "
            f"{', '.join(args.get('data_modules').entries())}",
            "put one of these in its place in a copy, and name that with "
            "--olmoearth-run-config-path",
        )
    task = choose_task(args.get("task"), chosen_task, notes)
    inputs = [_data_input(key, node) for key, node in args.get("inputs").entries().items()]
    if not inputs:
        raise args.get("inputs").error("is missing or empty", "name the layers to read")
    label = _label(inputs, task, args, notes)
    splits = SplitConfigs(args)
    return Declaration(
        task=task,
        label=label,
        inputs=tuple(data_input for data_input in inputs if data_input is not label),
        transforms=splits.transforms(splits.judged_by()),
        train_transforms=splits.transforms("train"),
        targets=target_images(args.get("task")),
        splits=splits,
    )


def elements(node: Node) -> list[Node]:
    """A list's elements, or the lone value."""
    return node.items() if isinstance(node.value, list) else [node]


def _label(inputs: list[DataInput], task: TaskDeclaration, args: Node, notes: Notes) -> DataInput:
    """The input that the task's target is made from."""
    by_key = {data_input.key: data_input for data_input in inputs}
    targets = [data_input for data_input in inputs if data_input.is_target]
    mapping = args.get("task").args.get("input_mapping", task.name) if task.name else Node(None, "")
    keys = [key for key, mapped in mapping.entries().items() if mapped.value == "targets"]
    for key in keys or ["targets"]:
        if key in by_key:
            _note_spare_targets(by_key[key], targets, notes)
            return by_key[key]
    if len(targets) == 1:
        return targets[0]
    if targets:
        raise args.get("inputs").unsupported(
            f"has several targets ({', '.join(t.key for t in targets)}) and nothing says which "
            "of them is the label",
            'name the label input "targets" or map it there in input_mapping',
        )
    missing = f"maps {keys[0]!r} to targets, but there is no such input" if keys else ""
    raise args.get("inputs").error(
        missing or f"has no label: none of {', '.join(by_key)} is a target",
        'give the label input `is_target: true` or the name "targets"',
    )


def _note_spare_targets(label: DataInput, targets: list[DataInput], notes: Notes) -> None:
    spare = [target.key for target in targets if target is not label]
    if spare:
        notes.warn(
            f"the label is read from input {label.key!r}; the other targets "
            f"({', '.join(spare)}) are not read"
        )


def _data_input(key: str, node: Node) -> DataInput:
    args = node.args
    data_type = args.get("data_type").text().lower()
    if data_type not in ("raster", "vector"):
        raise args.get("data_type").error(
            f"is {args.get('data_type').shown}, but must be raster or vector"
        )
    layers = [layer for layer in args.get("layers").items() if layer.given]
    if not layers:
        raise args.get("layers").error("is missing or empty", "name the layers to read")
    all_groups = args.get("load_all_item_groups").flag()
    return DataInput(
        key=key,
        node=args,
        vector=data_type == "vector",
        reads=tuple(_layer_read(layer, all_groups) for layer in layers),
        stack=args.get("load_all_layers").flag(),
        bands=args.get("bands").names(),
        band_set_index=args.get("use_all_bands_in_order_of_band_set_idx").integer() or 0,
        required=args.get("required").flag(default=True),
        passthrough=args.get("passthrough").flag(),
        is_target=args.get("is_target").flag(),
        dtype=_cast_type(args.get("dtype")),
    )


def _layer_read(node: Node, all_groups: bool) -> LayerRead:
    """An item group specifier (`sentinel2.3`) of rslearn, or a layer with all its item groups."""
    if all_groups:
        return LayerRead(layer=node.name(), item_group=None)
    layer, dot, index = node.name().partition(".")
    if dot and not index.isdecimal():
        raise node.error(
            f"is {node.shown}, but an item group is written as the layer's name, a point and a "
            "number, such as sentinel2.3"
        )
    return LayerRead(layer=layer, item_group=int(index) if dot else 0)


def _cast_type(node: Node) -> str:
    dtype = node.text().lower() or "float32"
    if dtype not in ("float32", "int32"):
        raise node.error(f"is {node.shown}, but rslearn reads as INT32 or FLOAT32 only")
    return dtype
