"""An eval root in a folder, on a local disk or a mounted Weka: its files are where they belong."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eval_ingest.core.entry import ShardArray
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import NAME_PATTERN, SPLITS
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import check_file, remove_tree, store_error, write_bytes
from eval_ingest.store.locks import locked
from eval_ingest.store.npy import check_npy
from eval_ingest.store.paths import STAGE_FILES, DatasetLayout, RootLayout
from eval_ingest.store.registry_file import exchange
from eval_ingest.store.room import require_disk
from eval_ingest.store.roots.base import Value, Windows
from eval_ingest.store.seal import cure_for, read_sealed

MAX_SHARD_BYTES = 8 << 30
"""Larger datasets are packed in several shards: a stopped copy loses at most one."""

_REMOVED = ".removed."


@dataclass(frozen=True)
class LocalRoot:
    """An eval root in a folder: see `base.EvalRoot`."""

    path: Path

    cache_bytes = None

    @property
    def layout(self) -> RootLayout:
        return RootLayout(self.path)

    @property
    def url(self) -> str:
        return str(self.path)

    @property
    def address(self) -> str:
        return str(self.path)

    def shown(self, path: Path) -> str:
        return str(path)

    def dataset(self, name: str) -> "LocalStore":
        return LocalStore(self, self.layout.dataset(name))

    def dataset_names(self) -> list[str]:
        if not self.path.is_dir():
            return []
        names = (found.parent.name for found in self.path.glob("*/metadata.json"))
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))

    def fetch_metadata(self) -> list[str]:
        return self.dataset_names()

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        return read()

    def fetch_folder(self, folder: Path) -> None:
        pass

    def send(self, *paths: Path) -> None:
        pass

    def unfinished_removals(self) -> list[str]:
        aside = (path.name.removeprefix(_REMOVED) for path in self.path.glob(f"{_REMOVED}*"))
        names = {name.rpartition(".")[0] for name in aside}
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))

    def update_registry(self, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
        changed = exchange(self.layout.registry, change)
        self.sweep()
        return changed

    def sweep(self) -> None:
        """Remove what was taken out of sight, also by removals that were stopped."""
        for removed in self.path.glob(f"{_REMOVED}*"):
            shutil.rmtree(removed, ignore_errors=True)


@dataclass
class LocalStore:
    """A dataset in a folder: see `base.DatasetStore`."""

    root: LocalRoot
    layout: DatasetLayout
    is_held: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def url(self) -> str:
        return str(self.layout.path)

    @property
    def registered_path(self) -> str:
        return str(self.layout.path)

    @contextlib.contextmanager
    def hold(self, timeout_s: float, waiting_for: str) -> Iterator[None]:
        with locked(self.layout.lock, timeout_s, waiting_for):
            self.is_held = True
            try:
                yield
            finally:
                self.is_held = False

    # ------------------------------------------------------------------------------ small files

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        return read()

    def read_fixed(self, path: Path, read: Callable[[], Value]) -> Value:
        return read()

    def fetch_folder(self, folder: Path) -> None:
        pass

    def names(self) -> set[str]:
        try:
            return {path.name for path in self.layout.path.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise store_error(self.layout.path, "listing", error) from error

    def discard(self, names: Iterable[str]) -> None:
        for path in (self.layout.path / name for name in names):
            remove_tree(path)

    def is_there(self) -> bool:
        here = self.layout.path
        return any((here / name).exists() for name in (*STAGE_FILES, ".window_index"))

    def send(self) -> None:
        pass

    def publish(self, data: bytes) -> None:
        write_bytes(self.layout.metadata, data)

    def copy_out(self, paths: Collection[str], target: Path) -> Iterator[str]:
        for path in paths:
            source = self.layout.path / path
            try:
                shutil.copyfile(source, target / path)
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{source} is missing; it was ingested anew in the meantime, or is damaged: "
                    "export again, or see eval-ingest verify"
                ) from error
            yield path

    # --------------------------------------------------------------------------- packed samples

    @property
    def shard_bytes(self) -> int:
        return MAX_SHARD_BYTES

    def checksum(self, path: Path) -> str | None:
        return None  # it doesn't travel, and `verify` compares every sample with the index

    def put_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        os.rename(aside, target)

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        return self.layout.array(shard, name)

    # ------------------------------------------------------------------------------ is it whole

    def look_at_array(self, path: Path, recorded: ShardArray) -> None:
        check_npy(path, recorded, cure_for(self.name))

    def look_at_table(self, path: Path) -> None:
        if read_sealed(path, cure_for(self.name)) is None:
            raise IntegrityError(f"{path} is missing", cure_for(self.name))

    def look_at_file(self, path: Path, crc32c: str) -> None:
        check_file(path, crc32c, cure_for(self.name))

    def verify_array(self, path: Path, recorded: ShardArray) -> None:
        self.look_at_array(path, recorded)

    # ------------------------------------------------------------------------- windows and room

    @property
    def windows(self) -> Windows:
        from eval_ingest.store.roots.local_windows import LocalWindows  # needs google-crc32c

        return LocalWindows(self.layout.windows)

    def require_room(self, windows: int, samples: int) -> None:
        require_disk(self.layout.path, windows, samples)

    # --------------------------------------------------------------------------------- clearing

    def retire(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                os.utime(path)

    def remove_retired(self, named: Collection[Path], grace_s: float) -> None:
        """See `base.DatasetStore`; ages are by the file system's clock, not by this machine's."""
        layout = self.layout
        with contextlib.suppress(OSError):
            spare = set(self._versions()) - set(named)
            if not spare:
                return
            os.utime(layout.lock)
            now = layout.lock.stat().st_mtime
            for path in spare:
                age = now - path.stat().st_mtime
                if age < 0:
                    os.utime(path)  # the clock has gone back: its grace begins anew
                elif age >= grace_s:
                    remove_tree(path)

    def _versions(self) -> Iterator[Path]:
        """Shards and split indexes, named or not."""
        yield from self.layout.samples.glob("[!.]*")
        for split in SPLITS:
            yield from self.layout.path.glob(f"{split}/index.*.parquet")

    def forget_shards(self, names: Iterable[str]) -> None:
        for name in names:
            index = self.layout.samples / name / "index.parquet"
            index.rename(index.with_suffix(".retired"))

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        try:
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.name not in names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise store_error(folder, "removing files from", error) from error

    def withdraw(self) -> None:
        aside = self.root.path / f"{_REMOVED}{self.name}.{time.time_ns()}"
        try:
            self.layout.path.rename(aside)
        except OSError as error:
            raise store_error(self.layout.path, "removing", error) from error

    def erase(self) -> None:
        self.root.sweep()
