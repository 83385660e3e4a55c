"""Indexes of windows that were never there, for the rules of core/."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from eval_ingest.core.index import WindowIndex, index_schema, moments_struct
from eval_ingest.core.quality import quality_report
from eval_ingest.core.resolved import (
    InputPart,
    LabelInput,
    ModalityInput,
    ResolvedConfig,
)
from eval_ingest.core.splits import SCHEMA, SplitAssignment
from eval_ingest.core.task import LabelClass, Task, TaskKind

SIDE_M = 640.0
DEGREE_M = 111_319.5
"""On the equator."""
BANDS = ("B02", "B03", "B04", "B08")
MEANS = (1100.0, 1300.0, 1400.0, 2700.0)

Window = dict[str, Any]


def make_config(**changes: Any) -> ResolvedConfig:
    part = InputPart(key="x", reads=(), stack=True)
    return ResolvedConfig(
        **{
            "task": Task(
                kind=TaskKind.CLASSIFICATION,
                num_classes=2,
                classes=(LabelClass(name="maize"), LabelClass(name="forest")),
            ),
            "label": LabelInput(part=part),
            "modalities": (
                ModalityInput(name="sentinel2_l2a", bands=BANDS, parts=(part,), dtype="uint16"),
            ),
            "layers": (),
            **changes,
        }
    )


def window(name: str, x_m: float = 0.0, y_m: float = 0.0, **facts: Any) -> Window:
    """A window of 640 m near the equator, x_m east and y_m north of (0, 0)."""
    return {"name": name, "x": x_m, "y": y_m, **facts}


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def make_index(windows: list[Window], config: ResolvedConfig | None = None) -> WindowIndex:
    config = config or make_config()
    rows = []
    for k, w in enumerate(windows):
        west, south = w["x"] / DEGREE_M, w["y"] / DEGREE_M
        side = SIDE_M / DEGREE_M
        box = shapely.box(west, south, west + side, south + side)
        counts = [0, 0]
        counts[w.get("class", k % 2)] = 1
        start, end = w.get("time", ("2024-01-01", "2024-12-31"))
        row = {
            "group": "g",
            "name": w["name"],
            "height": 64,
            "width": 64,
            "options": json.dumps(w.get("options", {})),
            "geometry": None if w.get("unplaced") else shapely.to_wkb(box),
            "time_start": start and day(start),
            "time_end": end and day(end),
            "pixel_digest": w.get("digest", w["name"]),
            "status": "valid",
            "label.class_counts": counts,
            "label.invalid": [0],
            "label.samples": [1],
        }
        for modality in config.modalities:
            stamps = w.get("stamps", ("2024-03-01", "2024-06-01"))
            row[f"{modality.name}.timesteps"] = len(stamps)
            row[f"{modality.name}.nodata"] = w.get("nodata", 0)
            row[f"{modality.name}.timestamps"] = [{"start": day(t), "end": day(t)} for t in stamps]
            row[f"{modality.name}.moments"] = moments_struct(
                w.get("moments", moments(len(stamps), means=w.get("means", MEANS)))
            )
        rows.append(row)
    rows.sort(key=lambda row: row["name"])
    return WindowIndex(pa.Table.from_pylist(rows, schema=index_schema(config)), "fp", "key")


def moments(
    timesteps: int = 2,
    means: tuple[float, ...] = MEANS,
    low: float = 100.0,
    std: float = 300.0,
    counted: float = 1.0,
) -> np.ndarray[Any, Any]:
    """Moments (5, C) of a 64 x 64 window with these band means."""
    n = 64 * 64 * timesteps * counted
    mean = np.array(means)
    deviation = np.full(len(means), std)
    return np.stack(
        [
            np.full(len(means), n),
            n * mean,
            n * (mean**2 + deviation**2),
            np.full(len(means), low) if std else mean,
            mean + 3 * deviation,
        ]
    )


def given_splits(index: WindowIndex, windows: list[Window]) -> SplitAssignment:
    chosen = {w["name"]: w["split"] for w in windows}
    table = pa.table(
        {
            "group": index.table["group"],
            "name": index.table["name"],
            "split": [chosen[name] for name in index.names],
            "reason": [""] * len(index),
        },
        schema=SCHEMA,
    )
    return SplitAssignment(table, "fp", {"strategy": "given"})


def clean(count: int = 1200, **facts: Any) -> list[Window]:
    """Windows 5 km apart, a tenth of them val and another tenth test."""
    parts = ["train"] * 8 + ["val", "test"]
    return [
        window(
            f"w{k:05d}",
            (k % 100) * 5000.0,
            (k // 100) * 5000.0,
            split=parts[k % 10],
            **{"class": (k // 10) % 2, **facts},
        )
        for k in range(count)
    ]


def report(windows: list[Window], config: ResolvedConfig | None = None) -> dict[str, Any]:
    config = config or make_config()
    index = make_index(windows, config)
    found = quality_report(index, given_splits(index, windows), config)
    json.dumps(found, allow_nan=False)
    return found


def with_means(factor: float, plus: float = 0.0, low: float = 100.0) -> list[Window]:
    means = tuple(mean * factor + plus for mean in MEANS)
    measured = moments(means=means, low=low * factor + plus, std=300 * factor)
    return clean(200, moments=measured)
