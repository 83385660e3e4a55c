"""What a person wants to see of a stage's outcome: one line for the log, tables for the page."""

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval_ingest.core.entry import CopyResult, Metadata, NormStats
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.core.task import Task
from eval_ingest.core.validate import PROBLEMS
from eval_ingest.errors import EvalIngestError
from eval_ingest.job import Job
from eval_ingest.pipeline import Outcome
from eval_ingest.redaction import in_lines, in_markdown
from eval_ingest.report.terminal import band_table, size, usage
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.base import DatasetStore, EvalRoot

UP_TO_DATE = "was up to date"
"""Key of the metadata that says that nothing was to be done."""
PICTURES = "pictures"


def stage_file(layout: DatasetLayout, stage: str) -> Path:
    """The file on this machine that holds a stage's outcome."""
    path: Path = getattr(layout, "metadata" if stage == "registry_entry" else stage)
    return path


def stage_path(store: DatasetStore, stage: str) -> str:
    """Where a stage's outcome is, as people know it."""
    return store.root.shown(stage_file(store.layout, stage))


# ------------------------------------------------------------------------------------- metadata


def stage_metadata(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Metadata of a stage's materialisation."""
    value = outcome.value
    match value:
        case WindowIndex():
            found = _index_metadata(job, value)
        case SplitAssignment():
            found = _splits_metadata(job, value)
        case NormStats():
            found = _norm_metadata(value)
        case CopyResult():
            found = _copy_metadata(value)
        case Metadata():
            found = entry_metadata(job.store, value, draw_pictures(job.store, value.fingerprint))
        case _:
            found = {}
    return found | {
        "path": dg.MetadataValue.path(stage_path(job.store, outcome.stage)),
        "fingerprint": outcome.fingerprint,
        "seconds": round(outcome.seconds, 2),
        UP_TO_DATE: not outcome.ran,
    }


def _index_metadata(job: Job, index: WindowIndex) -> dict[str, Any]:
    n_bytes = pc.sum(index.table["n_bytes"]).as_py() or 0
    found: dict[str, Any] = {
        "dagster/row_count": len(index),
        "valid": len(index) - index.summary.n_invalid,
        "invalid": index.summary.n_invalid,
    }
    if index.summary.reasons:
        found["reasons"] = listed(  # not a table, whose last column would be cut off on the page
            [
                f"{count:,} {code}: {PROBLEMS.get(code, '')}, "
                f"for example {index.summary.examples[code][0]}"
                for code, count in index.summary.reasons.items()
            ]
        )
    task = job.config.task
    if task.kind.has_classes:
        counts = index.class_counts(task.num_classes)[index.valid].sum(axis=0)
        unit = "pixels" if task.kind.per_pixel else "windows"
        found["classes"] = table(
            ("id", "class", unit, "share"),
            [
                (k, known.name, int(counts[k]), _share(counts[k], counts.sum()))
                for k, known in enumerate(task.classes)
            ],
        )
    elif (target := index.label_moments()[index.valid, :, 0]).size and target[:, 0].any():
        count, total, squares = target[:, :3].sum(axis=0)
        found["target"] = _numbers(
            {
                "count": int(count),
                "mean": total / count,
                "std": float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))),
                "min": target[:, 3].min(),
                "max": target[:, 4].max(),
            }
        )
    found |= {key.removeprefix("n_").replace("_", " "): n for key, n in index.extra.items()}
    return found | {
        "source": in_lines(index.source),
        "source size": size(n_bytes),
        "dagster/column_schema": _schema(index.table.schema),
    }


def _splits_metadata(job: Job, splits: SplitAssignment) -> dict[str, Any]:
    report = splits.report
    found: dict[str, Any] = {
        "dagster/row_count": splits.table.num_rows,
        **_split_tables(splits.counts(), report, job.config.task),
        "strategy": report.get("strategy", ""),
        **splits.counts(),
        "dagster/column_schema": _schema(splits.table.schema),
    }
    if report.get("left_out"):
        found["left out"] = table(("reason", "windows"), list(report["left_out"].items()))
    return found


def _split_tables(
    counts: Mapping[str, int], report: Mapping[str, Any], task: Task
) -> dict[str, Any]:
    """The splits with what sets them apart, and the classes or the targets in each."""
    missing = report.get("classes_missing", {})
    distance = report.get("distance_from_train", {})
    columns: dict[str, Mapping[str, Any]] = {
        "windows": counts,
        "share": {split: _share(n, sum(counts.values())) for split, n in counts.items()},
    }
    if distance:
        columns["class distance from train (0 to 1)"] = distance
    if any(missing.values()):
        columns["classes missing"] = {s: ", ".join(names) for s, names in missing.items()}
    rows = [(split, *(known.get(split, "") for known in columns.values())) for split in counts]
    found: dict[str, Any] = {"splits": table(("split", *columns), rows)}
    if "class_counts" in report:
        totals = {split: sum(n) for split, n in report["class_counts"].items()}
        unit = "pixels" if task.kind.per_pixel else "windows"
        found["classes"] = table(
            ("class", *(f"{split}, % of {unit}" for split in totals)),
            [
                (known.name, *(_share(report["class_counts"][s][k], totals[s]) for s in totals))
                for k, known in enumerate(task.classes)
                if k != task.ignored_id
            ],
        )
    elif report.get("target"):
        found["target"] = _numbers(report["target"])
    return found


def _norm_metadata(stats: NormStats) -> dict[str, Any]:
    heads, *rows = band_table(stats.stats)
    found: dict[str, Any] = {
        "train windows": stats.n_windows,
        "bands": len(rows),
        "statistics": table(heads, rows),
    }
    if stats.warnings:
        found["warnings"] = listed(stats.warnings)
    return found


def _copy_metadata(copy: CopyResult) -> dict[str, Any]:
    return {
        "mode": copy.mode,
        "windows copied": copy.n_copied,
        "copied bytes": copy.n_bytes,
        "packed bytes": copy.packed_bytes,
        "size": size(copy.n_bytes + copy.packed_bytes),
        "shards": len(copy.shards),
        "splits": table(
            ("split", "windows", "index"),
            [(split, found.count, found.index) for split, found in copy.splits.items()],
        ),
    }


def entry_metadata(
    store: DatasetStore, entry: Metadata, pictures: Mapping[str, Any]
) -> dict[str, Any]:
    """Metadata of a registered dataset.

    Args:
        store: where it is.
        entry: what is published of it.
        pictures: `draw_pictures` or `shown_pictures`, or {} to do without.
    """
    config, counts = entry.config, {split: found.count for split, found in entry.splits.items()}
    found: dict[str, Any] = {}
    if entry.quality:
        found["verdict"] = entry.quality["verdict"]
        if entry.quality["reasons"]:
            found["why"] = listed(entry.quality["reasons"])
    if entry.warnings:
        found["warnings"] = listed(entry.warnings)
    found |= _split_tables(counts, entry.split_report, config.task)
    return found | {
        **pictures,
        "load it": dg.MetadataValue.md(f"```python\n{usage(entry.name)}```"),
        "task": str(config.task.kind),
        "modalities": ", ".join(modality.name for modality in config.modalities),
        "window size": entry.window_size,
        "timesteps": entry.num_timesteps,
        **counts,
        "size": size(entry.n_bytes),
        "path": dg.MetadataValue.path(in_lines(store.url)),
        "source": in_lines(entry.source),
        "published at": entry.published_at,
    }


def draw_pictures(store: DatasetStore, fingerprint: str) -> dict[str, Any]:
    """Samples, map and class histogram of a published dataset's version; takes a second or two.

    Drawn once, though registry_entry and the front door both show them.
    """
    return _drawn(store.root, store.name, fingerprint)


@lru_cache(maxsize=2)
def _drawn(root: EvalRoot, name: str, fingerprint: str) -> dict[str, Any]:
    # matplotlib is slow to import, and only needed where a dataset was published.
    from eval_ingest.report.pictures import partition_pictures

    try:
        pictures = partition_pictures(root, name)
    except EvalIngestError:  # a preview must not fail a dataset that is published
        return {}
    return {PICTURES: png_metadata(pictures)} if pictures else {}


def shown_pictures(
    last: dg.EventLogRecord | None, store: DatasetStore, entry: Metadata
) -> dict[str, Any]:
    """The pictures that a materialisation of this version shows, or new ones."""
    shown = None if last is None else last.asset_materialization
    if shown is not None and PICTURES in shown.metadata:
        return {PICTURES: shown.metadata[PICTURES]}
    return draw_pictures(store, entry.fingerprint)


def png_metadata(pictures: Mapping[str, bytes]) -> dg.MarkdownMetadataValue:
    """Pictures by title as one value, which the page shows behind "Show Markdown"."""
    return dg.MetadataValue.md(
        "\n\n".join(
            f"**{in_markdown(title)}**\n\n![{in_markdown(title)}](data:image/png;base64,{base64.b64encode(png).decode()})"
            for title, png in pictures.items()
        )
    )


COLUMNS = {
    "group": "Window group: the folder above the window's.",
    "name": "Window name: its folder.",
    "crs": "Coordinate reference system of the window.",
    "x_resolution": "Units of the CRS per pixel.",
    "y_resolution": "Units of the CRS per pixel; mostly negative.",
    "bounds": "x0, y0, x1, y1 in pixels.",
    "height": "Pixels.",
    "width": "Pixels.",
    "time_start": "Of the window's time range.",
    "time_end": "Of the window's time range.",
    "options": "The window's options (its tags), as JSON.",
    "geometry": "Outline in longitude and latitude, as WKB.",
    "layers": "Completed item groups of the layers that are read.",
    "n_files": "Files of those layers, and the window's own.",
    "n_bytes": "Their size.",
    "source_digest": "Changes when any of the files does.",
    "pixel_digest": "Equal where all pixels are equal.",
    "status": "valid or invalid.",
    "problems": "Why it is invalid: code and detail.",
    "judged_by": "Version of what judged it invalid; others judge it again.",
    "timesteps": "Number of timesteps.",
    "timestamps": "Start and end of each timestep.",
    "moments": "Per band count, sum, sum of squares, min and max of the finite pixels.",
    "nodata": "Pixels, over all timesteps, that hold no data in any band.",
    "nodata_values": "Values that its rasters or config.json declare to mean no data.",
    "crc32c": "Of the label as it is packed.",
    "class_counts": "Labelled pixels, or windows, per class.",
    "samples": "Samples of the window that have a label, where each crop is one.",
    "invalid": "Label pixels without a class or value.",
    "split": "train, val, test or none.",
    "reason": "What gave it the split, or kept it out.",
}
"""What is in the columns of the index and of the split assignment; those of a modality or of the
label go by the part after the dot."""


def _numbers(values: Mapping[str, Any]) -> dg.MarkdownMetadataValue:
    """Statistics by name, or by split and name, as a table that a person can read."""
    rows = values if all(isinstance(v, Mapping) for v in values.values()) else {"": values}
    heads = list(dict.fromkeys(key for row in rows.values() for key in row))
    return table(
        ("", *heads),
        [
            (name, *(f"{row[key]:.6g}" if row.get(key) is not None else "" for key in heads))
            for name, row in rows.items()
        ],
    )


def _schema(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                str(column.type),
                description=COLUMNS.get(column.name.rpartition(".")[2]),
            )
            for column in schema
        ]
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A table; cells that hold `|` or line breaks can't break it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return dg.MetadataValue.md(
        "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    )


def _cell(value: Any) -> str:
    text = str(value)
    return text if set(text) == {"-"} else in_markdown(" ".join(text.split()), most=500)


def listed(texts: Sequence[str]) -> dg.MarkdownMetadataValue:
    """A list with bullets."""
    return dg.MetadataValue.md(
        "\n".join(f"- {in_markdown(' '.join(text.split()), most=2_000)}" for text in texts)
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
