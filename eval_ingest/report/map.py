"""A map of the windows by split."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.spec import SPLITS
from eval_ingest.report.drawing import (
    DPI,
    LINE,
    SOFT,
    SPLIT_COLORS,
    WIDTH_IN,
    Color,
    add_axes,
    add_legend,
    add_text,
    add_title,
    new_figure,
    tidy,
    to_png,
)
from eval_ingest.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_OUTLINE_IN = 0.05
"""Windows are drawn as outlines where they are at least this wide on the map."""

_MAX_OUTLINES = 5000
"""More take too long to draw."""


def window_map(view: View, dpi: int = DPI, colors: int | None = None) -> bytes:
    """Windows by split at their longitude and latitude, equally scaled at the middle.

    As outlines where these are large enough to be seen, else as dots.
    """
    outlines = view.index.footprints
    places = outlines.place[view.used]
    known = view.used[places >= 0]
    figure = new_figure(5.6, dpi)
    axes = add_axes(figure, 0.95, 0.75, WIDTH_IN - 1.2, 4.35)
    tidy(axes)
    what = "longitude and latitude, no base map"
    if len(known) < len(view.used):
        what += f"; {len(view.used) - len(known):,} windows are not on it: their place isn't known"
    add_title(figure, f"{view.metadata.name}: windows by split", what)
    if not len(known):
        axes.set_axis_off()
        return to_png(figure, dpi, colors or 64)
    lon, lat = outlines.centres[outlines.place[known]].T
    # Equal scales, with the windows in the middle and some air around them.
    shrink = float(np.cos(np.radians(np.clip((lat.min() + lat.max()) / 2, -80, 80))))
    sides = outlines.sides_degrees[outlines.place[known]]
    span = np.array([np.ptp(lon), np.ptp(lat)]) + 2 * sides.max(axis=0)
    box = np.array([WIDTH_IN - 1.2, 4.35])
    per_inch = float((span * (shrink, 1) / box).max()) * 1.06  # degrees of latitude
    middle = np.array([lon.min() + lon.max(), lat.min() + lat.max()]) / 2
    half = box * per_inch / 2 / (shrink, 1)
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    split_of = view.splits[known]
    drawn = _once(outlines.place[known], split_of)
    large = float(np.median(sides[:, 1])) / per_inch > _OUTLINE_IN and drawn.sum() <= _MAX_OUTLINES
    size = float(np.clip(3000 / len(known), 4, 40))
    for split in SPLITS:
        here = (split_of == split) & drawn
        label = f"{split} ({int((split_of == split).sum()):,})"
        color = SPLIT_COLORS[split]
        if large:
            _outlines(axes, lon[here], lat[here], sides[here], color, label)
        else:
            axes.scatter(lon[here], lat[here], s=size, color=color, alpha=0.75, linewidths=0,
                         label=label)  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "NS"))
    axes.grid(color=LINE, linewidth=0.5)
    _scale_bar(figure, per_inch)
    add_legend(figure, axes)
    return to_png(figure, dpi, colors or 64)


def _once(places: NDArray[np.int64], splits: NDArray[np.str_]) -> NDArray[np.bool_]:
    """True for one window of each split at each place: a site may be there a thousand times."""
    keys = places * len(SPLITS) + [SPLITS.index(split) for split in splits.tolist()]
    first = np.zeros(len(places), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _outlines(
    axes: "Axes",
    lon: NDArray[np.float64],
    lat: NDArray[np.float64],
    sides: NDArray[np.float64],
    color: Color,
    label: str,
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    corners = zip(lon - sides[:, 0] / 2, lat - sides[:, 1] / 2, *sides.T, strict=True)
    boxes = [Rectangle((x, y), width, height) for x, y, width, height in corners]
    axes.add_collection(
        PatchCollection(boxes, facecolor=(*color, 0.45), edgecolor=color, linewidth=0.8)
    )
    axes.scatter([], [], s=40, marker="s", color=color, label=label)


def _degrees(value: float, letters: str) -> str:
    letter = letters[0] if value > 0 else letters[1] if value < 0 else ""
    return f"{abs(value):.6g}° {letter}".strip()


def _scale_bar(figure: "Figure", degrees_per_inch: float) -> None:
    """A length on the ground, at the lower right."""
    metres_per_inch = degrees_per_inch * 111_195
    most = 1.6 * metres_per_inch
    power = 10 ** np.floor(np.log10(most))
    length = max(k * power for k in (1, 2, 5) if k * power <= most)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    right, y = WIDTH_IN - 0.3, 5.42
    left = right - length / metres_per_inch
    axes = add_axes(figure, left, y - 0.03, right - left, 0.06)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top"]].set_visible(False)
    axes.spines[:].set_color(SOFT)
    add_text(figure, left - 0.08, y, text, 8, color=SOFT, ha="right")
