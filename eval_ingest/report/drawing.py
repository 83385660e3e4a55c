"""The look of the report's figures: measures, colours, and the pieces they are put together from.

Figures are laid out in inches from the top left corner, and every one is as wide as the others.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from eval_ingest.core.images import Color

WIDTH_IN = 10.0
DPI = 110
"""Every picture is as wide."""

SPLIT_COLORS: dict[str, Color] = {
    "train": (0.22, 0.48, 0.72),
    "val": (0.94, 0.67, 0.05),
    "test": (0.42, 0.12, 0.35),
}
"""Light, middle and dark, so that they are told apart without any colour vision."""

SPLIT_MARKERS = {"train": "o", "val": "s", "test": "^"}

INK, SOFT, LINE = "#22303c", "#66727c", "#d9dee2"


def new_figure(height_in: float, title: str, subtitle: str) -> Figure:
    """A figure of the common width that says at the top left what it shows."""
    figure = Figure(figsize=(WIDTH_IN, height_in), facecolor="white")
    add_text(figure, 0.2, 0.24, title, 12, fontweight="bold")
    add_text(figure, 0.2, 0.46, subtitle, 8, SOFT)
    return figure


def add_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at inches from the top left corner."""
    total = figure.get_figheight()
    return figure.add_axes(
        (x / WIDTH_IN, 1 - (y + height) / total, width / WIDTH_IN, height / total)
    )


def add_text(
    figure: Figure, x: float, y: float, text: str, size: float, color: str = INK, **how: Any
) -> None:
    """Text at inches from the top left corner."""
    figure.text(x / WIDTH_IN, 1 - y / figure.get_figheight(), text, fontsize=size, color=color,
                linespacing=1.25, **{"va": "center", **how})  # fmt: skip


def tidy(axes: Axes) -> None:
    """Leave of the axes only what is read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, entries: Axes | Sequence[tuple[Artist, str]], **how: Any) -> None:
    """What the colours mean: those of the axes at the top right, or given ones elsewhere."""
    if isinstance(entries, Sequence):
        handles, labels = [handle for handle, _ in entries], [text for _, text in entries]
    else:
        handles, labels = entries.get_legend_handles_labels()
        how = {"ncols": len(handles), "loc": "upper right", **how}
        how["bbox_to_anchor"] = (1 - 0.1 / WIDTH_IN, 1 - 0.12 / figure.get_figheight())
    if handles:
        # A label that begins with _ would be left out.
        plain = [text if text[:1] != "_" else f" {text}" for text in labels]
        figure.legend(handles, plain, frameon=False, fontsize=8, labelcolor=INK, borderaxespad=0,
                      handlelength=1.4, **how)  # fmt: skip


def add_swatch(figure: Figure, x: float, y: float, color: Color) -> None:
    """A small square of a colour."""
    axes = add_axes(figure, x, y, 0.14, 0.14)
    axes.set(xticks=[], yticks=[], facecolor=color)
    axes.spines[:].set_color("#00000033")


def save_png(figure: Figure, to: Any, **how: Any) -> None:
    """Draw the figure into a file or stream; letters that no font here has become boxes."""
    from eval_ingest.loading.plot import in_plain_words

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        in_plain_words(figure).savefig(to, format="png", **how)


def to_png(figure: Figure, dpi: int = DPI, colors: int | None = None) -> bytes:
    """The figure as PNG; with `colors`, of at most so many colours, which is much smaller."""
    stream = io.BytesIO()
    save_png(figure, stream, dpi=dpi)
    if colors is None:
        return stream.getvalue()
    # The blank alpha channel would be quantised too.
    small = Image.open(stream).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    small.save(stream, format="png", optimize=True)
    return stream.getvalue()
