"""A dataset as a folder to publish: an eval root with this one dataset in it."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from eval_ingest.core.columns import arrow
from eval_ingest.core.entry import UNTOLD, Metadata
from eval_ingest.core.public import public, public_metadata, public_value
from eval_ingest.errors import NotIngestedError, StoreError
from eval_ingest.report.view import open_view
from eval_ingest.report.viewer import write_viewer
from eval_ingest.report.writing import write_report
from eval_ingest.store.atomic import file_crc32c, store_errors
from eval_ingest.store.index_file import read_index, read_splits, write_index, write_splits
from eval_ingest.store.locks import folder_aside
from eval_ingest.store.outcomes import read_outcome, read_published
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import rebuild_registry, require_metadata, write_metadata
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.seal import write_sealed_json
from eval_ingest.store.told_apart import require_told_apart

_ORIGINAL = "model.original.yaml"
"""Nothing reads it of a copy, and it tells where its owner's files are."""
_ALWAYS = ("norm_stats.json", "window_index.parquet", "split_assignment.parquet")


def export_dataset(
    root: EvalRoot,
    name: str,
    to: Path,
    windows: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    licence: str | None = None,
    citation: str = "",
) -> Path:
    """Copy a published dataset with its report to {to}/{name}, and register it there.

    Args:
        root: where it is.
        name: the dataset.
        to: an eval root of its own; made if it isn't there.
        windows: with the rslearn copy; without: the packed samples alone.
        progress: told the files that are copied.
        licence: in the place of the spec's.
        citation: for the card.

    What it came from isn't told: see core/public.py. `{name}/viewer/` shows its samples to
    `datasets.load_dataset`.

    Raises:
        UnknownDatasetError: there is no such dataset.
        NotIngestedError: it is being ingested, so that files of two versions would be copied.
        StoreError: `to` can't be written, or holds that dataset already.
    """
    target = EvalRoot(to.absolute())
    final = target.dataset(name).layout
    metadata = require_metadata(root, name)
    if metadata.spec.copy_mode == "index":
        raise StoreError(
            f"{name} was ingested with copy: index, so there are no samples to export: they are "
            f"read from {metadata.source}; ingest it with --copy stream first"
        )
    if final.path.exists():
        raise StoreError(f"{final.path} is there already; remove it or choose another --to")
    fresh = not target.path.exists()
    windows = windows and metadata.spec.copy_mode == "windows"
    with (
        folder_aside(target.path, ".*.export", f"{name} is being exported") as folder,
        store_errors("exporting to", final.path),
    ):
        aside = EvalRoot(folder).dataset(name)
        _require_published(root, metadata, windows)
        files = list(_files(root.dataset(name), metadata, windows))
        require_told_apart(folder, files)
        for inside in {(aside.layout.path / path).parent for path in files}:
            inside.mkdir(parents=True, exist_ok=True)
        copies = root.dataset(name).copy_out(files, aside.layout.path)
        for done, _ in enumerate(copies, start=1):
            progress("files copied", done, len(files))
        _require_published(root, metadata, windows)
        _make_public(aside.layout)
        exported = _with_checksums(_exported(metadata, windows, licence), aside.layout)
        _say_what_is_left(aside)
        write_metadata(aside, exported)
        write_viewer(open_view(aside.root, name), aside.layout.path, progress)
        write_report(aside.root, name, citation=citation)
        os.rename(aside.layout.path, final.path)
    rebuild_registry(target)
    if fresh:  # then nobody else can hold it, and it isn't for publishing
        target.layout.registry_lock.unlink(missing_ok=True)
    return final.path


def _require_published(root: EvalRoot, metadata: Metadata, windows: bool) -> None:
    """Check, before and after copying, that all there is belongs to one version.

    An ingest removes weka_copy.json before it changes a window, and metadata.json comes last.

    Raises:
        NotIngestedError: it doesn't.
    """
    if require_metadata(root, metadata.name) != metadata:
        raise NotIngestedError(
            f"{metadata.name} was published anew while it was exported; export it again"
        )
    for stage in ("window_index", "split_assignment", "norm_stats", "weka_copy")[: 3 + windows]:
        read_published(root.dataset(metadata.name), metadata, stage)


def _files(store: DatasetStore, metadata: Metadata, windows: bool) -> Iterator[str]:
    """Paths within the dataset's folder of everything that metadata.json stands for.

    Raises:
        NotIngestedError: the copy stage's outcome is gone.
    """
    yield from _ALWAYS
    for found in metadata.splits.values():
        yield found.index
    for shard in metadata.shards:
        yield f"samples/{shard.name}/index.parquet"
        for array in shard.arrays:
            yield f"samples/{shard.name}/{array}.npy"
    if not windows:
        return
    copy, layout = read_outcome(store, "weka_copy"), store.layout
    if copy is None or not copy.files:
        raise NotIngestedError(
            f"{layout.weka_copy} doesn't say what belongs to the copy; "
            f"run eval-ingest ingest {metadata.name} first"
        )
    yield layout.weka_copy.name
    yield layout.copy_manifest.name
    yield from (path for path in copy.files if path != _ORIGINAL)
    yield from (f"windows/{path}" for path in store.windows.paths())


def _say_what_is_left(store: DatasetStore) -> None:
    """Have the outcome of the copy not count on what is left out."""
    copy = read_outcome(store, "weka_copy")
    if copy is not None:
        files = {path: crc for path, crc in copy.files.items() if path != _ORIGINAL}
        left = copy.model_copy(update={"files": files})
        write_sealed_json(store.layout.weka_copy, left.model_dump())


def _make_public(layout: DatasetLayout) -> None:
    """Take out of the index what is nobody's business: paths in what it says of windows."""
    index = read_index(layout.window_index)
    if index is None:
        return
    problems = [
        [{**found, "detail": public(found["detail"])} for found in row]
        for row in index.table["problems"].to_pylist()
    ]
    options = [None if o is None else json.dumps(public_value(json.loads(o)), sort_keys=True)
               for o in index.table["options"].to_pylist()]  # fmt: skip
    table = index.table
    for name, values in (("problems", problems), ("options", options)):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, arrow(values, table.schema.field(at).type))
    extra = public_value(dict(index.extra))
    write_index(layout.window_index, replace(index, table=table, source=UNTOLD, extra=extra))
    splits = read_splits(layout.split_assignment)
    if splits is not None:
        write_splits(layout.split_assignment, replace(splits, report=public_value(splits.report)))


def _with_checksums(metadata: Metadata, layout: DatasetLayout) -> Metadata:
    """With the CRC32C of every packed file, for whoever gets them from somewhere else."""
    shards = []
    for shard in metadata.shards:
        arrays = {
            name: array.model_copy(update={"crc32c": file_crc32c(layout.array(shard.name, name))})
            for name, array in shard.arrays.items()
        }
        shards.append(shard.model_copy(update={"arrays": arrays}))
    return metadata.model_copy(update={"shards": shards})


def _exported(metadata: Metadata, windows: bool, licence: str | None) -> Metadata:
    known = public_metadata(metadata, licence)
    if windows:
        return known
    spec = known.spec.model_copy(update={"copy_mode": "stream"})
    return known.model_copy(update={"spec": spec})
