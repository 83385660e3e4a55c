"""Samples as rows of Parquet with pictures: what `datasets.load_dataset` and the Hub's viewer show.

They are for looking at; what models get are the packed samples beside them.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eval_ingest.core import images
from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import Task
from eval_ingest.engine import batched
from eval_ingest.errors import IntegrityError
from eval_ingest.report.page import VIEWER
from eval_ingest.report.view import View
from eval_ingest.store.seal import cure_for

_ROWS = 256
"""Rows that are written at a time."""
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_viewer(
    view: View, folder: Path, progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Write {folder}/viewer/{split}.parquet for each split that isn't empty.

    A row a sample: its window, a picture of each modality, its label (a picture, a class or a
    number), longitude, latitude, and the window's times. Features are described as `datasets` does.

    Raises:
        OSError: they can't be written.
    """
    (folder / VIEWER).mkdir(exist_ok=True)
    total = sum(found.count for found in view.metadata.splits.values())
    done = 0
    schema = _schema(view)
    for split in SPLITS:
        if not view.metadata.splits[split].count:
            continue
        with pq.ParquetWriter(
            folder / VIEWER / f"{split}.parquet", schema, compression="zstd"
        ) as file:
            for part in batched(_rows(view, split), _ROWS):
                file.write_table(arrow_rows(part, schema))
                done += len(part)
                progress("samples drawn", done, total)


def _schema(view: View) -> pa.Schema:
    task = view.task
    value = {"float32": pa.float32(), "float64": pa.float64(), "string": pa.string()}
    columns: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
        "window": (value["string"], {"dtype": "string", "_type": "Value"})
    }
    for modality in view.metadata.config.modalities:
        columns[modality.name] = (_PICTURE, {"_type": "Image"})
    if task.kind.per_pixel:
        columns["label"] = (_PICTURE, {"_type": "Image"})
    elif task.kind.has_classes:
        names = [known.name for known in task.classes]
        columns["label"] = (pa.int64(), {"names": names, "_type": "ClassLabel"})
    else:
        columns["label"] = (value["float32"], {"dtype": "float32", "_type": "Value"})
    for name, dtype in (("longitude", "float64"), ("latitude", "float64"),
                        ("first_day", "string"), ("last_day", "string")):  # fmt: skip
        columns[name] = (value[dtype], {"dtype": dtype, "_type": "Value"})
    features = {name: feature for name, (_, feature) in columns.items()}
    told = json.dumps({"info": {"features": features}})
    return pa.schema([(name, kind) for name, (kind, _) in columns.items()], {"huggingface": told})


def _rows(view: View, split: str) -> Iterator[dict[str, Any]]:
    dataset = view.opened(split)
    places = {key: k for k, key in enumerate(view.index.keys)}
    outlines, times = view.index.footprints, view.index.times
    for i in range(len(dataset)):
        sample = dataset[i]
        at = places.get(sample["window"])
        if at is None:
            what = f"window {sample['window']} of {split} is not in the index"
            raise IntegrityError(what, cure_for(view.metadata.name, view.metadata))
        row: dict[str, Any] = {"window": sample["window"]}
        for modality in view.metadata.config.modalities:
            pixels = np.asarray(sample[modality.name])
            if pixels.shape[2]:
                image = images.thinned(images.composite(pixels, modality))
                row[modality.name] = _png(images.stretched({0: image}, modality.decibels)[0])
        row["label"] = _label(np.asarray(sample["target"]), view.task)
        shape = int(outlines.place[at])
        if shape >= 0:
            row["longitude"], row["latitude"] = outlines.centres[shape].tolist()
        for name, time in zip(("first_day", "last_day"), times[at].tolist(), strict=True):
            if np.isfinite(time):
                row[name] = str(np.datetime64(int(time), "us").astype("datetime64[D]"))
        yield row


def _label(target: NDArray[Any], task: Task) -> Any:
    """A class, a number, or a picture: classes in their colours, numbers from dark to light."""
    if not target.ndim:
        return int(target) if task.kind.has_classes else float(target)
    target = images.thinned(target)
    if task.kind.has_classes:
        palette = np.array([*images.class_colors(task), (1.0, 1.0, 1.0)], np.float32)
        valid = (target >= 0) & (target < len(palette) - 1)
        return _png(palette[np.where(valid, target, len(palette) - 1)])
    known = np.isfinite(target)
    low, high = (target[known].min(), target[known].max()) if known.any() else (0.0, 1.0)
    grey = np.where(known, (target - low) / (high - low or 1.0) * 0.9, 1.0)
    return _png(np.repeat(grey[..., None], 3, axis=-1).astype(np.float32))


def _png(image: NDArray[np.float32]) -> dict[str, Any]:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}
