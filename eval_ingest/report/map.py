"""A map of the windows by split."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval_ingest.core.spec import SPLITS
from eval_ingest.report import drawing
from eval_ingest.report.view import View

_BOX_IN = (drawing.WIDTH_IN - 1.2, 4.35)

_OUTLINE_IN = 0.05
"""Windows are drawn as outlines where they are at least this wide on the map."""

_MAX_OUTLINES = 5000
"""More take too long to draw."""


def window_map(view: View) -> Figure:
    """Windows by split at their longitude and latitude, equally scaled at the middle.

    As outlines where these are large enough to be seen, else as dots.
    """
    outlines = view.index.footprints
    known = view.used[outlines.place[view.used] >= 0]
    what = "longitude and latitude, no base map"
    if len(known) < len(view.used):
        what += f"; {len(view.used) - len(known):,} windows are not on it: their place isn't known"
    figure = drawing.new_figure(5.6, f"{view.metadata.name}: windows by split", what)
    axes = drawing.add_axes(figure, 0.95, 0.75, *_BOX_IN)
    drawing.tidy(axes)
    if not len(known):
        axes.set_axis_off()
        return figure
    centres = outlines.centres[outlines.place[known]]
    sides = outlines.sides_degrees[outlines.place[known]]
    per_inch = _fit(axes, centres, sides)
    split_of = view.splits[known]
    drawn = _once(outlines.place[known], split_of)
    large = float(np.median(sides[:, 1])) / per_inch > _OUTLINE_IN and drawn.sum() <= _MAX_OUTLINES
    for split in SPLITS:
        here = (split_of == split) & drawn
        label = f"{split} ({int((split_of == split).sum()):,})"
        _draw(axes, centres[here], sides[here] if large else None, split, label)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    axes.grid(color=drawing.LINE, linewidth=0.5)
    _scale_bar(axes, per_inch)
    drawing.add_legend(figure, axes)
    return figure


def _fit(axes: Axes, centres: NDArray[np.float64], sides: NDArray[np.float64]) -> float:
    """Show all windows in the middle, with some air around them; degrees of latitude an inch."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    scale = np.cos(np.radians(np.clip((low[1] + high[1]) / 2, -80, 80))), 1.0
    per_inch = float(((high - low + 2 * sides.max(axis=0)) * scale / _BOX_IN).max()) * 1.06
    half = np.array(_BOX_IN) * per_inch / 2 / scale
    (left, bottom), (right, top) = (low + high) / 2 - half, (low + high) / 2 + half
    axes.set(xlim=(left, right), ylim=(bottom, top))
    return per_inch


def _once(places: NDArray[np.int64], splits: NDArray[np.str_]) -> NDArray[np.bool_]:
    """True for one window of each split at each place: a site may be there a thousand times."""
    keys = places * len(SPLITS) + [SPLITS.index(split) for split in splits.tolist()]
    first = np.zeros(len(places), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _draw(
    axes: Axes,
    centres: NDArray[np.float64],
    sides: NDArray[np.float64] | None,
    split: str,
    label: str,
) -> None:
    """A split's windows, as outlines if their sides are given."""
    color = drawing.SPLIT_COLORS[split]
    if sides is None:
        size = float(np.clip(3000 / max(len(centres), 1), 6, 40))
        axes.scatter(
            centres[:, 0], centres[:, 1], s=size, color=color, alpha=0.8, linewidths=0,
            label=label, marker=drawing.SPLIT_MARKERS[split],
        )  # fmt: skip
        return
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    boxes = centres[:, None] + sides[:, None] * corners
    axes.add_collection(
        PolyCollection(boxes, facecolor=(*color, 0.45), edgecolor=color, linewidth=0.8)
    )
    axes.scatter([], [], s=40, marker="s", color=color, label=label)


def _degrees(value: float, letters: str) -> str:
    letter = letters[0] if value > 0 else letters[1] if value < 0 else ""
    return f"{abs(value):.6g}° {letter}".strip()


def _scale_bar(axes: Axes, degrees_per_inch: float) -> None:
    """A length on the ground, at the lower right."""
    metres_per_inch = degrees_per_inch * 111_195
    most = 1.6 * metres_per_inch
    power = 10 ** np.floor(np.log10(most))
    length = max(k * power for k in (1, 2, 5) if k * power <= most)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    start = 1 - length / metres_per_inch / _BOX_IN[0]
    line = {"arrowstyle": "|-|,widthA=0.2,widthB=0.2", "color": drawing.SOFT}
    axes.annotate("", (1, -0.1), (start, -0.1), "axes fraction", arrowprops=line)
    axes.annotate(text, (start - 0.01, -0.1), xycoords="axes fraction", fontsize=8,
                  color=drawing.SOFT, ha="right", va="center")  # fmt: skip
