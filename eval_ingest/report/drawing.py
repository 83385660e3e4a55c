"""The look of the report's figures: measures, colours, and the pieces they are put together from.

Figures are laid out in inches from the top left corner, and every one is as wide as the others.
"""

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Color = tuple[float, float, float]
"""Red, green, blue, 0 to 1."""

WIDTH_IN = 10.0
DPI = 110
WIDTH_PX = int(WIDTH_IN * DPI)
"""Every picture is this wide."""

SPLIT_COLORS: dict[str, Color] = {
    "train": (0.45, 0.55, 0.68),
    "val": (0.90, 0.62, 0.0),
    "test": (0.80, 0.27, 0.12),
}

_PALETTE = (
    # Okabe and Ito (2008), then Tol's "muted": told apart with any kind of colour vision.
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51),
    (221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153),
)  # fmt: skip

INK, SOFT, LINE = "#22303c", "#66727c", "#d9dee2"


def class_colors(task: Task) -> list[Color]:
    """A colour per class: the dataset's own, else one that no other class has."""
    own = {known.color for known in task.classes if known.color is not None}
    spare = [color for color in _PALETTE if color not in own]
    colors: list[Color] = []
    for k, known in enumerate(task.classes):
        if known.color is not None:
            red, green, blue = known.color
        elif spare:
            red, green, blue = spare.pop(0)
        else:
            colors.append(_wheel(k))
            continue
        colors.append((red / 255, green / 255, blue / 255))
    return colors


def _wheel(k: int) -> Color:
    """Beyond the palette: hues by the golden angle, in three lightnesses."""
    from matplotlib.colors import hsv_to_rgb

    red, green, blue = hsv_to_rgb((k * 0.618034 % 1, 0.75, (0.55, 0.75, 0.95)[k % 3]))
    return float(red), float(green), float(blue)


def new_figure(height_in: float, dpi: int) -> "Figure":
    """An empty figure of the common width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), dpi=dpi, facecolor="white")


def add_axes(figure: "Figure", x: float, y: float, width: float, height: float) -> "Axes":
    """Axes at inches from the top left corner."""
    total = figure.get_figheight()
    return figure.add_axes(
        (x / WIDTH_IN, 1 - (y + height) / total, width / WIDTH_IN, height / total)
    )


def add_text(
    figure: "Figure",
    x: float,
    y: float,
    text: str,
    size: float,
    color: str = INK,
    ha: str = "left",
    va: str = "center",
    weight: str = "normal",
) -> None:
    """Text at inches from the top left corner."""
    # Names come from data: a dollar sign in them starts no formula.
    figure.text(x / WIDTH_IN, 1 - y / figure.get_figheight(), text, fontsize=size, color=color,
                ha=ha, va=va, fontweight=weight, linespacing=1.25, parse_math=False)  # fmt: skip


def add_title(figure: "Figure", title: str, subtitle: str) -> None:
    """What the figure shows, at the top left."""
    add_text(figure, 0.2, 0.24, title, 12, weight="bold")
    add_text(figure, 0.2, 0.46, subtitle, 8, color=SOFT)


def tidy(axes: "Axes") -> None:
    """Leave of the axes only what is read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.set_axisbelow(True)


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """What the colours mean, at the top right."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="upper right", ncols=len(handles), frameon=False, fontsize=8,
            bbox_to_anchor=(1 - 0.1 / WIDTH_IN, 1 - 0.12 / figure.get_figheight()),
            labelcolor=INK, markerscale=1.4, borderaxespad=0, handlelength=1.4,
        )  # fmt: skip


def add_picture(
    figure: "Figure", x: float, y: float, side: float, image: NDArray[np.float32]
) -> "Axes":
    """A square picture (H, W, 3), 0 to 1."""
    axes = add_axes(figure, x, y, side, side)
    small = max(image.shape[:2]) < 200
    axes.imshow(image, interpolation="nearest" if small else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LINE)
    return axes


def frame(axes: "Axes", color: Color) -> None:
    """Put a coloured frame around a picture."""
    axes.spines[:].set_color(color)
    axes.spines[:].set_linewidth(2.5)


def add_swatch(figure: "Figure", x: float, y: float, color: Color, hatched: bool = False) -> None:
    """A small square of a colour."""
    axes = add_axes(figure, x, y, 0.14, 0.14)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(color)
    if hatched:
        axes.plot([0, 1], [0, 1], color="white", linewidth=1.2, transform=axes.transAxes)
    axes.spines[:].set_color("#00000033")


def save_png(figure: "Figure", to: Any, **how: Any) -> None:
    """Draw the figure into a file or stream; letters that no font here has become boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(to, format="png", **how)


def to_png(figure: "Figure", dpi: int, colors: int | None) -> bytes:
    """The figure as PNG; with `colors`, of at most so many colours, which is much smaller."""
    from PIL import Image

    stream = io.BytesIO()
    save_png(figure, stream, dpi=dpi)
    if colors is None:
        return stream.getvalue()
    # The blank alpha channel would be quantised too.
    small = Image.open(stream).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    small.save(stream, format="png", optimize=True)
    return stream.getvalue()
