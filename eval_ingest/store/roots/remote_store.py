"""A dataset of a remote eval root: its small files, its shards, and what is cleared away.

Stage outcomes are fetched when the dataset's lease is taken and sent after each stage; what lies
deeper is fetched by who needs it. Packed samples are sent when their shard is whole, and fetched
through the cache. Windows go straight to the bucket: see remote_windows.py.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from eval_ingest.core.entry import Metadata, Retired, ShardArray
from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.redaction import redacted
from eval_ingest.store.atomic import check_file, file_crc32c, remove_path
from eval_ingest.store.locks import locked
from eval_ingest.store.paths import KEPT, STAGE_FILES
from eval_ingest.store.records import read_record
from eval_ingest.store.room import require_cache
from eval_ingest.store.roots.base import DatasetStore, Recorded
from eval_ingest.store.roots.cache import PackCache, note_pack
from eval_ingest.store.roots.holding import Holding
from eval_ingest.store.roots.lease import leased
from eval_ingest.store.roots.mirror import Mirror, is_note, noted
from eval_ingest.store.roots.remote_windows import RemoteWindows
from eval_ingest.store.seal import cure_for

MAX_SHARD_BYTES = 1 << 30
"""Shards of a remote root are smaller than a local one's: they are fetched whole."""

_ELSEWHERE = {"windows", "samples", ".copying", *KEPT}
"""Folders of a dataset that aren't mirrored file by file."""

_AT_ONCE = 16
"""Files that are copied out at a time."""


@dataclass
class RemoteStore(DatasetStore):
    """A dataset of a remote root: see `base.DatasetStore`."""

    mirror: Mirror = field(kw_only=True)
    cache: PackCache = field(kw_only=True)
    _holding: Holding | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_holding": None, "is_held": False}  # no process inherits a lease

    @property
    def registered_path(self) -> str:
        scheme, _, rest = self.mirror.url.partition("://")
        if scheme == "weka":  # what machines see that mount it
            return f"/weka/{rest}/{self.name}"
        return redacted(f"{self.mirror.url}/{self.name}")

    # --------------------------------------------------------------------------- who may write

    @contextlib.contextmanager
    def hold(self, timeout_s: float, waiting_for: str) -> Iterator[None]:
        mirror = self.mirror
        with locked(self.layout.lock, timeout_s, waiting_for):
            mirror.reach()
            asked = mirror.path, timeout_s, waiting_for
            with leased(mirror.objects, f".{self.name}.lease", *asked) as lease:
                try:
                    self._holding = Holding(mirror.objects, lease, self.name)
                    self.is_held = True
                    self._fetch_small()
                    yield
                finally:
                    self._holding, self.is_held = None, False

    @property
    def _held(self) -> Holding:
        assert self._holding is not None, f"{self.name} is not held"
        return self._holding

    def _fetch_small(self) -> None:
        """Make the local folder what the objects are: small files, and which shards there are."""
        listed, base = self._held.listed, self.layout.path
        wanted, shards = [], set()
        for path in (self.mirror.path / entry for entry in listed):
            inside = path.relative_to(base).parts
            if inside[0] == "samples":
                shards.add(inside[1])
                if inside[-1] == "index.parquet":
                    wanted.append(path)
            elif len(inside) == 1:
                wanted.append(path)
        mirrored = [*self._mirrored()]
        mirrored += [noted(note) for note in base.glob("samples/*/.*.version")]
        gone = [path for path in mirrored if self.mirror.name(path) not in listed]
        self.mirror.pull([*wanted, *gone], listed)
        unsent = self._unsent(shards)
        self.remove(self.layout.samples / shard for shard in unsent)
        for shard in shards - unsent:  # so that no new one gets its name
            (base / "samples" / shard).mkdir(parents=True, exist_ok=True)
        for path in base.glob("samples/[!.]*"):
            if path.name not in shards:
                remove_path(path)

    def _unsent(self, shards: Collection[str]) -> set[str]:
        """Shards that a stopped run has sent in part.

        Whoever has the lease is alone, so nobody is sending them.
        """
        try:
            retired = read_record(Retired, self.layout.retired)
            published = read_record(Metadata, self.layout.metadata)
        except StoreError:
            return set()  # damaged: then it isn't known which of them are read
        known = {} if retired is None else retired.root
        named = set() if published is None else {shard.name for shard in published.shards}
        return {
            shard
            for shard in shards
            if f"{self.name}/samples/{shard}/index.parquet" not in self._held.listed
            and shard not in named
            and f"samples/{shard}" not in known
        }

    # ------------------------------------------------------------------------------ small files

    def names(self) -> set[str]:
        return {entry.last for entry in self.mirror.objects.below(self.name)}

    def send(self, *paths: Path) -> None:
        self._held.check()
        wanted = set(paths) or self._mirrored() - {self.layout.metadata}
        deep = {path for path in wanted if path.parent != self.layout.path}
        self.mirror.push(deep, self._held)  # before those that name them
        self.mirror.push(wanted - deep, self._held)

    def _mirrored(self) -> set[Path]:
        """Files that are mirrored one by one, also those that are gone since they were."""
        found = set()
        for folder, folders, names in os.walk(self.layout.path):
            folders[:] = [name for name in folders if name not in _ELSEWHERE]
            for path in (Path(folder, name) for name in names):
                if is_note(path.name):
                    found.add(noted(path))
                elif not path.name.endswith((".tmp", ".lock")):
                    found.add(path)
        return found

    def publish(self, metadata: bytes, opening: bytes) -> None:
        self.remove([self.layout.opening])
        for path, data in ((self.layout.metadata, metadata), (self.layout.opening, opening)):
            entry = self.mirror.objects.run(self._held.put(self.mirror.name(path), data))
            self.mirror.keep(path, entry, data)

    def copy_out(self, paths: Collection[str], target: Path) -> Iterator[str]:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="copy_out") as pool:
            yield from pool.map(partial(self._copy_out, target), paths)

    def _copy_out(self, target: Path, path: str) -> str:
        objects, name = self.mirror.objects, f"{self.name}/{path}"
        entry = objects.run(objects.stat(name))
        if entry is None:
            raise IntegrityError(f"{self.url}/{path} is missing; see eval-ingest verify")
        with open(target / path, "wb") as stream:
            objects.run(objects.stream(name, entry.size, stream.write))
        return path

    # --------------------------------------------------------------------------- packed samples

    @property
    def shard_bytes(self) -> int:
        """Several must fit into the cache."""
        return max(min(MAX_SHARD_BYTES, self.cache.limit // 4), 1)

    def checksum(self, path: Path) -> str | None:
        return file_crc32c(path)

    def put_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        """See `base.DatasetStore`; its index comes last, and its arrays are then in the cache."""
        mirror, base = self.mirror, self.mirror.name(target)
        sends = [
            self._held.put(f"{base}/{name}.npy", aside / f"{name}.npy", array.crc32c or "")
            for name, array in arrays.items()
        ]
        mirror.objects.run_all(sends)
        for name, array in arrays.items():
            note_pack(aside / f"{name}.npy", array.n_bytes, array.crc32c or "")
        index = (aside / "index.parquet").read_bytes()
        entry = mirror.objects.run(self._held.put(f"{base}/index.parquet", index))
        mirror.keep(aside / "index.parquet", entry, index)
        n_bytes = sum(array.n_bytes for array in arrays.values())
        self.cache.make_room(n_bytes, target, written=True)
        aside.rename(target)

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        path, objects = self.layout.array(shard, name), self.mirror.objects

        def fetch(part: Path) -> None:
            try:
                with open(part, "r+b") as stream:
                    asked = self.mirror.name(path), recorded.n_bytes
                    objects.run(objects.stream(*asked, stream.write))
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{self.root.shown(path)} is missing; it was ingested anew in the meantime, or "
                    "is damaged: open the dataset again, or see eval-ingest verify"
                ) from error

        return self.cache.fetched(path, recorded.n_bytes, recorded.crc32c, fetch)

    # ------------------------------------------------------------------------------ is it whole

    def look_at(self, path: Path, recorded: Recorded = None) -> None:
        if self._holding is None:
            return  # it is looked at when it is fetched
        found, cure = self._holding.listed.get(self.mirror.name(path)), cure_for(self.name)
        if found is None:
            raise IntegrityError(f"{self.root.shown(path)} is missing", cure)
        if isinstance(recorded, ShardArray) and found.size != recorded.n_bytes:
            raise IntegrityError(
                f"the packed samples {self.root.shown(path)} have {found.size} bytes, "
                f"recorded are {recorded.n_bytes}",
                cure,
            )
        if isinstance(recorded, str) and path.parent == self.layout.path:  # mirrored: see hold
            check_file(path, recorded, cure)

    def verify(self, path: Path, recorded: Recorded = None) -> None:
        """See `base.DatasetStore`; an array is read in the bucket, and nothing of it is kept."""
        if not isinstance(recorded, ShardArray):
            super().verify(path, recorded)
            return
        objects, name = self.mirror.objects, self.mirror.name(path)
        what = f"samples/{path.parent.name}/{path.name}"
        entry = objects.run(objects.stat(name))
        if entry is None:
            raise IntegrityError(f"{what}: it is missing")
        if entry.size != recorded.n_bytes:
            raise IntegrityError(f"{what}: {entry.size} bytes, recorded {recorded.n_bytes}")
        try:
            found = objects.run(objects.crc32c_of(entry))
        except FileNotFoundError:
            raise IntegrityError(f"{what}: it has gone while it was being read") from None
        if recorded.crc32c not in (None, found):
            raise IntegrityError(f"{what}: CRC32C {found}, not {recorded.crc32c}")

    # ------------------------------------------------------------------------- windows and room

    @property
    def windows(self) -> RemoteWindows:
        lease = None if self._holding is None else self._holding.lease
        return RemoteWindows(self.layout.windows, self.mirror, lease)

    def require_room(self, windows: int, samples: int) -> None:
        require_cache(self.layout.path, samples, self.shard_bytes, self.root.url)

    # --------------------------------------------------------------------------------- clearing

    def versions(self) -> Iterator[Path]:
        found = set()
        for path in (self.mirror.path / name for name in self._held.listed):
            inside = path.relative_to(self.layout.path).parts
            if inside[0] == "samples":
                found.add(self.layout.samples / inside[1])
            elif inside[0] in SPLITS:
                found.add(path)
        yield from found

    def remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            name = self.mirror.name(path)
            gone = [n for n in self._held.listed if n == name or n.startswith(f"{name}/")]
            self.mirror.objects.run(self._held.delete(gone))
            self.mirror.drop(path)

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        here = {self.mirror.path / name for name in self._held.listed}
        if folder.is_dir():
            here |= {*folder.iterdir()}
        found = [path for path in here if path.parent == folder and path.name[0] != "."]
        self.remove(path for path in found if path.name not in names)

    def withdraw(self) -> None:
        # Nothing can be renamed; without these, nobody sees it.
        self.remove([self.layout.opening, self.layout.metadata])

    def erase(self) -> None:
        objects, held = self.mirror.objects, self._held
        self.windows.keep_only(())  # most of it by far, and never listed as a whole
        held.listed = {entry.name: entry for entry in objects.run(objects.find(self.name))}
        # Last: by them a stopped removal is known, and gone on with.
        ours = [f"{self.name}/{name}" for name in STAGE_FILES]
        objects.run(held.delete([name for name in held.listed if name not in ours]))
        objects.run(held.delete(ours))
        with contextlib.suppress(StoreError):  # nobody needs it
            remove_path(self.layout.path)
