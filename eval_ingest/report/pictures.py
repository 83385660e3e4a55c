"""Pictures of an ingested dataset, as PNG bytes: what is in it, where, when, and how divided.

Previews come from the packed samples, which is what a model gets; everything else comes from the
window index and the split assignment.
"""

import hashlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.entry import Metadata
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.norm import to_decibels
from eval_ingest.core.pretraining import PRETRAINING
from eval_ingest.core.quality import timesteps
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.core.task import Task, TaskKind
from eval_ingest.errors import NotIngestedError
from eval_ingest.report.drawing import (
    DPI,
    INK,
    LINE,
    SOFT,
    SPLIT_COLORS,
    WIDTH_IN,
    Color,
    add_axes,
    add_legend,
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
from eval_ingest.store.index_file import read_index, read_splits
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import require_metadata

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eval_ingest.loading import EvalDataset

SMALL_BYTES = 150_000
"""`partition_pictures` together: under 200 kB once they are base64 in a page."""

MAX_CLASSES = 12
"""Classes with a row of previews; the most frequent ones."""
MAX_BARS = 30
"""Classes with bars in the histogram."""
_MAX_PIXELS = 400
"""Larger windows are thinned out to about this many pixels a side."""
_FINE = 200
"""Labels are drawn with at least this many pixels a side."""
_POINTS = 0.02
"""With less than this share of labelled pixels, they are drawn as points."""

_RED_GREEN_BLUE = {
    "sentinel2_l2a": (("B04", "B03", "B02"), "true colour: B04 B03 B02"),
    "landsat": (("B4", "B3", "B2"), "true colour: B4 B3 B2"),
}


@dataclass(frozen=True)
class View:
    """An ingested dataset, opened for looking at."""

    root: EvalRoot
    metadata: Metadata
    index: WindowIndex
    assignment: SplitAssignment

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.metadata.config.task

    @property
    def splits(self) -> NDArray[np.str_]:
        """Split per row of the index."""
        return self.assignment.splits

    @property
    def used(self) -> NDArray[np.int64]:
        """Rows of the index that are in a split."""
        return self.assignment.used

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """Pixels or windows per class, (N, classes), of all rows."""
        return self.index.class_counts(self.task.num_classes)

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """Mean target per row, for regressions; NaN without one."""
        moments = self.index.label_moments()[:, :, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(moments[:, 1] / moments[:, 0])

    @cached_property
    def _samples(self) -> dict[str, "tuple[EvalDataset, dict[str, int]]"]:
        from eval_ingest.loading import EvalDataset  # torch: not for the map or the histograms

        opened = {}
        for split in SPLITS:
            data = EvalDataset(
                self.metadata.name, split, root=self.root.url, normalize=None, crop=None
            )
            opened[split] = data, {data.window(i): i for i in range(len(data))}
        return opened

    def sample(self, row: int) -> dict[str, Any]:
        """The packed sample of a row of the index: stored units, the whole window."""
        data, places = self._samples[str(self.splits[row])]
        return data[places[self.index.keys[row]]]


def open_view(root: EvalRoot, name: str) -> View:
    """Open a published dataset.

    Raises:
        UnknownDatasetError: there is none of that name.
        NotIngestedError: its window index or split assignment is of another version, or gone.
    """
    metadata = require_metadata(root, name)
    layout = root.dataset(name)
    root.pull(layout.window_index, layout.split_assignment)
    index, assignment = read_index(layout.window_index), read_splits(layout.split_assignment)
    if index is None or assignment is None:
        missing = layout.window_index if index is None else layout.split_assignment
        raise NotIngestedError(
            f"{name}: {missing} is not there or of another version; "
            f"run: eval-ingest ingest --name {name}"
        )
    return View(root, metadata, index, assignment)


@dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    name: str
    """File name without `.png`."""
    title: str
    png: bytes


def all_pictures(view: View) -> list[Picture]:
    """Every picture of the report, in the order in which a person wants to see them."""
    pictures = [
        Picture(
            f"preview_{modality.name}", f"Samples: {modality.name}", previews(view, modality.name)
        )
        for modality in view.metadata.config.modalities
    ]
    return [
        *pictures,
        Picture("map", "Where the windows lie", window_map(view)),
        Picture("labels", "Labels per split", label_histogram(view)),
        Picture("bands", "Bands beside pretraining", band_statistics(view)),
        Picture("timeline", "When the images were taken", timeline(view)),
    ]


def partition_pictures(root: EvalRoot, name: str) -> dict[str, bytes]:
    """Small pictures by title, under SMALL_BYTES together, for the metadata of an asset.

    Raises:
        NotIngestedError: the dataset isn't there, or only in part.
    """
    view = open_view(root, name)
    modality = view.metadata.config.modalities[0].name
    makers: dict[str, Callable[[int, int], bytes]] = {
        "samples": lambda dpi, colors: previews(view, modality, 5, dpi, colors),
        "map": lambda dpi, colors: window_map(view, dpi, colors),
        "labels": lambda dpi, colors: label_histogram(view, dpi, colors),
    }
    made: dict[str, bytes] = {}
    for dpi, colors in ((72, 96), (60, 48), (48, 24)):
        made = {title: make(dpi, colors) for title, make in makers.items()}
        if sum(map(len, made.values())) <= SMALL_BYTES:
            return made
    while sum(map(len, made.values())) > SMALL_BYTES:
        del made[max(made, key=lambda title: len(made[title]))]
    return made


# ------------------------------------------------------------------------------------- previews


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
    pictures = _stretch(shown, together=not source.decibels)
    palette = class_colors(view.task)
    scale = _target_range(view)

    left, top, gap = 1.35, 0.62, 0.06
    cell = (WIDTH_IN - left - 0.2 - 5 * gap) / 6
    step = cell + 0.26
    legend = _legend_height(view.task) if per_pixel else 0.15
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
            if per_pixel:
                target = _thin(np.asarray(samples[row]["target"]))
                axes = add_picture(figure, x + cell + gap / 2, y, cell, _greyed(pictures[row]))
                _overlay(axes, target, view.task, palette, scale)
                wide = 2 * cell
            else:
                frame(axes, line.color)
            note = _note(view, row, samples[row], source, int(wide / 0.056))
            add_text(figure, x, y + cell + 0.1, note, 6.2, color=SOFT)
    if per_pixel:
        _legend(figure, view.task, palette, scale)
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
    images: dict[int, NDArray[np.float32]], together: bool
) -> dict[int, NDArray[np.float32]]:
    """Images 0 to 1 between the 2nd and 98th percentile of all of them, so that they compare.

    With `together` the channels share one width: colours stay true, and a channel that hardly
    varies doesn't show its noise alone.
    """
    sampled = np.concatenate([np.zeros((0, 3)), *(i.reshape(-1, 3)[::7] for i in images.values())])
    sampled = sampled[np.isfinite(sampled).all(axis=1)]
    if not len(sampled):
        return {row: np.ones_like(image) for row, image in images.items()}
    low, high = np.percentile(sampled, [2, 98], axis=0)
    width = np.full(3, (high - low).max()) if together else high - low
    flat = width <= 1e-6
    low, width = np.where(flat, low - 0.5, low), np.where(flat, 1, width)
    return {
        row: np.nan_to_num(np.clip((image - low) / width, 0, 1) ** 0.8, nan=0.93).astype(np.float32)
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
    moments = view.index.label_moments()[view.used, :, 0]
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
    text = " · ".join(parts)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _caption(modality: ModalityInput) -> str:
    bands, text = _RED_GREEN_BLUE.get(modality.name, ((), ""))
    if modality.decibels:
        names = f"{modality.bands[0]}, {modality.bands[-1]}"
        return f"false colour: {names} and their difference in dB, mean over time"
    if text and all(band in modality.bands for band in bands):
        return f"{text}, the clearest timestep; one stretch for all"
    return f"bands {', '.join(modality.bands[:3])}, the clearest timestep; one stretch for all"


# ------------------------------------------------------------------- where, what, how much, when


def window_map(view: View, dpi: int = DPI, colors: int | None = None) -> bytes:
    """Windows by split at their longitude and latitude, equally scaled at the middle."""
    outlines = view.index.footprints
    middles = np.vstack([outlines.centres, [[np.nan, np.nan]]])[outlines.place]
    lon, lat = middles.T
    figure = new_figure(5.6, dpi)
    add_title(
        figure, f"{view.metadata.name}: windows by split", "longitude and latitude, no base map"
    )
    axes = add_axes(figure, 0.85, 0.75, WIDTH_IN - 1.1, 4.35)
    known = view.used[np.isfinite(lon[view.used])]
    size = float(np.clip(3000 / max(len(known), 1), 4, 40))
    for split in SPLITS:
        rows = known[view.splits[known] == split]
        color = SPLIT_COLORS[split]
        axes.scatter(lon[rows], lat[rows], s=size, color=color, alpha=0.75, linewidths=0,
                     label=f"{split} ({len(rows):,})")  # fmt: skip
    tidy(axes)
    if len(known):
        middle = np.radians(np.clip((lat[known].min() + lat[known].max()) / 2, -80, 80))
        axes.set_aspect(1 / float(np.cos(middle)), adjustable="datalim")
        axes.margins(0.06)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}°")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}°")
    axes.grid(color=LINE, linewidth=0.5)
    add_legend(figure, axes)
    return to_png(figure, dpi, colors or 64)


def label_histogram(view: View, dpi: int = DPI, colors: int | None = None) -> bytes:
    """Shares of the classes per split, or the distribution of targets per split."""
    if view.task.kind.has_classes:
        return _class_bars(view, dpi, colors)
    figure = new_figure(3.8, dpi)
    unit = "mean target of a window" if view.task.kind.per_pixel else "target"
    add_title(figure, f"{view.metadata.name}: targets per split", f"share of windows by {unit}")
    axes = add_axes(figure, 0.85, 0.75, WIDTH_IN - 1.1, 2.55)
    known = view.used[np.isfinite(view.means[view.used])]
    if len(known):
        edges = np.histogram_bin_edges(view.means[known], bins=min(16, max(len(known) // 3, 4)))
        third = 0.28 * (edges[1] - edges[0])
        for k, split in enumerate(SPLITS):
            values = view.means[known[view.splits[known] == split]]
            share = np.histogram(values, edges)[0] / max(len(values), 1)
            middles = (edges[1:] + edges[:-1]) / 2 + (k - 1) * third
            axes.bar(middles, share, 0.95 * third, color=SPLIT_COLORS[split],
                     label=f"{split} ({len(values):,} windows)")  # fmt: skip
        axes.set_xticks(edges, [f"{edge:.3g}" for edge in edges])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    tidy(axes)
    add_legend(figure, axes)
    return to_png(figure, dpi, colors or 64)


def _class_bars(view: View, dpi: int, colors: int | None) -> bytes:
    counts = np.stack([view.class_counts[view.splits == split].sum(axis=0) for split in SPLITS])
    present = np.flatnonzero(counts.any(axis=0))
    order = present[np.argsort(-counts.sum(axis=0)[present], kind="stable")][:MAX_BARS]
    shares = counts[:, order] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    palette = class_colors(view.task)
    height = 0.42 * max(len(order), 1)
    figure = new_figure(height + 1.35, dpi)
    unit = "labelled pixels" if view.task.kind.per_pixel else "windows"
    what = f"share of each split's {unit}"
    if len(present) > len(order):
        what += f"; the {len(order)} most frequent of {len(present)} classes"
    add_title(figure, f"{view.metadata.name}: classes per split", what)
    axes = add_axes(figure, 2.1, 0.75, WIDTH_IN - 2.9, height)
    places = np.arange(len(order))
    for j, split in enumerate(SPLITS):
        windows = int((view.splits == split).sum())
        axes.barh(places + 0.26 * (j - 1), shares[j], height=0.24, color=SPLIT_COLORS[split],
                  label=f"{split} ({windows:,} windows)")  # fmt: skip
        for place, share in zip(places, shares[j], strict=True):
            text = f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"
            axes.text(share, place + 0.26 * (j - 1), f" {text}", va="center", fontsize=6,
                      color=SOFT)  # fmt: skip
    tidy(axes)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for place, k in zip(places, order, strict=True):
        y = 0.75 + 0.42 * (place + 0.5)
        add_swatch(figure, 1.86, y - 0.07, palette[k])
        name = view.task.classes[k].name
        name = name if len(name) <= 22 else name[:21] + "…"
        add_text(figure, 1.78, y, name, 8.5, ha="right", va="center")
    add_legend(figure, axes)
    return to_png(figure, dpi, colors or 96)


def band_statistics(view: View, dpi: int = DPI, colors: int | None = None) -> bytes:
    """Mean and standard deviation per band of the train windows, beside pretraining's."""
    modalities = view.metadata.config.modalities
    each = 2.6
    figure = new_figure(0.75 + each * len(modalities), dpi)
    add_title(
        figure,
        f"{view.metadata.name}: bands",
        "mean and standard deviation of the train windows, beside OlmoEarth's pretraining",
    )
    for k, modality in enumerate(modalities):
        axes = add_axes(figure, 0.95, 0.85 + k * each, WIDTH_IN - 1.2, each - 0.75)
        stats = view.metadata.norm_stats[modality.name]
        places = np.arange(len(modality.bands))
        known = PRETRAINING.get(modality.name, {})
        pretrained = [(j, *known[b]) for j, b in enumerate(modality.bands) if b in known]
        if pretrained:
            at, mean, std = (np.array(column) for column in zip(*pretrained, strict=True))
            axes.bar(at, 2 * std, 0.62, bottom=mean - std, color="#e3e8ec", label="pretraining")
            axes.hlines(mean, at - 0.31, at + 0.31, color="#9aa7b1", linewidth=1.5)
        mean = np.array([stats[band]["mean"] for band in modality.bands])
        std = np.array([stats[band]["std"] for band in modality.bands])
        axes.errorbar(places, mean, std, fmt="o", color="#0072b2", markersize=5, capsize=3,
                      linewidth=1.6, label="this dataset")  # fmt: skip
        axes.set_xticks(places, modality.bands)
        axes.set_xlim(-0.6, max(len(places), 8) - 0.4)
        unit = "decibels" if modality.decibels else "stored units"
        axes.set_title(f"{modality.name}, {unit}", loc="left", fontsize=8.5, color=INK)
        tidy(axes)
        axes.grid(axis="y", color=LINE, linewidth=0.5)
        if k == 0:
            add_legend(figure, axes)
    return to_png(figure, dpi, colors or 64)


def timeline(view: View, dpi: int = DPI, colors: int | None = None) -> bytes:
    """Timesteps per month (per year beyond ten years), by split, one strip per modality."""
    modalities = view.metadata.config.modalities
    each = 1.9
    figure = new_figure(0.75 + each * len(modalities), dpi)
    months = {m.name: _months(view, m.name) for m in modalities}
    known = [found for _, found in months.values() if len(found)]
    low = min((int(found.min()) for found in known), default=0)
    high = max((int(found.max()) for found in known), default=0)
    width = 12 if high - low > 120 else 1
    edges = np.arange(low // width * width, high + width + 1, width)
    unit = "year" if width == 12 else "month"
    add_title(figure, f"{view.metadata.name}: timeline", f"timesteps per {unit}")
    for k, modality in enumerate(modalities):
        axes = add_axes(figure, 0.95, 0.85 + k * each, WIDTH_IN - 1.2, each - 0.75)
        rows, found = months[modality.name]
        below = np.zeros(len(edges) - 1)
        for split in SPLITS:
            counts = np.histogram(found[view.splits[rows] == split], edges)[0]
            axes.bar(edges[:-1] + width / 2, counts, 0.9 * width, bottom=below,
                     color=SPLIT_COLORS[split], label=split)  # fmt: skip
            below = below + counts
        tidy(axes)
        axes.set_xlim(edges[0] - 0.5 * width, max(edges[-1], edges[0] + 10 * width) + 0.5 * width)
        axes.set_title(
            modality.name if len(found) else f"{modality.name}: the rasters tell no times",
            loc="left", fontsize=8.5, color=INK,
        )  # fmt: skip
        ticks = edges[:: max(1, len(edges) // 14)][: len(edges) - 1]
        labels = [
            f"{1970 + t // 12}" if width == 12 else f"{1970 + t // 12}-{t % 12 + 1:02d}"
            for t in ticks.tolist()
        ]
        axes.set_xticks(ticks + width / 2, labels if known else [""] * len(ticks), fontsize=7)
        if k == 0:
            add_legend(figure, axes)
    return to_png(figure, dpi, colors or 64)


def _months(view: View, modality: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of the index and month since 1970-01 of every timestep of the used windows."""
    rows, start, _ = timesteps(view.index.table[f"{modality}.timestamps"])
    wanted = np.isin(rows, view.used) & np.isfinite(start)
    stamps = start[wanted].astype(np.int64).astype("datetime64[us]")
    return rows[wanted], stamps.astype("datetime64[M]").astype(np.int64)


_LEGEND_COLUMNS = 6


def _legend_height(task: Task) -> float:
    if not task.kind.has_classes:
        return 0.75
    return 0.25 + 0.22 * -(-_legend_length(task) // _LEGEND_COLUMNS)


def _legend_length(task: Task) -> int:
    return min(len(task.classes), 60) + 1


def _legend(
    figure: "Figure", task: Task, palette: Sequence[Color], scale: tuple[float, float]
) -> None:
    """Every class with its colour, or the colours' values, at the foot."""
    top = figure.get_figheight() - _legend_height(task) + 0.1
    if not task.kind.has_classes:
        from matplotlib import colormaps

        axes = add_axes(figure, 1.35, top + 0.1, 3.0, 0.14)
        high = scale[1] if scale[1] > scale[0] else scale[0] + 1
        ramp = np.linspace(0, 1, 256)[None]
        axes.imshow(ramp, cmap=colormaps["viridis"], aspect="auto", extent=(scale[0], high, 0, 1))
        axes.set_yticks([])
        tidy(axes)
        add_text(figure, 4.5, top + 0.17, "target; hatched: no label", 8, color=SOFT)
        return
    entries = [(k.name, c) for k, c in zip(task.classes, palette, strict=True)][:60]
    if task.ignored_id is not None:
        del entries[task.ignored_id]
    width = (WIDTH_IN - 0.4) / _LEGEND_COLUMNS
    for k, (name, color) in enumerate(entries):
        x, y = 0.2 + (k % _LEGEND_COLUMNS) * width, top + 0.22 * (k // _LEGEND_COLUMNS)
        add_swatch(figure, x, y, color)
        add_text(figure, x + 0.22, y + 0.07, name if len(name) <= 22 else name[:21] + "…", 8)
    x, y = (
        0.2 + (len(entries) % _LEGEND_COLUMNS) * width,
        top + 0.22 * (len(entries) // _LEGEND_COLUMNS),
    )
    add_swatch(figure, x, y, (0.72, 0.72, 0.72), hatched=True)
    add_text(figure, x + 0.22, y + 0.07, "no label", 8)
