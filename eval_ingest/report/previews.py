"""Pictures of samples: a few windows of each class, with their labels.

They come from the packed samples, which is what a model gets.
"""

import hashlib
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval_ingest.core import images
from eval_ingest.core.images import Color
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.task import TaskKind
from eval_ingest.loading.plot import draw_labels, legend_entries, show
from eval_ingest.report import drawing
from eval_ingest.report.view import View

MAX_CLASSES = 12
"""Classes with a row of previews; the most frequent ones."""

_LEFT, _TOP, _GAP = 1.35, 0.62, 0.06
_CELL = (drawing.WIDTH_IN - _LEFT - 0.2 - 5 * _GAP) / 6
_STEP = _CELL + 0.33
"""Inches: where the pictures begin, between them, their side, and from line to line."""

_LEGEND_COLUMNS, _MAX_LEGEND = 5, 60


@dataclass(frozen=True)
class _Line:
    """A line of previews: windows that belong together."""

    title: str
    color: Color
    rows: list[int]
    """Of the index."""


def previews(view: View, modality: str, max_rows: int = MAX_CLASSES) -> Figure:
    """A few windows of each class (or of low to high targets), with the label beside them."""
    per_pixel = view.task.kind.per_pixel
    lines = _lines(view, 3 if per_pixel else 6, max_rows)
    source = view.metadata.config.modality(modality)
    samples = {row: view.sample(row) for line in lines for row in line.rows}
    composites = {
        row: images.thinned(images.composite(np.asarray(sample[modality]), source))
        for row, sample in samples.items()
    }
    pictures = images.stretched(composites, source.decibels)
    scale = _target_range(view)
    legend = _legend_height(view) if per_pixel else 0.15
    what = f"{images.caption(source)}; one stretch for all"
    height = _TOP + max(len(lines), 1) * _STEP + legend
    figure = drawing.new_figure(height, f"{view.metadata.name}: {modality}", what)
    for k, line in enumerate(lines):
        y = _TOP + k * _STEP
        drawing.add_swatch(figure, 0.2, y + 0.06, line.color)
        title = "\n".join(textwrap.wrap(line.title, 13)[:4])
        drawing.add_text(figure, 0.42, y + 0.04, title, 8.5, va="top")
        for j, row in enumerate(line.rows):
            x = _LEFT + j * (2 if per_pixel else 1) * (_CELL + _GAP)
            axes = drawing.add_axes(figure, x, y, _CELL, _CELL)
            show(axes, pictures[row])
            if not samples[row][modality].shape[2]:
                middle = x + _CELL / 2, y + _CELL / 2
                drawing.add_text(figure, *middle, f"no {modality}", 8, drawing.SOFT, ha="center")
            if per_pixel:
                target = images.thinned(np.asarray(samples[row]["target"]))
                beside = drawing.add_axes(figure, x + _CELL + _GAP / 2, y, _CELL, _CELL)
                draw_labels(beside, pictures[row], target, view.task, scale)
            else:
                axes.spines[:].set(color=line.color, linewidth=2.5)
            limit = int((1 + per_pixel) * _CELL / 0.059)
            note = _note(view, row, samples[row], source, limit)
            drawing.add_text(figure, x, y + _CELL + 0.05, note, 6.5, drawing.SOFT, va="top")
    if per_pixel:
        _legend(figure, view, scale)
    return figure


def _lines(view: View, columns: int, max_rows: int) -> list[_Line]:
    if not view.task.kind.has_classes:
        return _target_lines(view, columns)
    palette = images.class_colors(view.task)
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
    return [_Line(view.task.classes[k].name, palette[k], rows[k]) for k in sorted(chosen)]


def _ranked(view: View, weight: NDArray[Any]) -> list[int]:
    """Rows with some of a class, most first; the windows' hash decides between equals."""
    held = np.flatnonzero(weight > 0)
    held = held[np.argsort(-weight[held], kind="stable")][:500]
    keys = [(-int(weight[k]), _hash(view.index.keys[view.used[k]]), k) for k in held]
    return [int(view.used[k]) for _, _, k in sorted(keys)]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _target_lines(view: View, columns: int) -> list[_Line]:
    """Windows with low, middle and high targets, evenly through the dataset's."""
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
        lines.append(_Line(what, (red, green, blue), rows.tolist()))
    return lines


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
    stamps = sample["timestamps"][modality.name]
    if view.task.kind is TaskKind.SCALAR_REGRESSION:
        parts.append(f"{float(sample['target']):.3g}")
    elif view.task.kind.per_pixel and not modality.decibels and len(stamps):
        step = images.clearest(np.asarray(sample[modality.name]), modality)
        day, month, year = (int(part) for part in stamps[step])
        parts.append(f"{year}-{month + 1:02d}-{day:02d}")
    parts.append(view.index.names[row])
    lines = [" · ".join(parts)]
    if len(lines[0]) > limit:
        lines = [" · ".join(parts[:-1]), parts[-1]]
    return "\n".join(line if len(line) <= limit else line[: limit - 1] + "…" for line in lines)


def _in_legend(view: View) -> list[int]:
    """The classes that some label holds."""
    present = np.flatnonzero(view.class_counts[view.used].any(axis=0))
    return [int(k) for k in present if k != view.task.ignored_id][:_MAX_LEGEND]


def _legend_height(view: View) -> float:
    if not view.task.kind.has_classes:
        return 0.75
    return 0.25 + 0.22 * -(-(len(_in_legend(view)) + 1) // _LEGEND_COLUMNS)


def _legend(figure: Figure, view: View, scale: tuple[float, float]) -> None:
    """Every class that occurs with its colour, or the colours' values, at the foot."""
    if view.task.kind.has_classes:
        entries = legend_entries(view.task, _in_legend(view))
        drawing.add_legend(figure, entries, ncols=_LEGEND_COLUMNS, loc="lower left", mode="expand",
                   bbox_to_anchor=(0.02, 0.1 / figure.get_figheight(), 0.96, 0))  # fmt: skip
        return
    top = figure.get_figheight() - _legend_height(view) + 0.1
    axes = drawing.add_axes(figure, _LEFT, top + 0.1, 3.0, 0.14)
    high = scale[1] if scale[1] > scale[0] else scale[0] + 1
    ramp = np.linspace(0, 1, 256)[None]
    axes.imshow(ramp, cmap="viridis", aspect="auto", extent=(scale[0], high, 0, 1))
    axes.set_yticks([])
    drawing.tidy(axes)
    drawing.add_text(figure, 4.5, top + 0.17, "target; hatched: no label", 8, drawing.SOFT)
