"""olmoearth_run.yaml: the names and colours of classes, and hints where model.yaml says nothing.

The file is often missing, and comes in two generations: `window_prep` with
`inference_results_config`, and `config_version` with `data.output.fields`.
"""

from dataclasses import dataclass

from eval_ingest.core.resolved import SplitSelector
from eval_ingest.core.spec import SPLITS
from eval_ingest.inference.node import Node, Notes, parse_yaml

_ROUNDING = 1e-6


@dataclass(frozen=True)
class LabelValue:
    """One allowed value of the output, with its name and colour."""

    value: int | str
    name: str
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class OutputField:
    """A field of the output: what one task predicts."""

    name: str
    node: Node
    values: tuple[LabelValue, ...]
    nodata: Node
    regression: bool


@dataclass(frozen=True)
class RunYaml:
    """A parsed olmoearth_run.yaml; without the file, everything is missing."""

    root: Node

    @classmethod
    def parse(cls, text: str | None, where: str, file: str = "olmoearth_run.yaml") -> "RunYaml":
        """Parse the text, if there is any."""
        if text is None or not text.strip():
            return cls(Node(None, file, where=where))
        return cls(parse_yaml(text, file, where))

    @property
    def label_layer(self) -> Node:
        """The layer that the window preparer wrote labels to."""
        return self.root.get("window_prep", "label_layer")

    @property
    def tasks(self) -> dict[str, Node]:
        """Second generation: the tasks, as class_path with init_args."""
        tasks = self.root.get("model", "tasks").entries()
        found = {name: node.get("task") for name, node in tasks.items()}
        return {name: node for name, node in found.items() if node.class_path}

    @property
    def input_size(self) -> Node:
        """Second generation: side of the crops that are trained on."""
        return self.root.get("input_preprocessing", "default", "input_size")

    @property
    def prepared_nodata(self) -> Node:
        """First generation: the value that the window preparer writes where nothing is labelled."""
        return self.root.get("window_prep", "labeled_window_preparer").args.get("nodata_value")

    def field(self, *names: str | None) -> OutputField | None:
        """The output field of one of these names, or the only one."""
        fields = self._fields()
        named = [field for field in fields if field.name and field.name in names]
        return next(iter(named or (fields if len(fields) == 1 else [])), None)

    def ratios(self, notes: Notes) -> tuple[tuple[float, float, float], str] | None:
        """The data splitter's train, val and test proportions, and their place."""
        for key in ("window_prep", "labeled_data_prep"):
            node = self.root.get(key, "data_splitter").args
            props = [node.get(f"{split}_prop").number() for split in SPLITS]
            train, val, test = (prop or 0.0 for prop in props)
            total = train + val + test
            if min(train, val, test) >= 0 and total > 0:
                scale = total if abs(total - 1) > _ROUNDING else 1
                return (train / scale, val / scale, test / scale), node.place
            if props != [None] * 3:
                notes.warn(f"{node.place}: proportions {props} make no sense; they are ignored")
        return None

    def selectors(self) -> tuple[dict[str, SplitSelector], str]:
        """First generation: the group and option that labelled windows were written with."""
        node = self.root.get("window_prep")
        group, option = node.get("group_name").text(), node.get("split_property").text()
        if not option:
            return {}, ""
        groups = (group,) if group else ()
        return (
            {split: SplitSelector(groups=groups, tags={option: split}) for split in SPLITS},
            node.place,
        )

    def _fields(self) -> list[OutputField]:
        """Of the first generation, then of the second."""
        results = self.root.get("inference_results_config")
        fields = [
            (node.get("property_name").text(), node, kind == "regression_fields")
            for kind in ("classification_fields", "regression_fields")
            for node in results.get(kind).items()
        ]
        for name, node in self.root.get("data", "output", "fields").entries().items():
            fields.append((name, node, "regression" in node.get("field_type").text()))
        return [
            OutputField(
                name=name,
                node=node,
                values=tuple(_value(item) for item in node.get("allowed_values").items()),
                nodata=node.get("nodata_value"),
                regression=regression,
            )
            for name, node, regression in fields
        ]


def _value(node: Node) -> LabelValue:
    if not isinstance(node.value, dict):  # a list of bare values
        return LabelValue(value=_int_or_text(node), name=node.text())
    value = node.get("value")
    if not value.given:
        raise node.error("has no value", "give the value that the label raster holds")
    return LabelValue(
        value=_int_or_text(value),
        name=node.get("label").text() or node.get("name").text(),
        color=parse_color(node.get("color").value),
    )


def _int_or_text(node: Node) -> int | str:
    text = node.text()
    try:
        return int(float(text)) if float(text).is_integer() else text
    except (ValueError, OverflowError):
        return text


def parse_color(value: object) -> tuple[int, int, int] | None:
    """Red, green and blue of [r, g, b], [r, g, b, a], {r:, g:, b:} or "#rrggbb"; None if unclear.

    >>> parse_color([124, 67, 18, 255])
    (124, 67, 18)
    >>> parse_color("#ff8000")
    (255, 128, 0)
    >>> parse_color("blue") is None
    True
    """
    if isinstance(value, str):
        digits = value.strip().removeprefix("#")
        try:
            value = list(bytes.fromhex(digits))
        except ValueError:
            return None
    if isinstance(value, dict):
        value = [value.get(key) for key in "rgb"]
    if not isinstance(value, list | tuple) or len(value) not in (3, 4):
        return None
    parts = [part for part in value[:3] if isinstance(part, int) and 0 <= part <= 255]
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else None
