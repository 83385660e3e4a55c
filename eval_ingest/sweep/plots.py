"""Pictures of a sweep: scores by dataset and encoder, confusion matrices, label fractions."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval_ingest.core.task import TaskKind
from eval_ingest.report.drawing import LINE, save_png, tidy
from eval_ingest.store.atomic import written_aside
from eval_ingest.sweep.metrics import METRICS
from eval_ingest.sweep.results import Leaderboard, Row, encoder_labels, latest, leaderboards

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")

_MARKERS = "osD^vP*X"
"""Beside the colours, for readers without them and for more than eight encoders."""

_METRICS = {
    "miou": "mean IoU",
    "rmse": "RMSE in the target's units, low is good",
    "mae": "MAE in the target's units, low is good",
}
"""Other metrics are told by their own names."""
_MAX_CELLS_WITH_NUMBERS = 15
"""Confusion matrices of more classes are drawn without numbers."""


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw everything there is to see in the rows; the files' paths.

    Raises:
        StoreError: a file can't be written.
    """
    rows = latest(rows)
    names = encoder_labels(rows)
    encoders = sorted(set(names.values()))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(encoders)}
    paths = []
    # The largest fraction of a split comes first.
    for board in {board.split: board for board in reversed(leaderboards(rows))}.values():
        paths.append(_save(draw_scores(board, colours), folder / f"scores_{board.split}.png"))
    by_dataset: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_dataset[row.dataset, row.split].append(row)
    for (dataset, split), group in sorted(by_dataset.items()):
        if len({row.label_fraction for row in group}) > 1:
            figure = draw_fractions(group, names, colours)
            paths.append(_save(figure, folder / f"fractions_{dataset}_{split}.png"))
        for encoder, row in _for_confusion(group, names).items():
            name = re.sub(r"[^a-zA-Z0-9._-]+", "_", f"{dataset}_{encoder}_{split}")
            paths.append(_save(draw_confusion(row, encoder), folder / f"confusion_{name}.png"))
    return paths


def _bounded(metric: str) -> bool:
    """Does it lie between 0 and 1?"""
    return metric not in METRICS[TaskKind.REGRESSION]


def _for_confusion(rows: Sequence[Row], names: dict[str, str]) -> dict[str, Row]:
    """By encoder the row with the most labels, and of those the one with the first seed."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (-row.label_fraction, row.seed)):
        if row.confusion is not None:
            found.setdefault(names[row.key], row)
    return found


def draw_scores(board: Leaderboard, colours: dict[str, str]) -> Figure:
    """One panel per dataset, as metrics and scales differ; a bar per encoder with its interval."""
    n = len(board.datasets)
    columns = min(n, 3)
    lines = math.ceil(n / columns)
    bars = len(board.encoders)
    figure = _figure(1.2 + 3.9 * columns, lines * (0.95 + 0.34 * bars) + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax, dataset in zip(axes.flat, board.datasets, strict=False):
        _score_panel(ax, board, dataset, colours)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for line in axes:
        for ax in line[1:]:
            ax.set_yticklabels([])
    seeds = max((cell.seeds for cell in board.cells.values()), default=1)
    whiskers = "95% intervals" + (" of all seeds, bars: their means" if seeds > 1 else "")
    figure.suptitle(
        f"Scores on {board.split}, probes trained on {100 * board.label_fraction:.4g}% of the "
        f"train windows; whiskers: {whiskers}",
        fontsize=11,
    )
    return figure


def _score_panel(ax: Axes, board: Leaderboard, dataset: str, colours: dict[str, str]) -> None:
    top, metric, windows = 0.0, "", 0
    compared = next(iter(board.comparable(dataset)), {})
    for place, encoder in enumerate(board.encoders):
        cell = compared.get(encoder)
        if cell is None:
            there = (dataset, encoder) in board.cells
            text = " scored otherwise" if there else " not scored"
            ax.text(0, place, text, va="center", fontsize=8, color="#888888")
            continue
        metric, windows = cell.metric, cell.n_test
        ax.barh(place, cell.score, height=0.62, color=colours[encoder], alpha=0.85)
        end = cell.score
        if cell.low is not None and cell.high is not None:
            ends = [cell.low, cell.high]
            ax.plot(ends, [place, place], color="#222222", lw=1.2, marker="|", ms=6)
            end = max(end, cell.high)
        top = max(top, end)
        ax.annotate(
            f"{cell.score:.3f}" if _bounded(metric) else f"{cell.score:.4g}",
            (end, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(range(len(board.encoders)), board.encoders, fontsize=8)
    ax.set_ylim(len(board.encoders) - 0.4, -0.6)
    ax.set_xlim(0, 1.16 if _bounded(metric) else (top or 1) * 1.22)
    if _bounded(metric):
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    _plain(ax, f"{dataset} ({windows:,} windows)\n{_METRICS.get(metric, metric)}")


def draw_fractions(rows: Sequence[Row], names: dict[str, str], colours: dict[str, str]) -> Figure:
    """Score against the number of train windows, one line per encoder."""
    figure = _figure(6.4, 4.0)
    ax = figure.subplots()
    lines: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.test_score is not None:
            lines[names[row.key]][row.label_fraction].append(row)
    top = 0.0
    for k, (encoder, points) in enumerate(sorted(lines.items())):
        fractions = sorted(points)
        x = [points[f][0].n_train for f in fractions]
        found = [
            np.array([(r.test_score, r.ci_low, r.ci_high) for r in points[f]], float)
            for f in fractions
        ]  # NaN where there is none
        score = [seeds[:, 0].mean() for seeds in found]
        low, high = [seeds[:, 1].min() for seeds in found], [seeds[:, 2].max() for seeds in found]
        marker = _MARKERS[k % len(_MARKERS)]
        ax.plot(x, score, marker=marker, ms=5, color=colours[encoder], label=encoder)
        ax.fill_between(x, low, high, color=colours[encoder], alpha=0.15, lw=0)
        top = max([top, *filter(math.isfinite, [*score, *high])])
    first = rows[0]
    ax.set_xscale("log")
    counts = sorted({(row.n_train, row.label_fraction) for row in rows})
    texts = [f"{n:,} ({100 * share:.3g}%)" for n, share in counts]
    ax.set_xticks([n for n, _ in counts], texts, fontsize=7, rotation=30, ha="right")
    ax.minorticks_off()
    ax.set_xlabel("labelled train windows", fontsize=9)
    ax.set_ylabel(_METRICS.get(first.metric, first.metric), fontsize=9)
    ax.set_ylim(0, min(1.12 * top or 1, 1.03) if _bounded(first.metric) else 1.12 * top or None)
    seeds = len({row.seed for row in rows})
    band = f"mean of {seeds} seeds, band: all their" if seeds > 1 else "band:"
    intervals = "95% intervals" if seeds > 1 else "95% interval"
    figure.legend(
        frameon=False, fontsize=8, loc="outside lower center", ncols=2 if len(lines) < 5 else 3
    )
    _plain(ax, f"{first.dataset}, {first.n_test:,} {first.split} windows\n{band} {intervals}")
    return figure


def draw_confusion(row: Row, encoder: str) -> Figure:
    """Truth by prediction, as shares of the truth; classes that never occur are left out."""
    counts = np.array(row.confusion, np.int64)
    there = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts = counts[np.ix_(there, there)]
    names = [row.per_class[c].name for c in there]
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    n = len(there)
    side = min(max(3.0, 0.42 * n + 1.6), 9.0)
    figure = _figure(side + 1.1, side + 0.5)
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for edge in np.arange(n - 1) + 0.5 if n <= 40 else ():
        ax.axhline(edge, color="white", lw=0.8)
        ax.axvline(edge, color="white", lw=0.8)
    size = 8 if n <= 20 else max(2.5, 190 / n)
    unit = "px" if row.task == "segmentation" else "windows"
    ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    labels = [f"{name} ({int(t):,} {unit})" for name, t in zip(names, totals[:, 0], strict=True)]
    ax.set_yticks(range(n), labels if n <= 20 else names, fontsize=size)
    if n <= _MAX_CELLS_WITH_NUMBERS:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ax.text(
                int(j), int(i), f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=8,
                color="white" if shares[i, j] > 0.55 else "#1a1a1a",
            )  # fmt: skip
    ax.set_xlabel("predicted", fontsize=9)
    ax.set_ylabel("labelled", fontsize=9)
    metric = _METRICS.get(row.metric, row.metric)
    score = "" if row.test_score is None else f", {metric} {row.test_score:.3f}"
    ax.set_title(
        f"{row.dataset}, {row.n_test:,} {row.split} windows, % of each labelled class\n"
        f"{encoder}{score}",
        fontsize=9,
        loc="left",
    )
    figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03, format="%.1f")
    return figure


def _plain(ax: Axes, title: str) -> None:
    tidy(ax)
    ax.set_title(title, fontsize=9, loc="left")
    ax.grid(axis="x", color=LINE, lw=0.6)


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, which no window and no global state knows of."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    with written_aside(path) as temporary:
        save_png(figure, temporary, bbox_inches="tight", pad_inches=0.12)
    return path
