"""Shards and split indexes of a remote dataset that nothing names: which go, and when."""

import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import StoreError
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.holding import Holding
from eval_ingest.store.roots.remote_folder import RemoteFolder
from eval_ingest.store.seal import cure_for, read_sealed_json, unless_damaged, write_sealed_json

_NOTES = "retired.json"
"""Since when which of them have been unnamed: the time at which an object was written says nothing
about that."""


def remove(folder: RemoteFolder, holding: Holding, paths: Sequence[Path]) -> None:
    """Delete objects, and their local files.

    Raises:
        StoreError: one can't be deleted.
    """
    folder.objects.run(holding.delete([folder.name(path) for path in paths]))
    for path in paths:
        folder.mirror.drop(path)


def remove_unsent(
    folder: RemoteFolder, holding: Holding, layout: DatasetLayout, shards: Collection[str]
) -> set[str]:
    """Delete shards that a stopped run has sent in part; returns their names.

    Whoever has the lease is alone, so nobody is sending them.
    """
    try:
        known = read_sealed_json(layout.path / _NOTES, cure_for(layout.name)) or {}
        published = read_sealed_json(layout.metadata, cure_for(layout.name)) or {}
        named = {shard["name"] for shard in published.get("shards", ())}
    except (StoreError, TypeError, KeyError, AttributeError):
        return set()  # damaged: then it isn't known which of them are read
    unsent = {
        shard
        for shard in shards
        if f"{layout.name}/samples/{shard}/index.parquet" not in holding.listed
        and shard not in named
        and f"samples/{shard}" not in known
    }
    for shard in unsent:
        inside = f"{layout.name}/samples/{shard}/"
        found = [folder.path / name for name in holding.listed if name.startswith(inside)]
        remove(folder, holding, found)
    return unsent


def remove_retired(
    folder: RemoteFolder,
    holding: Holding,
    layout: DatasetLayout,
    named: Collection[Path],
    grace_s: float,
) -> bool:
    """Delete shards and split indexes that haven't been named for that long.

    Args:
        folder: of the root.
        holding: of the dataset.
        layout: its files here.
        named: the folders of shards, and the split indexes, that metadata.json names.
        grace_s: seconds.

    Returns:
        True if the notes of what is unnamed have changed, and are to be sent.
    """
    versions = _versions(folder, holding, layout)
    notes, now = layout.path / _NOTES, time.time()
    since = unless_damaged(lambda: read_sealed_json(notes, cure_for(layout.name))) or {}
    kept = {}
    for place in sorted(versions.keys() - set(named)):
        known = place.relative_to(layout.path).as_posix()
        begun = min(float(since.get(known, now)), now)  # the clock may have gone back
        if now - begun < grace_s:
            kept[known] = begun
            continue
        remove(folder, holding, versions[place])
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
    if kept == since:
        return False
    write_sealed_json(notes, kept)
    return True


def _versions(
    folder: RemoteFolder, holding: Holding, layout: DatasetLayout
) -> dict[Path, list[Path]]:
    """The folder of each shard, and each split index, with the objects that it consists of."""
    found: dict[Path, list[Path]] = {}
    for path in (folder.path / name for name in holding.listed):
        inside = path.relative_to(layout.path).parts
        if inside[0] == "samples":
            found.setdefault(layout.samples / inside[1], []).append(path)
        elif inside[0] in SPLITS:
            found.setdefault(path, []).append(path)
    return found
