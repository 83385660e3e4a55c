"""How an EvalDataset shows itself: as an expression that opens it again, and in a notebook."""

import inspect
from collections.abc import Iterable
from typing import Any, TypeAlias

from eval_ingest.core.images import class_colors
from eval_ingest.redaction import in_html, redacted

Shown: TypeAlias = Any
"""An EvalDataset, which imports this."""

_ALWAYS = ("normalize", "method", "crop")
"""Arguments that decide over what a model sees, and are told also where they are the default's."""


def as_text(dataset: Shown) -> str:
    """What opens it again, and behind a # what its samples are.

    An argument that is no text or number (statistics, a transform) is told by its name alone.
    """
    shapes = "; ".join(_input(dataset, name) for name in dataset.bands)
    count = f"{len(dataset):,} sample{'s' * (len(dataset) != 1)}"
    return f"{_call(dataset)}  # {count}: {shapes}"


def _call(dataset: Shown) -> str:
    defaults = inspect.signature(type(dataset)).parameters
    given = dataset.arguments
    parts = [repr(given.pop("name")), repr(given.pop("split"))]
    if given["normalize"] is None:
        del given["method"]
    for name, value in given.items():
        if name in _ALWAYS or value != defaults[name].default:
            parts.append(f"{name}={_value(value)}")
    return f"EvalDataset({', '.join(parts)}){_part(dataset.part)}"


_LISTED = 8
"""So many of a part's samples are listed."""


def _part(part: Iterable[int] | None) -> str:
    """`[10:20]`, `[[3, 1]]`, or `[...]` where that would be long."""
    if part is None:
        return ""
    numbers = [int(i) for i in part]
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"[{numbers[0]}:{numbers[-1] + 1}]"
    return f"[{numbers}]" if len(numbers) <= _LISTED else "[...]"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return repr(redacted(value))
    if isinstance(value, dict):
        return "{...}"
    return getattr(value, "__name__", repr(value))


def _input(dataset: Shown, modality: str) -> str:
    """`sentinel2_l2a float32 (16, 16, 12, 12) of 64 x 64 pixels, about -0.4 to 3.1`."""
    if not len(dataset):
        return modality
    low, high = dataset.value_range(modality)
    shape = str(dataset.shape()[modality])
    side, window = dataset.sides()
    cropped = f", a crop of {window[0]} x {window[1]}" if side != window else ""
    return f"{modality} float32 {shape}{cropped}, {low:.3g} to {high:.3g} in train"


def as_html(dataset: Shown) -> str:
    """A table of what its samples are, with the classes in their colours."""
    metadata = dataset.metadata
    rows = [("samples", f"{len(dataset):,}"), ("target", str(dataset.task.kind))]
    rows += [(name, f"{_input(dataset, name)[len(name) + 1 :]}: {' '.join(bands)}")
             for name, bands in dataset.bands.items()]  # fmt: skip
    rows += [("version", f"{metadata.fingerprint}, {metadata.published_at}")]
    rows += [("verdict", str(metadata.quality.get("verdict", "")))]
    lines = [f"<tr><th style='text-align:left'>{in_html(key)}</th><td style='text-align:left'>"
             f"{in_html(value)}</td></tr>" for key, value in rows]  # fmt: skip
    if dataset.classes:
        swatches = (
            f"<span style='white-space:nowrap'><span style='display:inline-block;width:.8em;"
            f"height:.8em;background:rgb({','.join(str(round(255 * part)) for part in color)})'>"
            f"</span> {k} {in_html(name)}</span>"
            for k, (name, color) in enumerate(
                zip(dataset.classes, class_colors(dataset.task), strict=True)
            )
            if k != dataset.task.ignored_id
        )
        lines.append(f"<tr><th style='text-align:left'>classes</th><td style='text-align:left'>"
                     f"{' &nbsp; '.join(swatches)}</td></tr>")  # fmt: skip
    return f"<code>{in_html(_call(dataset))}</code><table>{''.join(lines)}</table>"
