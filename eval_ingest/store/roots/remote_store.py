"""A dataset of a remote eval root: its small files here and there, and what is cleared away.

Stage outcomes are fetched when the dataset's lease is taken and sent after each stage; what lies
deeper is fetched by who needs it. Windows and packed samples are files of their own.
"""

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from eval_ingest.core.entry import ShardArray
from eval_ingest.errors import IntegrityError
from eval_ingest.redaction import redacted
from eval_ingest.store.atomic import file_crc32c, remove_tree
from eval_ingest.store.locks import locked
from eval_ingest.store.paths import STAGE_FILES, DatasetLayout
from eval_ingest.store.room import require_cache
from eval_ingest.store.roots import remote_shards, remote_versions
from eval_ingest.store.roots.base import EvalRoot, Value, Windows
from eval_ingest.store.roots.holding import Holding, holding
from eval_ingest.store.roots.mirror import is_note, noted
from eval_ingest.store.roots.remote_folder import RemoteFolder
from eval_ingest.store.roots.remote_windows import RemoteWindows
from eval_ingest.store.seal import cure_for

_ELSEWHERE = {"windows", "samples", ".staging", ".archive", ".window_index", ".copying"}
"""Folders of a dataset that aren't mirrored file by file."""

_AT_ONCE = 16
"""Files that are copied out at a time."""


@dataclass
class RemoteStore:
    """A dataset of a remote root: see `base.DatasetStore`."""

    root: EvalRoot
    folder: RemoteFolder
    layout: DatasetLayout
    _holding: Holding | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_holding": None}  # no process inherits a lease

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def url(self) -> str:
        return self.folder.shown(self.layout.path)

    @property
    def registered_path(self) -> str:
        scheme, _, rest = self.folder.url.partition("://")
        if scheme == "weka":  # what machines see that mount it
            return f"/weka/{rest}/{self.name}"
        return redacted(f"{self.folder.url}/{self.name}")

    # --------------------------------------------------------------------------- who may write

    @contextlib.contextmanager
    def hold(self, timeout_s: float, waiting_for: str) -> Iterator[None]:
        folder = self.folder
        with locked(self.layout.lock, timeout_s, waiting_for):
            folder.reach()
            here = folder.objects, self.name, folder.path
            with holding(*here, timeout_s, waiting_for) as self._holding:
                try:
                    self._fetch_small()
                    yield
                finally:
                    self._holding = None

    @property
    def is_held(self) -> bool:
        return self._holding is not None

    @property
    def _held(self) -> Holding:
        assert self._holding is not None, f"{self.name} is not held"
        return self._holding

    def _fetch_small(self) -> None:
        """Make the local folder what the objects are: small files, and which shards there are."""
        listed, base = self._held.listed, self.layout.path
        wanted, shards = [], set()
        for path in (self.folder.path / entry for entry in listed):
            inside = path.relative_to(base).parts
            if inside[0] == "samples":
                shards.add(inside[1])
                if inside[-1] == "index.parquet":
                    wanted.append(path)
            elif len(inside) == 1:
                wanted.append(path)
        mirrored = [*self._mirrored()]
        mirrored += [noted(note) for note in base.glob("samples/*/.*.version")]
        gone = [path for path in mirrored if self.folder.name(path) not in listed]
        self.folder.mirror.pull([*wanted, *gone], listed)
        shards -= remote_versions.remove_unsent(self.folder, self._held, self.layout, shards)
        for shard in shards:  # so that no new one gets its name
            (base / "samples" / shard).mkdir(parents=True, exist_ok=True)
        for path in base.glob("samples/[!.]*"):
            if path.name not in shards:
                shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------------------------ small files

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        if self.is_held:
            return read()  # nobody else can have changed it, and it may have yet to be sent
        self.folder.pull([path])
        return self._intact(path, read)

    def read_fixed(self, path: Path, read: Callable[[], Value]) -> Value:
        if not path.is_file():
            self.folder.pull([path])
        return self._intact(path, read)

    def _intact(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file, which is fetched again if its copy here is damaged."""
        try:
            return read()
        except IntegrityError:
            if self.is_held:
                raise
            self.folder.pull_again(path)
            return read()

    def fetch_folder(self, folder: Path) -> None:
        self.folder.pull_folder(folder)

    def names(self) -> set[str]:
        objects = self.folder.objects
        listed = objects.run(objects.list_folder(self.name))
        return {entry.name.rpartition("/")[2] for entry in listed}

    def discard(self, names: Iterable[str]) -> None:
        for path in (self.layout.path / name for name in names):
            inside = f"{self.folder.name(path)}/"
            below = [n for n in self._held.listed if n.startswith(inside)]
            self._remove([path, *(self.folder.path / name for name in below)])
            remove_tree(path)

    def is_there(self) -> bool:
        objects = self.folder.objects
        found = objects.run(objects.list_folder(self.name))
        return any(entry.name.rpartition("/")[2] in STAGE_FILES for entry in found)

    def send(self) -> None:
        self._held.lease.check()
        top: list[Path] = []
        deep: list[Path] = []
        for path in self._mirrored():
            (top if path.parent == self.layout.path else deep).append(path)
        mirror = self.folder.mirror
        mirror.push(deep, self._held)  # before those that name them
        mirror.push([path for path in top if path != self.layout.metadata], self._held)

    def _mirrored(self) -> set[Path]:
        """Files that are mirrored one by one, also those that are gone since they were."""
        found = set()
        waiting = [self.layout.path] if self.layout.path.is_dir() else []
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

    def publish(self, data: bytes) -> None:
        path, objects = self.layout.metadata, self.folder.objects
        entry = objects.run(self._held.put(self.folder.name(path), data))
        self.folder.mirror.keep(path, entry, data)

    def copy_out(self, paths: Collection[str], target: Path) -> Iterator[str]:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="copy_out") as pool:
            yield from pool.map(partial(self._copy_out, target), paths)

    def _copy_out(self, target: Path, path: str) -> str:
        objects, name = self.folder.objects, f"{self.name}/{path}"
        entry = objects.run(objects.stat(name))
        if entry is None:
            raise IntegrityError(f"{self.url}/{path} is missing; see eval-ingest verify")
        with open(target / path, "wb") as stream:
            objects.run(objects.stream(name, entry.size, stream.write))
        return path

    # --------------------------------------------------------------------------- packed samples

    @property
    def shard_bytes(self) -> int:
        return remote_shards.shard_bytes(self.folder)

    def checksum(self, path: Path) -> str | None:
        return file_crc32c(path)

    def put_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        remote_shards.send_shard(self.folder, self._held, aside, target, arrays)
        aside.rename(target)

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        path = self.layout.array(shard, name)
        return remote_shards.fetch_array(self.folder, path, recorded)

    # ------------------------------------------------------------------------------ is it whole

    def look_at_array(self, path: Path, recorded: ShardArray) -> None:
        if self._holding is None:
            return  # it is looked at when it is fetched
        entry = self._holding.listed.get(self.folder.name(path))
        if entry is None:
            what = f"the packed samples {self.folder.shown(path)} are missing"
            raise IntegrityError(what, cure_for(self.name))
        if entry.size != recorded.n_bytes:
            raise IntegrityError(
                f"the packed samples {self.folder.shown(path)} have {entry.size} bytes, "
                f"recorded are {recorded.n_bytes}",
                cure_for(self.name),
            )

    def look_at_table(self, path: Path) -> None:
        self._look_for(path)

    def look_at_file(self, path: Path, crc32c: str) -> None:
        self._look_for(path)

    def _look_for(self, path: Path) -> None:
        if self.folder.name(path) not in self._held.listed:
            raise IntegrityError(f"{self.folder.shown(path)} is missing", cure_for(self.name))

    def verify_array(self, path: Path, recorded: ShardArray) -> None:
        remote_shards.verify_array(self.folder, path, recorded)

    # ------------------------------------------------------------------------- windows and room

    @property
    def windows(self) -> Windows:
        lease = None if self._holding is None else self._holding.lease.watch()
        return RemoteWindows(self.folder, self.layout.windows, lease)

    def require_room(self, windows: int, samples: int) -> None:
        require_cache(self.layout.path, samples, self.shard_bytes, self.root.url)

    # --------------------------------------------------------------------------------- clearing

    def retire(self, paths: Iterable[Path]) -> None:
        pass  # their grace begins when they are first seen to be unnamed

    def remove_retired(self, named: Collection[Path], grace_s: float) -> None:
        changed = remote_versions.remove_retired(
            self.folder, self._held, self.layout, named, grace_s
        )
        if changed:
            self.send()

    def forget_shards(self, names: Iterable[str]) -> None:
        self._remove([self.layout.samples / name / "index.parquet" for name in names])

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        here = {self.folder.path / name for name in self._held.listed}
        if folder.is_dir():
            here |= {path for path in folder.iterdir() if not is_note(path.name)}
        self._remove([p for p in here if p.parent == folder and p.name not in names])

    def _remove(self, paths: Iterable[Path]) -> None:
        remote_versions.remove(self.folder, self._held, list(paths))

    def withdraw(self) -> None:
        self._remove([self.layout.metadata])  # nothing can be renamed; without it, nobody sees it

    def erase(self) -> None:
        objects, held = self.folder.objects, self._held
        names = [entry.name for entry in objects.run(objects.find(self.name))]
        ours = {f"{self.name}/{name}" for name in STAGE_FILES}
        objects.run(held.delete([name for name in names if name not in ours]))
        # Last: by them a stopped removal is known, and gone on with.
        objects.run(held.delete([name for name in names if name in ours]))
        shutil.rmtree(self.layout.path, ignore_errors=True)
