"""Pictures of samples: a few windows of each class, with their labels.

They come from the packed samples, which is what a model gets.
"""

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.norm import to_decibels
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.task import Task, TaskKind
from eval_ingest.report.drawing import (
    DPI,
    SOFT,
    WIDTH_IN,
    Color,
    add_axes,
    add_picture,
    add_swatch,
    add_text,
    add_title,
    class_colors,
    frame,
    new_figure,
    tidy,
    to_png,
)
from eval_ingest.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_CLASSES = 12
"""Classes with a row of previews; the most frequent ones."""

_MAX_PIXELS = 400
"""Larger windows are thinned out to about this many pixels a side."""

_FINE = 200
"""Labels are drawn with at least this many pixels a side."""

_POINTS = 0.02
"""With less than this share of labelled pixels, they are drawn as points."""

_NO_DATA = 0.93
"""The grey of pixels without data."""

_RADAR_DB = 8.0
"""Less contrast than this is mostly speckle."""

_RED_GREEN_BLUE = {
    "sentinel2_l2a": (("B04", "B03", "B02"), "true colour: B04 B03 B02"),
    "landsat": (("B4", "B3", "B2"), "true colour: B4 B3 B2"),
}

_LEGEND_COLUMNS, _MAX_LEGEND = 6, 60


@dataclass(frozen=True)
class _Row:
    """A line of previews: windows that belong together."""

    title: str
    color: Color
    rows: list[int]
    """Of the index."""


def previews(
    view: View,
    modality: str,
    max_rows: int = MAX_CLASSES,
    dpi: int = DPI,
    colors: int | None = None,
) -> bytes:
    """A few windows of each class (or of low to high targets), with the label beside them."""
    per_pixel = view.task.kind.per_pixel
    lines = _preview_rows(view, 3 if per_pixel else 6, max_rows)
    source = view.metadata.config.modality(modality)
    samples = {row: view.sample(row) for line in lines for row in line.rows}
    shown = {row: _thin(_image(sample, source)) for row, sample in samples.items()}
    pictures = _stretch(shown, source.decibels)
    palette = class_colors(view.task)
    scale = _target_range(view)

    left, top, gap = 1.35, 0.62, 0.06
    cell = (WIDTH_IN - left - 0.2 - 5 * gap) / 6
    step = cell + 0.33
    legend = _legend_height(view) if per_pixel else 0.15
    figure = new_figure(top + max(len(lines), 1) * step + legend, dpi)
    add_title(figure, f"{view.metadata.name}: {modality}", _caption(source))
    for k, line in enumerate(lines):
        y = top + k * step
        add_swatch(figure, 0.2, y + 0.06, line.color)
        add_text(
            figure, 0.42, y + 0.04, "\n".join(textwrap.wrap(line.title, 13)[:4]), 8.5, va="top"
        )
        for j, row in enumerate(line.rows):
            x = left + j * (2 if per_pixel else 1) * (cell + gap)
            axes = add_picture(figure, x, y, cell, pictures[row])
            wide = cell
            if not samples[row][modality].shape[2]:
                add_text(figure, x + cell / 2, y + cell / 2, f"no {modality}", 8, SOFT, ha="center")
            if per_pixel:
                target = _thin(np.asarray(samples[row]["target"]))
                axes = add_picture(figure, x + cell + gap / 2, y, cell, _greyed(pictures[row]))
                _overlay(axes, target, view.task, palette, scale)
                wide = 2 * cell
            else:
                frame(axes, line.color)
            note = _note(view, row, samples[row], source, int(wide / 0.059))
            add_text(figure, x, y + cell + 0.05, note, 6.5, color=SOFT, va="top")
    if per_pixel:
        _legend(figure, view, palette, scale)
    return to_png(figure, dpi, colors)


def _preview_rows(view: View, columns: int, max_rows: int) -> list[_Row]:
    if not view.task.kind.has_classes:
        return _target_rows(view, columns)
    palette = class_colors(view.task)
    counts = view.class_counts[view.used]
    order = np.argsort(-counts.sum(axis=0), kind="stable")
    chosen: list[int] = [int(k) for k in order if counts[:, k].any()][:max_rows]
    # Rare classes choose first, so that common ones don't take their only windows.
    taken: set[int] = set()
    rows: dict[int, list[int]] = {}
    for k in reversed(chosen):
        ranked = _ranked(view, counts[:, k])
        fresh = [row for row in ranked if row not in taken] or ranked
        rows[k] = fresh[:columns]
        taken.update(rows[k])
    return [_Row(view.task.classes[k].name, palette[k], rows[k]) for k in sorted(chosen)]


def _ranked(view: View, weight: NDArray[Any]) -> list[int]:
    """Rows with some of a class, most first; the windows' hash decides between equals."""
    held = np.flatnonzero(weight > 0)
    held = held[np.argsort(-weight[held], kind="stable")][:500]
    keys = [(-int(weight[k]), _hash(view.index.keys[view.used[k]]), k) for k in held]
    return [int(view.used[k]) for _, _, k in sorted(keys)]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _target_rows(view: View, columns: int) -> list[_Row]:
    """Windows with low, middle and high targets, evenly through the dataset's."""
    from matplotlib import colormaps

    known = view.used[np.isfinite(view.means[view.used])]
    known = known[np.argsort(view.means[known], kind="stable")]
    lines = []
    for k, title in enumerate(("low", "middle", "high")):
        part = known[k * len(known) // 3 : (k + 1) * len(known) // 3]
        if not len(part):
            continue
        rows = part[np.unique(np.linspace(0, len(part) - 1, columns).round().astype(int))]
        what = f"{title}: {view.means[part[0]]:.3g} to {view.means[part[-1]]:.3g}"
        red, green, blue = colormaps["viridis"](0.1 + 0.4 * k)[:3]
        lines.append(_Row(what, (red, green, blue), rows.tolist()))
    return lines


def _image(sample: dict[str, Any], modality: ModalityInput) -> NDArray[np.float32]:
    """(H, W, 3) of the clearest timestep, not stretched yet; NaN without data."""
    pixels = np.asarray(sample[modality.name])
    if not pixels.shape[2]:
        return np.full((*pixels.shape[:2], 3), np.nan, np.float32)
    if modality.decibels:
        # The mean over time takes most of the speckle away.
        power = np.where(pixels > 0, pixels, np.nan)
        with np.errstate(all="ignore"):
            decibels = to_decibels(_nanmean(power, axis=2))
        first, last = decibels[..., 0], decibels[..., -1]
        return np.stack([first, last, first - last], axis=-1).astype(np.float32)
    bands = _RED_GREEN_BLUE.get(modality.name, ((), ""))[0]
    wanted = [modality.bands.index(b) for b in bands if b in modality.bands]
    if len(wanted) < 3:
        wanted = (list(range(len(modality.bands))) * 3)[:3]
    image = pixels[:, :, _clearest(pixels[..., wanted]), wanted].astype(np.float32)
    return np.where((image == 0).all(axis=-1, keepdims=True), np.nan, image)


def _clearest(visible: NDArray[Any]) -> int:
    """The timestep of (H, W, T, 3) with most pixels, and among those the darkest: least cloud."""
    with_data = (visible != 0).any(axis=-1).mean(axis=(0, 1))
    brightness = np.nan_to_num(visible, nan=0).mean(axis=(0, 1, 3))
    complete = with_data >= 0.98 * with_data.max()
    return int(np.argmin(np.where(complete, brightness, np.inf)))


def _nanmean(values: NDArray[Any], axis: int) -> NDArray[np.float32]:
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _stretch(
    images: dict[int, NDArray[np.float32]], decibels: bool
) -> dict[int, NDArray[np.float32]]:
    """Images 0 to 1 between the 2nd and 98th percentile of all of them, so that they compare.

    The channels of optical images share one width: colours stay true, and a channel that hardly
    varies doesn't show its noise alone. Those of radar, whose units differ, reach over 8 decibels
    at least.
    """
    sampled = np.concatenate([np.zeros((0, 3)), *(i.reshape(-1, 3)[::7] for i in images.values())])
    sampled = sampled[np.isfinite(sampled).all(axis=1)]
    if not len(sampled):
        return {row: np.full_like(image, _NO_DATA) for row, image in images.items()}
    low, high = np.percentile(sampled, [2, 98], axis=0)
    width = np.maximum(high - low, _RADAR_DB if decibels else 1e-6)
    if decibels:
        low = (low + high - width) / 2
    else:
        width = np.full(3, width.max())
        low = np.where(high - low <= 1e-6, low - width / 2, low)
    return {
        row: np.nan_to_num(np.clip((image - low) / width, 0, 1) ** 0.8, nan=_NO_DATA).astype(
            np.float32
        )
        for row, image in images.items()
    }


def _thin(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim < 2:
        return array
    step = max(1, -(-max(array.shape[:2]) // _MAX_PIXELS))
    return array[::step, ::step]


def _greyed(image: NDArray[np.float32]) -> NDArray[np.float32]:
    grey = image.mean(axis=-1, keepdims=True) * 0.55 + 0.4
    return np.repeat(grey, 3, axis=-1).astype(np.float32)


def _overlay(
    axes: "Axes",
    target: NDArray[Any],
    task: Task,
    palette: Sequence[Color],
    scale: tuple[float, float],
) -> None:
    """Lay a label over a picture; a few labelled points are drawn large enough to be seen."""
    if task.kind is TaskKind.SEGMENTATION:
        valid = (target >= 0) & (target < len(palette))
        colors = np.array([*palette, (0.0, 0.0, 0.0)])[np.where(valid, target, len(palette))]
    else:
        from matplotlib import colormaps

        valid = np.isfinite(target)
        span = scale[1] - scale[0] or 1.0
        colors = colormaps["viridis"]((np.where(valid, target, scale[0]) - scale[0]) / span)[
            ..., :3
        ]
    if 0 < valid.mean() < _POINTS:
        y, x = (places[:300] for places in np.nonzero(valid))
        axes.scatter(x, y, s=22, c=colors[y, x], edgecolors="white", linewidths=0.7)
        return
    # Drawn finer than the label, so that the hatching of what has no label is thin.
    fine = -(-_FINE // max(target.shape))
    colors, valid = (array.repeat(fine, 0).repeat(fine, 1) for array in (colors, valid))
    down, right = np.indices(valid.shape)
    hatched = ~valid & ((right + down) % (_FINE // 12) < max(_FINE // 100, 1))
    colors[hatched] = 1.0
    alpha = np.where(valid, 0.75, np.where(hatched, 0.9, 0.0))
    height, width = target.shape
    axes.imshow(
        np.dstack([colors, alpha]),
        interpolation="nearest",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def _target_range(view: View) -> tuple[float, float]:
    if view.task.kind.has_classes:
        return 0.0, 1.0
    moments = view.index.label_moments(view.cuts)[view.used, :, 0]
    known = moments[moments[:, 0] > 0]
    if not len(known):
        return 0.0, 1.0
    return float(np.quantile(known[:, 3], 0.02)), float(np.quantile(known[:, 4], 0.98))


def _note(view: View, row: int, sample: dict[str, Any], modality: ModalityInput, limit: int) -> str:
    """Split, value or date, and name of a window, as far as they fit."""
    parts = [str(view.splits[row])]
    if view.task.kind is TaskKind.SCALAR_REGRESSION:
        parts.append(f"{float(sample['target']):.3g}")
    elif (
        view.task.kind.per_pixel
        and not modality.decibels
        and len(sample["timestamps"][modality.name])
    ):
        bands = _RED_GREEN_BLUE.get(modality.name, (modality.bands, ""))[0]
        wanted = [modality.bands.index(b) for b in bands if b in modality.bands] or [0]
        step = _clearest(np.asarray(sample[modality.name])[..., wanted])
        stamps = sample["timestamps"][modality.name]
        if step < len(stamps):
            day, month, year = (int(part) for part in stamps[step])
            parts.append(f"{year}-{month + 1:02d}-{day:02d}")
    parts.append(view.index.names[row])
    lines = [" · ".join(parts)]
    if len(lines[0]) > limit:
        lines = [" · ".join(parts[:-1]), parts[-1]]
    return "\n".join(line if len(line) <= limit else line[: limit - 1] + "…" for line in lines)


def _caption(modality: ModalityInput) -> str:
    bands, text = _RED_GREEN_BLUE.get(modality.name, ((), ""))
    if modality.decibels:
        names = f"{modality.bands[0]}, {modality.bands[-1]}"
        return f"false colour: {names} and their difference in dB, mean over time"
    if text and all(band in modality.bands for band in bands):
        return f"{text}, the clearest timestep; one stretch for all"
    return f"bands {', '.join(modality.bands[:3])}, the clearest timestep; one stretch for all"


def _legend_height(view: View) -> float:
    if not view.task.kind.has_classes:
        return 0.75
    return 0.25 + 0.22 * -(-(len(_in_legend(view)) + 1) // _LEGEND_COLUMNS)


def _in_legend(view: View) -> list[int]:
    """The classes that some label holds."""
    present = np.flatnonzero(view.class_counts[view.used].any(axis=0))
    return [int(k) for k in present if k != view.task.ignored_id][:_MAX_LEGEND]


def _legend(
    figure: "Figure", view: View, palette: Sequence[Color], scale: tuple[float, float]
) -> None:
    """Every class that occurs with its colour, or the colours' values, at the foot."""
    top = figure.get_figheight() - _legend_height(view) + 0.1
    if not view.task.kind.has_classes:
        from matplotlib import colormaps

        axes = add_axes(figure, 1.35, top + 0.1, 3.0, 0.14)
        high = scale[1] if scale[1] > scale[0] else scale[0] + 1
        ramp = np.linspace(0, 1, 256)[None]
        axes.imshow(ramp, cmap=colormaps["viridis"], aspect="auto", extent=(scale[0], high, 0, 1))
        axes.set_yticks([])
        tidy(axes)
        add_text(figure, 4.5, top + 0.17, "target; hatched: no label", 8, color=SOFT)
        return
    entries = [(view.task.classes[k].name, palette[k]) for k in _in_legend(view)]
    width = (WIDTH_IN - 0.4) / _LEGEND_COLUMNS
    for k, (name, color) in enumerate(entries):
        x, y = 0.2 + (k % _LEGEND_COLUMNS) * width, top + 0.22 * (k // _LEGEND_COLUMNS)
        add_swatch(figure, x, y, color)
        add_text(figure, x + 0.22, y + 0.07, name if len(name) <= 20 else name[:19] + "…", 8)
    x, y = (
        0.2 + (len(entries) % _LEGEND_COLUMNS) * width,
        top + 0.22 * (len(entries) // _LEGEND_COLUMNS),
    )
    add_swatch(figure, x, y, (0.72, 0.72, 0.72), hatched=True)
    add_text(figure, x + 0.22, y + 0.07, "no label", 8)
