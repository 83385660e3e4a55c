"""What is told about a dataset in tables, for the HTML page and for the card."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.columns import numbers
from eval_ingest.core.entry import Metadata, Version, utc
from eval_ingest.core.resolved import ModalityInput, size_text
from eval_ingest.core.signal import Signal
from eval_ingest.core.spec import SPLITS
from eval_ingest.report.terminal import Rows, counted, size, task_text
from eval_ingest.report.view import View


@dataclass(frozen=True)
class Board:
    """Scores of a dataset."""

    title: str
    rows: Rows


def history_table(metadata: Metadata) -> Rows:
    """The versions that were published, the newest first."""
    rows = [["version", "published", *SPLITS, "invalid", "verdict"]]
    for found in (Version.of(metadata), *reversed(metadata.history)):
        counts = [f"{found.counts.get(split, 0):,}" for split in SPLITS]
        date = found.published_at.partition("T")[0]
        rows.append([found.fingerprint[:8], date, *counts, f"{found.invalid:,}", found.verdict])
    return rows


def facts(view: View) -> Rows:
    """What the dataset is, name and value; without heads."""
    metadata, config = view.metadata, view.metadata.config
    counts = ", ".join(f"{split} {metadata.splits[split].count:,}" for split in SPLITS)
    published = utc(metadata.published_at)
    rows = [
        ["", ""],
        ["task", task_text(config.task)],
        ["windows", f"{sum(metadata.splits[s].count for s in SPLITS):,}: {counts}"],
        *([m.name, _input(view, m)] for m in config.modalities),
        ["window size", f"{_sizes(view)}; crop {size_text(config.crop_size)}"],
        ["time", _time(view)],
        ["split", str(metadata.split_report.get("strategy", ""))],
        ["size", size(metadata.n_bytes)],
        ["source", metadata.source],
        ["licence", metadata.spec.licence or "not stated"],
        ["published", f"{published}, version {metadata.fingerprint}"],
    ]
    signal = Signal.of(metadata.signal)
    if signal is not None:
        first, *more = signal.lines()
        rows.append(["signal", "; ".join([first.removeprefix("signal: "), *map(str.strip, more)])])
    if metadata.invalid:
        n_invalid = sum(metadata.invalid.values())
        text = f"{n_invalid:,} of {metadata.n_windows:,}: {counted(metadata.invalid)}"
        rows.insert(3, ["left out as invalid", text])
    return rows


def _input(view: View, modality: ModalityInput) -> str:
    steps = numbers(view.index.table[f"{modality.name}.timesteps"], 0)[view.used]
    text = f"{len(modality.bands)} bands, {_range(steps[steps > 0])} timesteps"
    absent = int((steps == 0).sum())
    if absent:
        text += f"; {absent:,} windows have none"
    if modality.missing_bands:
        text += f"; lacks {', '.join(modality.missing_bands)}"
    return text


def _sizes(view: View) -> str:
    height, width = (numbers(view.index.table[n], 0)[view.used] for n in ("height", "width"))
    if (height == width).all() and np.ptp(height) == 0:
        return f"{height[0]} x {width[0]} pixels"
    return f"{_range(height)} x {_range(width)} pixels"


def _range(values: NDArray[Any]) -> str:
    if not len(values):
        return "no"
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _time(view: View) -> str:
    times = view.index.times[view.used]
    if not len(times) or np.isnan(times).all():
        return "not known"
    first, last = np.nanmin(times), np.nanmax(times)
    days = (np.datetime64(int(t), "us").astype("datetime64[D]") for t in (first, last))
    return " to ".join(map(str, days))


def split_table(view: View, quality: dict[str, Any]) -> Rows:
    """Per split its size, what its scores are worth, and what of it train has shown already."""
    near = f"within {quality['leakage']['distance_m']:g} m"
    distances = view.metadata.split_report.get("distance_from_train", {})
    rows = [["split", "windows", "standard error", "classes from train", "overlap train",
             "at other time", near, "same pixels"]]  # fmt: skip
    has_classes = view.task.kind.has_classes
    for split in SPLITS:
        error = quality["standard_error"][split]
        leaks = quality["leakage"]["splits"].get(split)
        cells = [""] * 4
        if leaks is not None:
            kinds = ("overlapping", "overlapping_other_time", "near", "duplicated")
            cells = [f"{leaks[kind]['count']:,}" for kind in kinds]
        worth = ""
        if error is not None:
            worth = f"{100 * error:.1f} points" if has_classes else f"{141.4 * error:.0f}%"
        distance = f"{distances[split]:.2f}" if split in distances else ""
        count = f"{view.metadata.splits[split].count:,}"
        rows.append([split, count, worth, distance, *cells])
    if not has_classes:
        rows = [row[:3] + row[4:] for row in rows]
    return rows


def split_note(view: View) -> str:
    """What the columns of the split table mean."""
    if view.task.kind.has_classes:
        return (
            "Standard error: how far chance moves an accuracy on so many windows, at most: "
            "sqrt(0.25 / windows). Classes from train: half the sum of the differences between "
            "class shares, 0 equal, 1 disjoint. Then the windows that overlap a train window, that "
            "do so at another time only, that lie near one, and whose pixels another split has too."
        )
    return (
        "Standard error: how far chance moves an RMSE on so many windows, as a share of it: about "
        "1 / sqrt(2 windows). Then the windows that overlap a train window, that do so at another "
        "time only, that lie near one, and whose pixels another split has too."
    )


def class_table(view: View) -> Rows:
    """Pixels or windows per class and split; empty for regressions."""
    if not view.task.kind.has_classes:
        return []
    counts = {s: view.class_counts[view.splits == s].sum(axis=0) for s in SPLITS}
    unit = "pixels" if view.task.kind.per_pixel else "windows"
    rows = [["id", "class", *(f"{split} ({unit})" for split in SPLITS)]]
    for k, known in enumerate(view.task.classes):
        note = " (marks missing labels)" if k == view.task.ignored_id else ""
        rows.append([str(k), known.name + note, *(f"{counts[s][k]:,}" for s in SPLITS)])
    return rows
