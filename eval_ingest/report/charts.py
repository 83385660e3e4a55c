"""Charts of a dataset: labels per split, pixel values per band, images over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval_ingest.core.images import class_colors
from eval_ingest.core.norm import to_decibels
from eval_ingest.core.pretraining import PRETRAINING
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.spec import SPLITS
from eval_ingest.report import drawing
from eval_ingest.report.view import View

MAX_BARS = 30
"""Classes with bars in the histogram."""

_HISTOGRAM_WINDOWS, _HISTOGRAM_PIXELS = 64, 1000
"""Train windows, and pixels of each, that histograms are made of."""


def label_histogram(view: View) -> Figure:
    """Shares of the classes per split, or the distribution of targets per split."""
    if view.task.kind.has_classes:
        return _class_bars(view)
    unit = "mean target of a window" if view.task.kind.per_pixel else "target"
    title = f"{view.metadata.name}: targets per split"
    figure = drawing.new_figure(3.8, title, f"share of windows by {unit}")
    axes = drawing.add_axes(figure, 0.85, 0.75, drawing.WIDTH_IN - 1.1, 2.55)
    known = view.used[np.isfinite(view.means[view.used])]
    if len(known):
        edges = _nice_edges(view.means[known], min(16, max(len(known) // 3, 4)))
        values = {s: view.means[known[view.splits[known] == s]] for s in SPLITS}
        axes.hist(
            list(values.values()), edges.tolist(), rwidth=0.84,
            color=[drawing.SPLIT_COLORS[split] for split in SPLITS],
            weights=[np.full(len(v), 1 / max(len(v), 1)) for v in values.values()],
            label=[f"{split} ({len(v):,} windows)" for split, v in values.items()],
        )  # fmt: skip
        axes.set_xlabel(view.task.property_name or "target", fontsize=8, color=drawing.SOFT)
    axes.yaxis.set_major_formatter("{x:.0%}")
    drawing.tidy(axes)
    drawing.add_legend(figure, axes)
    return figure


def _nice_edges(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Edges of about so many bins, at round numbers."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    exact = (high - low) / bins
    power = 10.0 ** np.floor(np.log10(exact))
    step = min((k * power for k in (1, 2, 2.5, 5, 10)), key=lambda width: abs(width - exact))
    return np.asarray(np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step)


def _class_bars(view: View) -> Figure:
    counts = np.stack([view.class_counts[view.splits == split].sum(axis=0) for split in SPLITS])
    present = np.flatnonzero(counts.any(axis=0))
    order = present[np.argsort(-counts.sum(axis=0)[present], kind="stable")][:MAX_BARS]
    shares = counts[:, order] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    palette = class_colors(view.task)
    height = 0.42 * max(len(order), 1)
    unit = "labelled pixels" if view.task.kind.per_pixel else "windows"
    what = f"share of each split's {unit}"
    if len(present) > len(order):
        what += f"; the {len(order)} most frequent of {len(present)} classes"
    figure = drawing.new_figure(height + 1.15, f"{view.metadata.name}: classes per split", what)
    axes = drawing.add_axes(figure, 2.1, 0.75, drawing.WIDTH_IN - 2.9, height)
    places = np.arange(len(order))
    for j, split in enumerate(SPLITS):
        windows = int((view.splits == split).sum())
        bars = axes.barh(places + 0.26 * (j - 1), shares[j], height=0.24, label=f"{split} "
                         f"({windows:,} windows)", color=drawing.SPLIT_COLORS[split])  # fmt: skip
        texts = [f"{s:.1%}" if s >= 0.001 or s == 0 else "<0.1%" for s in shares[j]]
        axes.bar_label(bars, texts, padding=2, fontsize=6, color=drawing.SOFT)
    drawing.tidy(axes)
    axes.set_ylim(len(order) - 0.5, -0.5)
    names = [view.task.classes[k].name for k in order]
    names = [name if len(name) <= 22 else name[:21] + "…" for name in names]
    axes.set_yticks(places, names, fontsize=8.5, color=drawing.INK)
    axes.tick_params(axis="y", pad=22)
    axes.scatter(np.full(len(order), -0.018), places, 110, [palette[k] for k in order], marker="s",
                 transform=axes.get_yaxis_transform(), clip_on=False)  # fmt: skip
    axes.xaxis.set_major_formatter("{x:.0%}")
    drawing.add_legend(figure, axes)
    return figure


_STRIP_IN = 2.6
"""Height of a modality's part of a chart."""


def _strips(
    view: View, title: str, subtitle: str
) -> tuple[Figure, list[tuple[ModalityInput, Axes]]]:
    """A chart with axes for each modality, one below the other."""
    modalities = view.metadata.config.modalities
    height = 0.75 + _STRIP_IN * len(modalities)
    figure = drawing.new_figure(height, f"{view.metadata.name}: {title}", subtitle)
    found = []
    for k, modality in enumerate(modalities):
        axes = drawing.add_axes(
            figure, 0.95, 0.85 + k * _STRIP_IN, drawing.WIDTH_IN - 1.2, _STRIP_IN - 0.75
        )
        axes.set_title(
            f"{modality.name}, {_unit(modality)}", loc="left", fontsize=8.5, color=drawing.INK
        )
        drawing.tidy(axes)
        found.append((modality, axes))
    return figure, found


def band_statistics(view: View) -> Figure:
    """Mean and standard deviation per band of the train windows, beside pretraining's."""
    what = "mean and standard deviation of the train windows, beside OlmoEarth's pretraining"
    figure, strips = _strips(view, "bands", what)
    for modality, axes in strips:
        stats = view.metadata.norm_stats[modality.name]
        places = np.arange(len(modality.bands))
        known = PRETRAINING.get(modality.name, {})
        pretrained = [(j, *known[b]) for j, b in enumerate(modality.bands) if b in known]
        if pretrained:
            at, mean, std = (np.array(column) for column in zip(*pretrained, strict=True))
            axes.bar(at, 2 * std, 0.62, bottom=mean - std, color="#e3e8ec", label="pretraining")
            axes.hlines(mean, at - 0.31, at + 0.31, color="#9aa7b1", linewidth=1.5)
        mean, std = (np.array([stats[b][key] for b in modality.bands]) for key in ("mean", "std"))
        axes.errorbar(places, mean, std, fmt="o", color="#0072b2", markersize=5, capsize=3,
                      linewidth=1.6, label="this dataset")  # fmt: skip
        axes.set_xticks(places, modality.bands)
        axes.set_xlim(-0.6, max(len(places), 8) - 0.4)
        axes.grid(axis="y", color=drawing.LINE, linewidth=0.5)
    drawing.add_legend(figure, strips[0][1])
    return figure


def band_histograms(view: View) -> Figure:
    """How often which pixel value is, per band, with the mean and spread of pretraining."""
    modalities = view.metadata.config.modalities
    columns, each, gap = 6, 1.15, 0.35
    lines = {m.name: -(-len(m.bands) // columns) for m in modalities}
    windows = view.opened("train")
    chosen = np.unique(np.linspace(0, len(windows) - 1, _HISTOGRAM_WINDOWS).round().astype(int))
    figure = drawing.new_figure(
        0.75 + sum(0.4 + n * (each + gap) for n in lines.values()),
        f"{view.metadata.name}: pixel values",
        f"of {len(chosen):,} train windows, without nodata; grey: mean and one standard "
        "deviation each way in OlmoEarth's pretraining",
    )
    samples = [windows[int(k)] for k in chosen]
    width = (drawing.WIDTH_IN - 0.5 - columns * 0.15) / columns
    top = 0.75
    for modality in modalities:
        drawing.add_text(figure, 0.25, top + 0.12, f"{modality.name}, {_unit(modality)}", 8.5)
        values = _values(samples, modality)
        for k, band in enumerate(modality.bands):
            x = 0.3 + (k % columns) * (width + 0.15)
            y = top + 0.45 + (k // columns) * (each + gap)
            axes = drawing.add_axes(figure, x, y, width, each - 0.35)
            _histogram(axes, values[:, k], PRETRAINING.get(modality.name, {}).get(band))
            axes.set_title(band, loc="left", fontsize=8, color=drawing.INK, pad=2)
        top += 0.4 + lines[modality.name] * (each + gap)
    return figure


def _values(samples: Sequence[dict[str, Any]], modality: ModalityInput) -> NDArray[np.float32]:
    """Some pixels (N, C) of the samples, in decibels for radar; NaN for what holds no data."""
    found = [np.zeros((0, len(modality.bands)), np.float32)]
    for sample in samples:
        pixels = np.asarray(sample[modality.name]).reshape(-1, len(modality.bands))
        found.append(pixels[:: max(1, len(pixels) // _HISTOGRAM_PIXELS)].astype(np.float32))
    values = np.concatenate(found)
    if modality.decibels:
        return to_decibels(np.where(values > 0, values, np.nan)).astype(np.float32)
    return np.where((values == 0).all(axis=1, keepdims=True), np.nan, values).astype(np.float32)


def _histogram(axes: Axes, values: NDArray[np.float32], known: tuple[float, float] | None) -> None:
    """One band's values between their extreme 0.5%, and what pretraining saw."""
    drawing.tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(labelsize=7)
    values = values[np.isfinite(values)]
    if not len(values):
        axes.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=8, color=drawing.SOFT,
                  transform=axes.transAxes)  # fmt: skip
        return
    low, high = np.percentile(values, [0.5, 99.5])
    if low == high:
        low, high = low - 0.5, high + 0.5
    axes.hist(values, bins=40, range=(low, high), color="#0072b2", linewidth=0)
    if known is not None:
        mean, std = known
        axes.axvspan(mean - std, mean + std, color="#8d99a3", alpha=0.22, linewidth=0, zorder=0)
        axes.axvline(mean, color="#7d8a95", linewidth=1.2, zorder=0)
    air = 0.04 * (high - low)
    axes.set_xlim(low - air, high + air)


_UNITS = {"sentinel2_l2a": "reflectance times 10,000", "landsat": "digital numbers"}


def _unit(modality: ModalityInput) -> str:
    return "decibels" if modality.decibels else _UNITS.get(modality.name, "stored units")


def timeline(view: View) -> Figure:
    """Timesteps per month (per year beyond ten years), by split, one strip per modality."""
    months = {m.name: _months(view, m.name) for m in view.metadata.config.modalities}
    known = np.concatenate([found for _, found in months.values()])
    low, high = (int(known.min()), int(known.max())) if len(known) else (0, 0)
    width, unit = (12, "year") if high - low > 120 else (1, "month")
    edges = np.arange(low // width * width, high + width + 1, width)
    figure, strips = _strips(view, "timeline", f"timesteps per {unit}")
    for modality, axes in strips:
        rows, found = months[modality.name]
        axes.hist(
            [found[view.splits[rows] == split] for split in SPLITS], edges.tolist(), rwidth=0.9,
            stacked=True, color=[drawing.SPLIT_COLORS[split] for split in SPLITS], label=SPLITS,
        )  # fmt: skip
        axes.set_xlim(edges[0] - 0.5 * width, max(edges[-1], edges[0] + 10 * width) + 0.5 * width)
        text = modality.name
        if not len(found):
            axes.set_yticks([])
            text += ": the rasters tell no times"
        axes.set_title(text, loc="left", fontsize=8.5, color=drawing.INK)
        ticks = edges[:: max(1, len(edges) // 14)][: len(edges) - 1]
        labels = np.datetime_as_string(
            ticks.astype("datetime64[M]"), unit="Y" if width == 12 else "M"
        )
        axes.set_xticks(ticks + width / 2, labels if len(known) else [""] * len(ticks), fontsize=7)
    drawing.add_legend(figure, strips[0][1])
    return figure


def _months(view: View, modality: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of the index and month since 1970-01 of every timestep of the used windows."""
    rows, start, _ = view.index.timesteps(modality)
    wanted = np.isin(rows, view.used) & np.isfinite(start)
    stamps = start[wanted].astype(np.int64).astype("datetime64[us]")
    return rows[wanted], stamps.astype("datetime64[M]").astype(np.int64)
