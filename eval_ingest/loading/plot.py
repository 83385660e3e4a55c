"""Looking at samples: `EvalDataset.plot`, and the layer of labels that reports draw too.

What belongs here: matplotlib for one sample. What doesn't: which colours pixels and classes have
(core/images.py), and pages of many samples (report/).
"""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from eval_ingest.core import images
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.errors import LoadError, brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 0.02
"""With less than this share of labelled pixels, they are drawn as points."""
_NUMBERED = 0.02
"""Classes with at least this share of the pixels have their id written into them."""
_SIDE_IN, _LEGEND_IN, _LETTER_IN = 3.2, 1.9, 0.085
_CMAP = colormaps["viridis"]
_EDGE = "#d9dee2"
_PLATE = {"boxstyle": "round,pad=0.15", "facecolor": "#ffffffc0", "linewidth": 0}

Range = tuple[float, float]
"""The numbers that the ends of the colour scale stand for."""


class SampleFigure(Figure):
    """A figure that notebooks show."""

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        stream = BytesIO()
        self.savefig(stream, format="png", dpi=100)
        return stream.getvalue()


def show(axes: "Axes", picture: NDArray[np.float32]) -> None:
    """A picture (H, W, 3), 0 to 1, with a thin frame."""
    small = max(picture.shape[:2]) < 200
    axes.imshow(picture, interpolation="nearest" if small else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(_EDGE)


def draw_labels(
    axes: "Axes", picture: NDArray[np.float32], target: NDArray[Any], task: Task, scale: Range
) -> None:
    """Draw a label (H, W) over a picture (H, W, 3) in greys: hatched where there is none.

    Classes are in their colours, and their ids are written into them, for those who can't tell the
    colours apart. A few labelled points are drawn large enough to be seen.
    """
    grey = images.greyed(picture)
    show(axes, grey)
    valid, colors = _colored(target, task, scale)
    if 0 < valid.mean() < _FEW:
        y, x = (places[:300] for places in np.nonzero(valid))
        axes.scatter(x, y, s=22, c=colors[y, x], edgecolors="white", linewidths=0.7)
        return
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, hatch="////",
                  edgecolor="#ffffffd0", linewidth=0)
    )  # fmt: skip
    axes.imshow(np.dstack([0.75 * colors + 0.25 * grey, valid]), interpolation="nearest", zorder=2)
    if task.kind.has_classes:
        for k in np.unique(target[valid]):
            here = target == k
            if here.mean() >= _NUMBERED:
                row, column = images.innermost(here)
                axes.text(column, row, str(k), ha="center", va="center", fontsize=6.5, zorder=3,
                          bbox=_PLATE)  # fmt: skip


def _colored(
    target: NDArray[Any], task: Task, scale: Range
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where there is a label, and its colour (H, W, 3)."""
    if task.kind.has_classes:
        palette = images.class_colors(task)
        valid = (target >= 0) & (target < len(palette))
        return valid, np.array([*palette, (0.0, 0.0, 0.0)])[np.where(valid, target, len(palette))]
    valid = np.isfinite(target)
    shares = (np.where(valid, target, scale[0]) - scale[0]) / (scale[1] - scale[0] or 1.0)
    return valid, _CMAP(shares)[..., :3]


def legend_entries(task: Task, ids: Iterable[int]) -> list[tuple[Patch, str]]:
    """A swatch and `id name` for each class, and one for what has no label."""
    palette = images.class_colors(task)
    entries = [
        (Patch(facecolor=palette[k], edgecolor="#00000033"), f"{k} {_short(task.classes[k].name)}")
        for k in ids
    ]
    return [*entries, (Patch(facecolor="#b8b8b8", hatch="////", edgecolor="white"), "no label")]


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plot_sample(
    stored: dict[str, NDArray[Any]],
    modality: ModalityInput,
    task: Task,
    title: str,
    prediction: Any = None,
) -> SampleFigure:
    """A sample beside its label, and what was predicted, if that is given.

    Args:
        stored: the sample's pixels (H, W, T, C) by modality, in stored units, and its target.
        modality: which of them.
        task: what is predicted.
        title: of the figure.
        prediction: like the target: classes or numbers (H, W), or one; or scores of each class,
            (C, H, W) or (C,).

    Raises:
        LoadError: the prediction has another shape than the target.
    """
    target = stored["target"]
    guess = None if prediction is None else _prediction(prediction, target, task)
    shown = [("label", target), *([] if guess is None else [("prediction", guess)])]
    per_pixel = bool(target.ndim)
    columns = 1 + len(shown) if per_pixel else 1
    figure = SampleFigure(
        (_SIDE_IN * columns + per_pixel * _LEGEND_IN, _SIDE_IN + 0.75), layout="constrained"
    )
    figure.suptitle(_wrapped(title, figure), fontsize=9, x=0.01, ha="left")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    image = images.thinned(images.composite(stored[modality.name], modality))
    picture = images.stretched({0: image}, modality.decibels)[0]
    show(axes[0], picture)
    axes[0].set_xlabel(f"{modality.name}\n{images.caption(modality)}", fontsize=7)
    if not per_pixel:
        lines = [_wrapped(f"{what}: {_value(value, task)}", figure) for what, value in shown]
        axes[0].set_title("\n".join(lines), fontsize=9)
    else:
        _draw_targets(figure, axes, shown, picture, task)
    in_plain_words(figure)
    figure.draw_without_rendering()  # from the second time on its layout knows how high titles are
    return figure


def _draw_targets(
    figure: Figure,
    axes: list["Axes"],
    shown: list[tuple[str, Any]],
    picture: NDArray[np.float32],
    task: Task,
) -> None:
    """Labels and predictions (H, W), each over the picture, and what their colours are."""
    known = np.concatenate([value[np.isfinite(value)].ravel() for _, value in shown])
    scale = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    for one, (what, value) in zip(axes[1:], shown, strict=True):
        draw_labels(one, picture, images.thinned(value), task, scale)
        one.set_xlabel(what, fontsize=8)
    _explain(figure, axes, shown, task, scale)


Drawn = TypeVar("Drawn", bound=Figure)


def in_plain_words(figure: Drawn) -> Drawn:
    """The figure, in which no text is a formula: names come from data, and may hold dollars."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    return figure


def _explain(
    figure: Figure, axes: list["Axes"], shown: list[tuple[str, Any]], task: Task, scale: Range
) -> None:
    """Class names at the right, or the colour scale."""
    if not task.kind.has_classes:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        figure.colorbar(
            ScalarMappable(Normalize(*scale), _CMAP), ax=axes, label=task.property_name or "target"
        )
        return
    ids = np.unique(np.concatenate([value.ravel() for _, value in shown]))
    entries = legend_entries(task, [int(k) for k in ids if 0 <= k < len(task.classes)])
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)


def _wrapped(text: str, figure: Figure) -> str:
    """A text in the size of titles, in lines that the figure is wide enough for."""
    return textwrap.fill(text, int(figure.get_figwidth() / _LETTER_IN))


def _prediction(given: Any, target: NDArray[Any], task: Task) -> NDArray[Any]:
    """What was predicted, in the target's shape."""
    try:
        found = np.asarray(given.detach().cpu().double() if hasattr(given, "detach") else given)
    except ValueError:  # lists of several lengths
        found = np.asarray(None)
    if found.dtype.kind not in "biuf":
        raise LoadError(f"the prediction is no array of numbers: {brief(given, 60)}")
    classes = task.num_classes if task.kind.has_classes else 1
    if found.ndim == target.ndim + 1 and found.shape[0] == classes:
        found = found.argmax(axis=0) if task.kind.has_classes else found[0]
    if found.shape != target.shape:
        raise LoadError(
            f"the prediction has shape {found.shape}; it must be that of the target, "
            f"{target.shape}, or one score a class, {(classes, *target.shape)}"
        )
    if not task.kind.has_classes:
        return found
    found = np.where(np.abs(found) < 1 << 31, found, IGNORE_LABEL)
    if (found != found.round()).any():
        raise LoadError(
            "the prediction has numbers that are no classes; give the classes, whole numbers, or "
            f"one score a class, {(classes, *target.shape)}"
        )
    return found.astype(np.int64)


def _value(value: NDArray[Any], task: Task) -> str:
    if not task.kind.has_classes:
        return f"{float(value):.4g}"
    return task.classes[int(value)].name if 0 <= value < len(task.classes) else "none"
