"""A split's frozen embeddings: made once, kept in the cache, mapped into memory when read.

    {cache}/embeddings/{key}/features.f32      float32 (R, D), one row per patch or per window
                             target.npy        (R, Q): the labels of a row, Q = patch_size^2 or 1
                             places.npy        (N, 4): of a sample its first row, number of rows,
                                               and the rows and columns of its patches
                             windows.npy       (N,): the number of each sample's window
                             embeddings.json   shapes and provenance; written last

The key is a fingerprint of encoder, dataset, split, normalisation, bands and patch size. The
folder may be deleted at any time.
"""

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.loading.on_device import ahead
from eval_ingest.store.atomic import read_json, write_json, written_aside
from eval_ingest.sweep.encoders.base import Embeddings, Encoder

VERSION = 4

_BATCH_BYTES = 48 << 20
"""Batches are made of about this many bytes of pixels."""
MAX_BATCH = 128


@dataclass(frozen=True)
class Embedded:
    """A split as a probe sees it."""

    features: NDArray[np.float32]
    """(R, D)"""
    target: NDArray[Any]
    """(R, Q): int16 with -1 for no label, or float32 with NaN."""
    places: NDArray[np.int64]
    """(N, 4): of a sample its first row, how many rows it has, and the rows and columns of its
    patches (1 and 1 where there is one row a window). Patches lie row by row."""
    seconds: float
    """What making it took."""
    windows: NDArray[np.int64] | None = None
    """(N,) the number of each sample's window; None: each is of its own."""
    pooling: str = "mean"
    """How a window's patches became one vector, where they did; `own`: the encoder's way."""

    def __len__(self) -> int:
        return len(self.places)


def embed_split(
    dataset: EvalDataset,
    encoder: Encoder,
    cache: Path,
    progress: Progress = no_progress,
    pooling: str = "mean",
) -> Embedded:
    """A split's embeddings, from the cache if they are there.

    Args:
        dataset: the split, opened as the encoder wants it.
        encoder: the frozen encoder.
        cache: the cache folder.
        progress: called with (what, windows done, windows).
        pooling: how patches become one vector a window: mean, max or center.

    Raises:
        SweepError: sizes don't fit the patch size, the encoder fails or returns something else
            than it should, or the cache can't be written.
    """
    folder = cache / "embeddings" / embedding_key(dataset, encoder, pooling)
    found = _read(folder)
    if found is None:
        writable(cache, "set EVAL_INGEST_CACHE to a folder of yours")
        _write(folder, dataset, encoder, progress, pooling)
        found = _read(folder)
    if found is None:
        raise SweepError(f"{folder} was written but can't be read; remove it and run again")
    return found


def embedding_key(dataset: EvalDataset, encoder: Encoder, pooling: str = "mean") -> str:
    """The cache key of a split's embeddings."""
    return fingerprint(
        "embeddings",
        VERSION,
        encoder.fingerprint,
        encoder.patch_size,
        dataset.name,
        dataset.metadata.fingerprint,
        dataset.split,
        encoder.normalize,
        encoder.method,
        pooling,
        {name: list(bands) for name, bands in dataset.bands.items()},
    )


def writable(folder: Path, cure: str) -> None:
    """Make a folder, and see that files can be made in it.

    Raises:
        SweepError: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"{folder} can't be made ({error.strerror}); {cure}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SweepError(f"{folder} can't be written; {cure}")


# ---------------------------------------------------------------------------------- reading


def _read(folder: Path) -> Embedded | None:
    facts = read_json(folder / "embeddings.json")
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        return None
    rows, width = facts["rows"], facts["width"]
    features = folder / "features.f32"
    try:
        if features.stat().st_size != rows * width * 4:
            return None
        return Embedded(
            # Copy on write: torch wants memory that it could write to.
            np.memmap(features, np.float32, "c", shape=(rows, width)),
            np.load(folder / "target.npy", allow_pickle=False),
            np.load(folder / "places.npy", allow_pickle=False),
            float(facts["seconds"]),
            np.load(folder / "windows.npy", allow_pickle=False),
            str(facts["pooling"]),
        )
    except (OSError, ValueError):
        return None  # damaged or half deleted: made anew


# ---------------------------------------------------------------------------------- writing


def _write(
    folder: Path, dataset: EvalDataset, encoder: Encoder, progress: Progress, pooling: str
) -> None:
    started = time.monotonic()
    places = np.zeros((len(dataset), 4), np.int64)
    targets: list[NDArray[Any]] = []
    rows, width, pooled = 0, 0, pooling
    with written_aside(folder / "features.f32") as temporary, open(temporary, "wb") as stream:
        for batch in embedded_batches(dataset, encoder, progress, pooling=pooling):
            rows = batch.place(places, rows)
            width, pooled = batch.features.shape[1], batch.pooling
            stream.write(batch.features.data)
            targets.append(batch.labels)
    arrays = {"target": np.concatenate(targets), "places": places}
    for name, array in (*arrays.items(), ("windows", _window_numbers(dataset))):
        with written_aside(folder / f"{name}.npy") as temporary, open(temporary, "wb") as stream:
            np.save(stream, array, allow_pickle=False)
    facts = {
        "version": VERSION, "rows": rows, "width": width, "encoder": encoder.name,
        "weights": encoder.weights, "dataset": dataset.name, "split": dataset.split,
        "pooling": pooled,
        "dataset_version": dataset.metadata.fingerprint,
        "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip
    write_json(folder / "embeddings.json", facts)


# --------------------------------------------------------------------------------- embedding


class EmbeddedBatch(NamedTuple):
    """What an encoder made of some windows."""

    indices: NDArray[np.int64]
    """(B,) the samples' places in the split."""
    features: NDArray[np.float32]
    """(B x rows of a window, D)"""
    labels: NDArray[Any]
    """(B x rows of a window, Q)"""
    grid: tuple[int, int]
    """Rows and columns of a window's patches."""
    pooling: str = "mean"
    """See Embedded."""

    def place(self, places: NDArray[np.int64], first: int) -> int:
        """Note where the windows' rows are if they begin at `first`; returns where they end."""
        size = len(self.features) // len(self.indices)
        places[self.indices, 0] = first + size * np.arange(len(self.indices))
        places[self.indices, 1:] = size, *self.grid
        return first + len(self.features)


def embedded_batches(
    dataset: EvalDataset,
    encoder: Encoder,
    progress: Progress = no_progress,
    batch_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    pooling: str = "mean",
) -> Iterator[EmbeddedBatch]:
    """A split's embeddings batch by batch.

    Args:
        dataset: the split, opened as the encoder wants it.
        encoder: the frozen encoder.
        progress: called with (what, windows done, windows).
        batch_size: default: what makes a batch of some tens of MiB of pixels.
        shard: (k, n): every n-th batch from the k-th on, so that n processes share the work.
        pooling: how patches become one vector a window: mean, max or center.

    Raises:
        SweepError: sizes don't fit the patch size, or the encoder fails or returns something else
            than it should.
    """
    what = f"{encoder.name} on {dataset.name} {dataset.split}"
    place_of = {dataset.key(i): i for i in range(len(dataset))}
    size = batch_size or _batch_size(dataset)
    if hasattr(encoder, "pooling"):
        encoder.pooling = "max" if pooling == "max" else "mean"
    width = done = 0
    device = getattr(encoder, "device", None)
    batches = dataset.batches(size, bucket=True, shard=shard, device=device)
    for batch in batches if device is not None else ahead(batches):
        _check_size(dataset, encoder, batch)
        corners = batch.get("crop") or itertools.repeat(None)
        keys = zip(batch["window"], corners, strict=False)
        indices = np.array([place_of[key] for key in keys])
        found = _embed(dataset, encoder, batch, indices, pooling)
        if width not in (0, found.features.shape[1]):
            raise SweepError(
                f"encoder {encoder.name} on {dataset.name}: embeddings of {width} values, "
                f"then of {found.features.shape[1]}; they must all be as long"
            )
        width = found.features.shape[1]
        yield found
        done += len(indices)
        progress(what, done, len(dataset))


def joined(batches: Iterable[EmbeddedBatch], dataset: EvalDataset, started: float) -> Embedded:
    """All batches of a split in memory; `started` by time.monotonic."""
    places = np.zeros((len(dataset), 4), np.int64)
    found, rows = list(batches), 0
    seconds = time.monotonic() - started
    if not found:  # of a rank that hands its embeddings to another
        return Embedded(np.zeros((0, 0), np.float32), np.zeros((0, 1)), places, seconds)
    for batch in found:
        rows = batch.place(places, rows)
    return Embedded(
        np.concatenate([batch.features for batch in found]),
        np.concatenate([batch.labels for batch in found]),
        places,
        seconds,
        _window_numbers(dataset),
        found[0].pooling,
    )


def _window_numbers(dataset: EvalDataset) -> NDArray[np.int64]:
    """(N,) a number for each sample, the same for all samples of a window."""
    numbers: dict[str, int] = {}
    windows = map(dataset.window, range(len(dataset)))
    return np.array([numbers.setdefault(window, len(numbers)) for window in windows], np.int64)


def _batch_size(dataset: EvalDataset) -> int:
    """How many samples as large as the first one make a batch."""
    sample = dataset[0]
    n_bytes: int = sum(sample[name].numel() * 4 for name in dataset.bands)
    return min(max(_BATCH_BYTES // max(n_bytes, 1), 1), MAX_BATCH)


def _check_size(dataset: EvalDataset, encoder: Encoder, batch: dict[str, Any]) -> None:
    height, width = batch[next(iter(dataset.bands))].shape[1:3]
    p = encoder.patch_size
    if height % p or width % p:
        fitting = [str(n) for n in range(1, 17) if height % n == 0 and width % n == 0]
        raise SweepError(
            f"{dataset.name}: samples of {height} x {width} pixels can't be divided into patches "
            f"of {p} x {p}; say --patch-size {' or '.join(fitting)}"
        )


def _embed(
    dataset: EvalDataset,
    encoder: Encoder,
    batch: dict[str, Any],
    indices: NDArray[np.int64],
    pooling: str,
) -> EmbeddedBatch:
    """What the encoder makes of a batch of these samples."""
    try:
        with torch.no_grad():
            vectors, grid, pooling = _vectors(dataset, encoder, batch, pooling)
    except (SweepError, KeyboardInterrupt):
        raise
    except Exception as error:  # anybody's own code
        raise SweepError(
            f"encoder {encoder.name} failed on {dataset.name} {dataset.split} with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not bool(torch.isfinite(vectors).all()):
        holed = [name for name in dataset.bands if not bool(torch.isfinite(batch[name]).all())]
        cause = (
            f", nor are all pixels of {' and '.join(holed)}: it must replace NaN" if holed else ""
        )
        raise SweepError(
            f"encoder {encoder.name} on {dataset.name} {dataset.split}: embeddings are not finite"
            f"{cause}"
        )
    target = batch["target"]
    if dataset.task.kind.per_pixel:
        # Labels lie as pixels do: (B, h, w) patches of p x p.
        (h, w), p = grid, encoder.patch_size
        labels = target.view(len(target), h, p, w, p).permute(0, 1, 3, 2, 4).reshape(-1, p * p)
    else:
        labels = target[:, None]
    kind = np.int16 if dataset.task.kind.has_classes else np.float32
    labels = labels.cpu().numpy().astype(kind)
    return EmbeddedBatch(indices, vectors.numpy(), labels, grid, pooling)


def _vectors(
    dataset: EvalDataset, encoder: Encoder, batch: dict[str, Any], pooling: str
) -> tuple[torch.Tensor, tuple[int, int], str]:
    """What an encoder makes of a batch, (R, D) on the CPU, if it is as it must be."""
    found = encoder.embed(batch, dataset)
    if not (
        isinstance(found, tuple | list)
        and len(found) in (1, 2)
        and all(part is None or isinstance(part, torch.Tensor) for part in found)
    ):
        raise SweepError(
            f"encoder {encoder.name} returned a {type(found).__name__}; it must return "
            "Embeddings(patches, pooled), of tensors: see eval_ingest.sweep.encoders.base"
        )
    embeddings, p = Embeddings(*found), encoder.patch_size
    batch_size, height, width = batch[next(iter(dataset.bands))].shape[:3]
    shape: tuple[int, ...]
    if dataset.task.kind.per_pixel:
        grid = height // p, width // p
        what, values, shape = "patches", embeddings.patches, (batch_size, *grid)
    else:
        values, pooling = _pooled(embeddings, pooling, hasattr(encoder, "pooling"))
        what, grid, shape = "pooled", (1, 1), (batch_size,)
    if values is None or values.shape[:-1] != shape or not values.shape[-1] or values.is_complex():
        given: Any = None if values is None else tuple(values.shape)
        given = values.dtype if values is not None and values.is_complex() else given
        raise SweepError(
            f"encoder {encoder.name} on {dataset.name} ({dataset.task.kind}): {what} must have the "
            f"shape ({', '.join(map(str, shape))}, D), not {given}; "
            + _patch_size_of(given, (batch_size, height, width))
        )
    return values.reshape(-1, values.shape[-1]).float().cpu().contiguous(), grid, pooling


def _patch_size_of(given: Any, size: tuple[int, int, int]) -> str:
    """What to say if `given` is the shape of patches of another size, else where to read on."""
    if isinstance(given, tuple) and len(given) == 4 and given[0] == size[0] and 0 not in given:
        [side, *others] = {whole / n for whole, n in zip(size[1:], given[1:3], strict=True)}
        if not others and side % 1 == 0:
            return f"those are {side:g} x {side:g} pixels each: say patch_size={side:g}"
    return "see eval_ingest.sweep.encoders.base.Encoder"


def _pooled(found: Embeddings, pooling: str, by_token: bool) -> tuple[torch.Tensor | None, str]:
    """One vector (B, D) a window, and how it came to be; `by_token`: the encoder's is so pooled.

    The middle is where the existing OlmoEarth eval code has it: row h // 2, column w // 2.
    """
    patches, own = found
    if own is not None and (pooling == "mean" or (by_token and pooling == "max")):
        return own, pooling
    if patches is None or patches.ndim != 4:
        return own if patches is None else patches.flatten(1, -2).mean(1), "own"
    if pooling == "center":
        return patches[:, patches.shape[1] // 2, patches.shape[2] // 2], pooling
    flat = patches.flatten(1, 2)
    return flat.amax(1) if pooling == "max" else flat.mean(1), pooling
