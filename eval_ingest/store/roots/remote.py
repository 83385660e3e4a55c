"""An eval root behind a URL: s3://, gs://, weka:// without a mount, and whatever fsspec knows.

Its objects lie as the files of a local root do (see layout.py). On this machine a folder of the
cache mirrors it, so that everything works on local paths, and this module carries what is small
there and back: stage outcomes are fetched when a dataset's lease is taken and sent after each
stage; shards of packed samples are sent when they are whole, and fetched through a cache with a
limit; windows go straight to the store (remote_windows.py).

| local root | remote root |
|---|---|
| a lock file | a lease (lease.py), beside the lock file of the local folder |
| the registry written under a lock | a conditional write, and once more if it is refused |
| metadata.json renamed into its place | put when all else is there, if nobody else has put one |
"""

import base64
import contextlib
import hashlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval_ingest.core.entry import ShardArray
from eval_ingest.core.spec import NAME_PATTERN, SPLITS
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.retry import FIRST_LOOK
from eval_ingest.objects.writing import Entry, WritableObjects, together
from eval_ingest.redaction import redacted
from eval_ingest.store.roots.cache import PackCache, note_pack
from eval_ingest.store.roots.lease import Lease, leased
from eval_ingest.store.roots.mirror import Mirror, is_note, noted
from eval_ingest.store.seal import (
    again,
    read_sealed_json,
    unless_damaged,
    write_sealed_json,
)

SHARD_BYTES = 1 << 30
"""Shards of a remote root are smaller than a local one's: they are fetched whole."""

_ELSEWHERE = {"windows", "samples", ".staging", ".archive", ".window_index", ".copying"}
"""Folders of a dataset that aren't mirrored file by file."""


@dataclass
class _State:
    """What this process knows at the moment."""

    leases: dict[str, Lease] = field(default_factory=dict)
    listed: dict[str, dict[str, Entry]] = field(default_factory=dict)
    """The objects of datasets whose lease is held, by name, without their windows."""
    reached: bool = False


@dataclass(frozen=True)
class RemoteRoot:
    """A remote eval root, and the folder that mirrors it."""

    url: str
    folder: Path
    cache: PackCache
    endpoint: str | None = None
    """Of Weka's S3."""

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens its own connections, and none inherits a lease.
        return {name: self.__dict__[name] for name in ("url", "folder", "cache", "endpoint")}

    @cached_property
    def objects(self) -> WritableObjects:
        """The root's objects."""
        return WritableObjects(self.url, endpoint=self.endpoint)

    @cached_property
    def mirror(self) -> Mirror:
        """The folder's small files."""
        return Mirror(self.folder, self.objects)

    @cached_property
    def _state(self) -> _State:
        return _State()

    def shown(self, path: Path) -> str:
        """What a local path stands for, for people."""
        inside = path.relative_to(self.folder).as_posix()
        return redacted(self.url if inside == "." else f"{self.url}/{inside}")

    def registered_path(self, name: str) -> str:
        """A dataset's `weka_path`: of Weka, what machines see that mount it."""
        scheme, _, rest = self.url.partition("://")
        return f"/weka/{rest}/{name}" if scheme == "weka" else redacted(f"{self.url}/{name}")

    def reach(self) -> None:
        """Look at the root once, quickly, so that one that is out of reach is told soon.

        Raises:
            StoreError: it can't be reached.
        """
        if not self._state.reached:
            first = WritableObjects(self.url, FIRST_LOOK, self.endpoint)
            first.greet()
            first.run(first.stat("registry.json"))
            self._state.reached = True

    # -------------------------------------------------------------------------------- datasets

    def dataset_names(self) -> list[str]:
        """Datasets with a metadata.json, sorted."""
        return sorted(self._published())

    def pull_metadata(self) -> list[str]:
        """Fetch every dataset's metadata.json, and return the datasets' names."""
        found = self._published()
        listed = {entry.name: entry for entry in found.values()}
        self.mirror.pull([self.folder / name for name in listed], listed)
        return sorted(found)

    def _published(self) -> dict[str, Entry]:
        """metadata.json of every dataset that has one."""
        folders = [e.name for e in self.objects.run(self.objects.list_folder("")) if e.folder]
        names = [name for name in folders if NAME_PATTERN.fullmatch(name)]
        stats = [self.objects.stat(f"{name}/metadata.json") for name in names]
        found = self.objects.run(together(stats))
        return {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}

    def remaining(self, name: str) -> bool:
        """True if there are objects of a dataset, be it published or not."""
        return bool(self.objects.run(self.objects.list_folder(name)))

    def pull(self, paths: Sequence[Path]) -> None:
        """Fetch files that may have changed; those of a dataset whose lease is held can't have."""
        some = [path for path in paths if self._dataset_of(path) not in self._state.leases]
        if some:
            self.reach()
            self.mirror.pull(some)

    def fetch_again(self, path: Path) -> bool:
        """Fetch a file whose copy on this machine is damaged; False for one that may be unsent.

        Raises:
            StoreError: it can't be read.
        """
        if self._dataset_of(path) in self._state.leases:
            return False
        self.mirror.drop(path)
        self.pull([path])
        return True

    def _dataset_of(self, path: Path) -> str:
        return path.relative_to(self.folder).parts[0]

    # ----------------------------------------------------------------------------- the lease

    @contextlib.contextmanager
    def held(self, name: str, timeout_s: float, waiting_for: str) -> Iterator[None]:
        """Hold a dataset's lease, with its small files fetched.

        Raises:
            LockedError: another process holds it.
            StoreError: the root can't be reached.
        """
        self.reach()
        lease_name = f".{name}.lease"
        with leased(self.objects, lease_name, self.folder, timeout_s, waiting_for) as lease:
            self._state.leases[name] = lease
            try:
                self._state.listed[name] = self._list(name)
                self._pull_dataset(name)
                yield
            finally:
                del self._state.leases[name]
                self._state.listed.pop(name, None)

    def is_held(self, name: str) -> bool:
        """True if this process holds the dataset's lease."""
        return name in self._state.leases

    def _list(self, name: str) -> dict[str, Entry]:
        """Every object of a dataset that isn't a window's."""
        objects = self.objects
        top = objects.run(objects.list_folder(name))
        folders = [e.name for e in top if e.folder and e.name.rpartition("/")[2] != "windows"]
        below = objects.run(together([objects.find(folder) for folder in folders]))
        found = [e for e in top if not e.folder] + [e for entries in below for e in entries]
        return {entry.name: entry for entry in found}

    def _pull_dataset(self, name: str) -> None:
        """Make the local folder what the objects are: small files, and which shards there are."""
        listed, folder = self._state.listed[name], self.folder / name
        wanted, shards = [], set()
        for path in (self.folder / entry for entry in listed):
            inside = path.relative_to(folder).parts
            if inside[0] == "samples":
                shards.add(inside[1])
                if inside[-1] == "index.parquet":
                    wanted.append(path)
            elif len(inside) == 1:
                wanted.append(path)  # what lies deeper is fetched by who needs it
        mirrored = [*self._mirrored(folder)]
        mirrored += [noted(note) for note in folder.glob("samples/*/.*.version")]
        gone = [path for path in mirrored if self.mirror.name(path) not in listed]
        self.mirror.pull([*wanted, *gone], listed)
        shards -= self._remove_unsent(name, shards)
        for shard in shards:  # so that no new one gets its name
            (folder / "samples" / shard).mkdir(parents=True, exist_ok=True)
        for path in folder.glob("samples/[!.]*"):
            if path.name not in shards:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_unsent(self, name: str, shards: Collection[str]) -> set[str]:
        """Delete shards that a stopped run has sent in part: whoever has the lease is alone."""
        folder, listed = self.folder / name, self._state.listed[name]
        try:
            known = read_sealed_json(folder / "retired.json", again(name)) or {}
            published = read_sealed_json(folder / "metadata.json", again(name)) or {}
            named = {shard["name"] for shard in published.get("shards", ())}
        except (StoreError, TypeError, KeyError, AttributeError):
            return set()  # damaged: then it isn't known which of them are read
        unsent = {
            shard
            for shard in shards
            if f"{name}/samples/{shard}/index.parquet" not in listed
            and shard not in named
            and f"samples/{shard}" not in known
        }
        for shard in unsent:
            inside = f"{name}/samples/{shard}/"
            self.remove([self.folder / entry for entry in list(listed) if entry.startswith(inside)])
        return unsent

    # --------------------------------------------------------------------------------- sending

    def push_dataset(self, name: str) -> None:
        """Send every small file of a dataset that has changed; not metadata.json: see `publish`.

        Raises:
            StoreError: the lease is lost, or something can't be written.
        """
        self._state.leases[name].check()
        folder = self.folder / name
        top: list[Path] = []
        deep: list[Path] = []
        for path in self._mirrored(folder):
            (top if path.parent == folder else deep).append(path)
        self.mirror.push(deep, force=True)  # each has a name of its own that says what is in it
        self.mirror.push([path for path in top if path.name != "metadata.json"])

    def _mirrored(self, folder: Path) -> set[Path]:
        """Files that are mirrored one by one, also those that are gone since they were."""
        found = set()
        waiting = [folder] if folder.is_dir() else []
        while waiting:
            for path in waiting.pop().iterdir():
                if path.is_dir():
                    if path.name not in _ELSEWHERE:
                        waiting.append(path)
                elif is_note(path.name):
                    found.add(noted(path))
                elif not path.name.endswith((".tmp", ".lock")):
                    found.add(path)
        return found

    def pull_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """
        self.reach()
        entries = self.objects.run(self.objects.list_folder(self.mirror.name(folder)))
        listed = {entry.name: entry for entry in entries if not entry.folder}
        mirrored = {noted(note) for note in folder.glob(".*.version")}
        self.mirror.pull({*mirrored, *(self.folder / name for name in listed)}, listed)

    def push(self, paths: Sequence[Path]) -> None:
        """Send files, whatever is there."""
        self.mirror.push(paths, force=True)

    def publish(self, path: Path, data: bytes) -> None:
        """Write the commit point, if the lease is held and nobody else has written it.

        Raises:
            StoreError: the lease is lost, or another process has published.
        """
        self._state.leases[self._dataset_of(path)].check()
        self.mirror.publish(path, data)

    def has(self, path: Path) -> bool:
        """True if there is such an object; of a dataset whose lease is held."""
        return self.mirror.name(path) in self._state.listed[self._dataset_of(path)]

    # ---------------------------------------------------------------------------------- shards

    @property
    def shard_bytes(self) -> int:
        """Size that shards stay below: several must fit into the cache."""
        return max(min(SHARD_BYTES, self.cache.limit // 4), 1)

    def send_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        """Send a shard that is about to be renamed to `target`; its index last.

        Its arrays then count as part of the cache.

        Args:
            aside: the folder that the whole shard is in.
            target: the folder that it will be in.
            arrays: what is recorded about them, sizes and checksums included.

        Raises:
            StoreError: the lease is lost, or it can't be written.
        """
        self._state.leases[self._dataset_of(target)].check()
        listed = self._state.listed[self._dataset_of(target)]
        folder = self.mirror.name(target)
        sends = [
            self.objects.upload(f"{folder}/{name}.npy", aside / f"{name}.npy", array.crc32c or "")
            for name, array in arrays.items()
        ]
        for entry in self.objects.run(together(sends)):
            listed[entry.name] = entry
        for name, array in arrays.items():
            note_pack(aside / f"{name}.npy", array.n_bytes, array.crc32c or "")
        index = (aside / "index.parquet").read_bytes()
        entry = self.objects.run(self.objects.put(f"{folder}/index.parquet", index))
        listed[entry.name] = entry
        self.mirror.keep(aside / "index.parquet", entry, index)
        n_bytes = sum(array.n_bytes for array in arrays.values())
        self.cache.make_room(n_bytes, target, written=True)

    def fetch_array(self, path: Path, array: ShardArray) -> Path:
        """An array of packed samples as a local file, from the cache.

        Raises:
            IntegrityError: it isn't what was recorded.
            StoreError: it can't be read, or there is no room.
        """
        name = self.mirror.name(path)

        def fetch(part: Path, n_bytes: int) -> None:
            try:
                with open(part, "r+b") as stream:
                    self.objects.run(self.objects.stream(name, n_bytes, stream.write))
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{self.url}/{name} is missing; it was ingested anew in the meantime, or is "
                    "damaged: open the dataset again, or see eval-ingest verify"
                ) from error

        fetch_all = partial(fetch, n_bytes=array.n_bytes)
        return self.cache.fetched(path, array.n_bytes, array.crc32c, fetch_all)

    def fetch_file(self, path: Path, to: Path) -> None:
        """Write an object's bytes into a new file; not through the cache.

        Raises:
            IntegrityError: there is no such object.
            StoreError: it can't be read.
            OSError: the file can't be written.
        """
        name = self.mirror.name(path)
        entry = self.objects.run(self.objects.stat(name))
        if entry is None:
            raise IntegrityError(f"{self.url}/{name} is missing; see eval-ingest verify")
        with open(to, "wb") as stream:
            self.objects.run(self.objects.stream(name, entry.size, stream.write))

    def check_array(self, path: Path, array: ShardArray) -> str | None:
        """Read an array of packed samples in the store; returns what is wrong with it."""
        import google_crc32c

        name, checksum = self.mirror.name(path), google_crc32c.Checksum()
        entry = self.objects.run(self.objects.stat(name))
        if entry is None:
            return "it is missing"
        if array.n_bytes != entry.size:
            return f"{entry.size} bytes, recorded {array.n_bytes}"
        try:
            self.objects.run(self.objects.stream(name, entry.size, checksum.update))
        except FileNotFoundError:
            return "it has gone while it was being read"
        found = base64.b64encode(checksum.digest()).decode()
        return None if array.crc32c in (None, found) else f"CRC32C {found}, not {array.crc32c}"

    # -------------------------------------------------------------------------------- removing

    def remove(self, paths: Sequence[Path]) -> None:
        """Delete objects, and their local files.

        Raises:
            StoreError: one can't be deleted.
        """
        self.objects.run(self.objects.delete([self.mirror.name(path) for path in paths]))
        for path in paths:
            listed = self._state.listed.get(self._dataset_of(path), {})
            listed.pop(self.mirror.name(path), None)
            path.unlink(missing_ok=True)

    def remove_below(self, folder: Path) -> None:
        """Delete every object below a folder; the local folder is left to its owner."""
        found = self.objects.run(self.objects.find(self.mirror.name(folder)))
        self.objects.run(self.objects.delete([entry.name for entry in found]))

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        """Delete what else is right in a folder of a dataset whose lease is held."""
        listed = self._state.listed[self._dataset_of(folder)]
        here = {self.folder / name for name in listed}
        self.remove([p for p in here if p.parent == folder and p.name not in names])

    def remove_retired(self, name: str, named: Collection[Path], grace_s: float) -> None:
        """Delete shards and split indexes that haven't been named for that long.

        When each was first seen to be unnamed is kept in {dataset}/retired.json, since the time
        at which an object was written says nothing about that.

        Args:
            name: a dataset whose lease is held.
            named: the folders of shards, and the split indexes, that metadata.json names.
            grace_s: seconds.
        """
        folder, listed = self.folder / name, self._state.listed[name]
        objects: dict[Path, list[Path]] = {}
        for path in (self.folder / entry for entry in listed):
            inside = path.relative_to(folder).parts
            if inside[0] == "samples":
                objects.setdefault(folder / "samples" / inside[1], []).append(path)
            elif inside[0] in SPLITS:
                objects.setdefault(path, []).append(path)
        notes, now = folder / "retired.json", time.time()
        since = unless_damaged(lambda: read_sealed_json(notes, again(name))) or {}
        kept = {}
        for place in sorted(objects.keys() - set(named)):
            known = place.relative_to(folder).as_posix()
            begun = min(float(since.get(known, now)), now)  # the clock may have gone back
            if now - begun < grace_s:
                kept[known] = begun
                continue
            self.remove(objects[place])
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
        if kept != since:
            write_sealed_json(notes, kept)
            self.push_dataset(name)


def open_remote_root(
    url: str, cache: Path, limit: int, server: str = "", endpoint: str | None = None
) -> RemoteRoot:
    """The eval root at a URL, mirrored in a folder of the cache.

    Args:
        url: of the root.
        cache: the cache folder.
        limit: bytes that the packed samples of all remote roots may take in it.
        server: an address, where the same URL may mean another server's bucket.
        endpoint: of Weka's S3.
    """
    roots = cache / "roots"
    digest = hashlib.blake2b(f"{server} {url}".encode(), digest_size=8).hexdigest()
    return RemoteRoot(url, roots / digest, PackCache(roots, limit), endpoint)
