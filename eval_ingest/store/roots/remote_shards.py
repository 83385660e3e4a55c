"""Packed samples of a remote root: sent when a shard is whole, fetched through the cache."""

import base64
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from eval_ingest.core.entry import ShardArray
from eval_ingest.errors import IntegrityError
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.store.roots.cache import note_pack
from eval_ingest.store.roots.holding import Holding
from eval_ingest.store.roots.remote_folder import RemoteFolder

SHARD_BYTES = 1 << 30
"""Shards of a remote root are smaller than a local one's: they are fetched whole."""


def shard_bytes(folder: RemoteFolder) -> int:
    """Size that shards stay below: several must fit into the cache."""
    return max(min(SHARD_BYTES, folder.cache.limit // 4), 1)


def send_shard(
    folder: RemoteFolder,
    holding: Holding,
    aside: Path,
    target: Path,
    arrays: Mapping[str, ShardArray],
) -> None:
    """Send a shard that is about to be renamed to `target`; its index last.

    Its arrays then count as part of the cache.

    Args:
        folder: of the root.
        holding: of the dataset.
        aside: the folder that the whole shard is in.
        target: the folder that it will be in.
        arrays: what is recorded about them, sizes and checksums included.

    Raises:
        StoreError: the lease is lost, or it can't be written.
    """
    objects, base = folder.objects, folder.name(target)
    sends = [
        holding.upload(f"{base}/{name}.npy", aside / f"{name}.npy", array.crc32c or "")
        for name, array in arrays.items()
    ]
    objects.run(gather_or_cancel(sends))
    for name, array in arrays.items():
        note_pack(aside / f"{name}.npy", array.n_bytes, array.crc32c or "")
    index = (aside / "index.parquet").read_bytes()
    entry = objects.run(holding.put(f"{base}/index.parquet", index))
    folder.mirror.keep(aside / "index.parquet", entry, index)
    n_bytes = sum(array.n_bytes for array in arrays.values())
    folder.cache.make_room(n_bytes, target, written=True)


def fetch_array(folder: RemoteFolder, path: Path, array: ShardArray) -> Path:
    """An array of packed samples as a local file, from the cache.

    Raises:
        IntegrityError: it isn't what was recorded.
        StoreError: it can't be read, or there is no room.
    """
    name, objects = folder.name(path), folder.objects

    def fetch(part: Path, n_bytes: int) -> None:
        try:
            with open(part, "r+b") as stream:
                objects.run(objects.stream(name, n_bytes, stream.write))
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{folder.shown(path)} is missing; it was ingested anew in the meantime, or is "
                "damaged: open the dataset again, or see eval-ingest verify"
            ) from error

    fetch_all = partial(fetch, n_bytes=array.n_bytes)
    return folder.cache.fetched(path, array.n_bytes, array.crc32c, fetch_all)


def verify_array(folder: RemoteFolder, path: Path, array: ShardArray) -> None:
    """Read an array of packed samples in the bucket; nothing of it is kept.

    Raises:
        IntegrityError: it is missing or damaged.
        StoreError: it can't be read.
    """
    wrong = _wrong(folder, folder.name(path), array)
    if wrong is not None:
        raise IntegrityError(f"samples/{path.parent.name}/{path.name}: {wrong}")


def _wrong(folder: RemoteFolder, name: str, array: ShardArray) -> str | None:
    import google_crc32c

    objects, checksum = folder.objects, google_crc32c.Checksum()
    entry = objects.run(objects.stat(name))
    if entry is None:
        return "it is missing"
    if array.n_bytes != entry.size:
        return f"{entry.size} bytes, recorded {array.n_bytes}"
    try:
        objects.run(objects.stream(name, entry.size, checksum.update))
    except FileNotFoundError:
        return "it has gone while it was being read"
    found = base64.b64encode(checksum.digest()).decode()
    return None if array.crc32c in (None, found) else f"CRC32C {found}, not {array.crc32c}"
