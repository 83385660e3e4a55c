"""What a person wants to see of a stage's outcome: one line for the log, tables for the page."""

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval_ingest.core.entry import CopyResult, Metadata, NormStats
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.core.validate import PROBLEMS
from eval_ingest.errors import EvalIngestError
from eval_ingest.pipeline import Job, Outcome
from eval_ingest.report.terminal import describe, size
from eval_ingest.store.layout import DatasetLayout, EvalRoot

STAGE_FILES = {
    "window_index": "window_index",
    "split_assignment": "split_assignment",
    "norm_stats": "norm_stats",
    "weka_copy": "weka_copy",
    "registry_entry": "metadata",
}
"""The property of DatasetLayout that is the stage's file."""


def stage_path(layout: DatasetLayout, stage: str) -> str:
    """The file that holds a stage's outcome."""
    return str(getattr(layout, STAGE_FILES[stage]))


def stage_line(outcome: Outcome) -> str:
    """`window_index: 124 windows, 4 invalid (0.4 s)`."""
    return f"{outcome.stage}: {describe(outcome)}"


# ------------------------------------------------------------------------------------- metadata


def stage_metadata(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Metadata of a stage's materialisation."""
    value = outcome.value
    common = {
        "path": dg.MetadataValue.path(stage_path(job.layout, outcome.stage)),
        "fingerprint": outcome.fingerprint,
        "seconds": round(outcome.seconds, 2),
        "was up to date": not outcome.ran,
    }
    match value:
        case WindowIndex():
            return common | _index_metadata(job, value)
        case SplitAssignment():
            return common | _splits_metadata(job, value)
        case NormStats():
            return common | _norm_metadata(value)
        case CopyResult():
            return common | _copy_metadata(value)
        case Metadata():
            return entry_metadata(job.layout, value, pictures=True) | common
        case _:
            return common


def _index_metadata(job: Job, index: WindowIndex) -> dict[str, Any]:
    n_bytes = pc.sum(index.table["n_bytes"]).as_py() or 0
    found: dict[str, Any] = {
        "dagster/row_count": len(index),
        "valid": len(index) - index.summary.n_invalid,
        "invalid": index.summary.n_invalid,
        "source": index.source,
        "source bytes": n_bytes,
        "source size": size(n_bytes),
        "dagster/column_schema": _schema(index.table.schema),
    }
    found |= {key.removeprefix("n_").replace("_", " "): n for key, n in index.extra.items()}
    if index.summary.reasons:
        found["reasons"] = _markdown(
            ("reason", "windows", "meaning", "for example"),
            [
                (code, count, PROBLEMS.get(code, ""), index.summary.examples[code][0])
                for code, count in index.summary.reasons.items()
            ],
        )
    task = job.config.task
    if task.kind.has_classes:
        counts = index.class_counts(task.num_classes)[index.valid].sum(axis=0)
        unit = "pixels" if task.kind.per_pixel else "windows"
        found["classes"] = _markdown(
            ("id", "class", unit, "share"),
            [
                (k, known.name, int(counts[k]), _share(counts[k], counts.sum()))
                for k, known in enumerate(task.classes)
            ],
        )
    else:
        moments = index.label_moments()[index.valid, :, 0]
        if len(moments) and (count := moments[:, 0].sum()):
            mean = moments[:, 1].sum() / count
            found["target"] = {
                "count": int(count),
                "mean": float(mean),
                "std": float(np.sqrt(max(moments[:, 2].sum() / count - mean**2, 0.0))),
                "min": float(moments[:, 3].min()),
                "max": float(moments[:, 4].max()),
            }
    return found


def _splits_metadata(job: Job, splits: SplitAssignment) -> dict[str, Any]:
    counts, report = splits.counts(), splits.report
    missing = report.get("classes_missing", {})
    distance = report.get("distance_from_train", {})
    found: dict[str, Any] = {
        "dagster/row_count": splits.table.num_rows,
        "strategy": report.get("strategy", ""),
        **counts,
        "splits": _markdown(
            ("split", "windows", "share", "distance from train", "classes missing"),
            [
                (
                    split,
                    count,
                    _share(count, sum(counts.values())),
                    distance.get(split, ""),
                    ", ".join(missing.get(split, ())),
                )
                for split, count in counts.items()
            ],
        ),
        "dagster/column_schema": _schema(splits.table.schema),
    }
    if report.get("left_out"):
        found["left out"] = _markdown(("reason", "windows"), list(report["left_out"].items()))
    if "class_counts" in report:
        totals = {split: sum(n) for split, n in report["class_counts"].items()}
        found["classes"] = _markdown(
            ("class", *totals),
            [
                (known.name, *(_share(report["class_counts"][s][k], totals[s]) for s in totals))
                for k, known in enumerate(job.config.task.classes)
            ],
        )
    elif report.get("target"):
        found["target"] = report["target"]
    return found


def _norm_metadata(stats: NormStats) -> dict[str, Any]:
    rows = [
        (modality, band, *(f"{numbers[key]:.6g}" for key in ("mean", "std", "min", "max")))
        for modality, bands in stats.stats.items()
        for band, numbers in bands.items()
    ]
    found: dict[str, Any] = {
        "train windows": stats.n_windows,
        "bands": len(rows),
        "statistics": _markdown(("modality", "band", "mean", "std", "min", "max"), rows),
    }
    if stats.warnings:
        found["warnings"] = _list(stats.warnings)
    return found


def _copy_metadata(copy: CopyResult) -> dict[str, Any]:
    return {
        "mode": copy.mode,
        "windows copied": copy.n_copied,
        "copied bytes": copy.n_bytes,
        "packed bytes": copy.packed_bytes,
        "size": size(copy.n_bytes + copy.packed_bytes),
        "shards": len(copy.shards),
        "splits": _markdown(
            ("split", "windows", "index"),
            [(split, found.count, found.index) for split, found in copy.splits.items()],
        ),
    }


def entry_metadata(layout: DatasetLayout, entry: Metadata, *, pictures: bool) -> dict[str, Any]:
    """Metadata of a registered dataset; pictures take a second or two."""
    config, task = entry.config, entry.config.task
    found: dict[str, Any] = {
        "path": dg.MetadataValue.path(str(layout.path)),
        **{split: split_file.count for split, split_file in entry.splits.items()},
        "task": str(task.kind),
        "modalities": ", ".join(modality.name for modality in config.modalities),
        "window size": entry.window_size,
        "timesteps": entry.num_timesteps,
        "size": size(entry.n_bytes),
        "published at": entry.published_at,
        "source": entry.source,
        "load it": dg.MetadataValue.md(
            f"```python\nfrom eval_ingest import EvalDataset\n\n"
            f'EvalDataset("{entry.name}", split="val")\n```'
        ),
    }
    if task.kind.has_classes:
        found["classes"] = _list([known.name for known in task.classes])
    if entry.warnings:
        found["warnings"] = _list(entry.warnings)
    if entry.quality:
        found["verdict"] = entry.quality["verdict"]
        if entry.quality["reasons"]:
            found["why"] = _list(entry.quality["reasons"])
    return found | _pictures(layout, entry.fingerprint) if pictures else found


@lru_cache(maxsize=2)
def _pictures(layout: DatasetLayout, fingerprint: str) -> dict[str, Any]:
    """Samples, map and class histogram of a published dataset's version, as pictures.

    Drawn once, though registry_entry and the front door both show them.
    """
    # matplotlib is slow to import, and only needed where a dataset was published.
    from eval_ingest.report.pictures import partition_pictures

    try:
        pictures = partition_pictures(EvalRoot(layout.path.parent), layout.name)
    except EvalIngestError:  # a preview must not fail a dataset that is published
        return {}
    return {
        title: dg.MetadataValue.md(
            f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
        )
        for title, png in pictures.items()
    }


def _schema(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[dg.TableColumn(column.name, str(column.type)) for column in schema]
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A table; cells that hold `|` or line breaks can't break it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return dg.MetadataValue.md(
        "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _list(texts: Sequence[str]) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md("\n".join(f"- {text}" for text in texts))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
