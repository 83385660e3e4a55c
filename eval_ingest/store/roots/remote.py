"""An eval root behind a URL: s3://, gs://, weka:// without a mount, and whatever fsspec knows.

Its objects lie as the files of a local root do (store/paths.py). On this machine a folder of the
cache mirrors it, so that everything works on local paths:

| part | |
|---|---|
| remote_folder.py | the bucket's folder and its mirror |
| remote_store.py | a dataset: its small files, sent after each stage; what is cleared away |
| holding.py, lease.py | who may write, and writes that only the holder can make |
| remote_shards.py, cache.py | packed samples: sent when they are whole, fetched through a cache |
| remote_windows.py | the copy's windows, which go straight to the bucket |

| local root | remote root |
|---|---|
| a lock file | a lease, beside the lock file of the local folder |
| the registry written under a lock | a conditional write, and once more if it is refused |
| metadata.json renamed into its place | put when all else is there, if nobody else has put one |
"""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import NAME_PATTERN
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import Conflict, Entry
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.store.paths import RootLayout
from eval_ingest.store.registry_file import CURE, content, copies, keep_copy, look, restored
from eval_ingest.store.roots.base import Value
from eval_ingest.store.roots.cache import PackCache
from eval_ingest.store.roots.remote_folder import RemoteFolder
from eval_ingest.store.roots.remote_store import RemoteStore

ATTEMPTS = 20
"""How often a file that several machines compile is written anew."""


@dataclass(frozen=True)
class RemoteRoot:
    """An eval root behind a URL: see `base.EvalRoot`."""

    folder: RemoteFolder

    @property
    def layout(self) -> RootLayout:
        return RootLayout(self.folder.path)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def url(self) -> str:
        return self.folder.shown(self.folder.path)

    @property
    def address(self) -> str:
        return self.folder.url

    @property
    def cache_bytes(self) -> int:
        return self.folder.cache.limit

    def shown(self, path: Path) -> str:
        return self.folder.shown(path)

    def dataset(self, name: str) -> RemoteStore:
        return RemoteStore(self, self.folder, self.layout.dataset(name))

    def dataset_names(self) -> list[str]:
        return sorted(self._published())

    def fetch_metadata(self) -> list[str]:
        found = self._published()
        listed = {entry.name: entry for entry in found.values()}
        self.folder.mirror.pull([self.path / name for name in listed], listed)
        return sorted(found)

    def _published(self) -> dict[str, Entry]:
        """metadata.json of every dataset that has one."""
        objects = self.folder.objects
        folders = [e.name for e in objects.run(objects.list_folder("")) if e.folder]
        names = [name for name in folders if NAME_PATTERN.fullmatch(name)]
        found = objects.run(
            gather_or_cancel([objects.stat(f"{name}/metadata.json") for name in names])
        )
        return {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        self.folder.pull([path])
        try:
            return read()
        except IntegrityError:
            self.folder.pull_again(path)
            return read()

    def fetch_folder(self, folder: Path) -> None:
        self.folder.pull_folder(folder)

    def send(self, *paths: Path) -> None:
        self.folder.mirror.push(paths)

    def unfinished_removals(self) -> list[str]:
        return []  # without metadata.json it is out of the registry; what is left can be removed

    def update_registry(self, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
        path = self.layout.registry
        for attempt in range(ATTEMPTS):
            time.sleep(random.uniform(0, 0.2 * attempt))
            self.folder.pull([path])
            standing = look(path, 0)  # what is in a bucket is whole
            if standing.damage:
                self.folder.pull_again(path)
                standing = look(path, 0)
            wanted = change(restored(path, standing))
            if standing.says(wanted):
                return wanted
            if keep_copy(path, standing):
                self.send(*copies(path))
            try:
                self.folder.mirror.replace(path, content(wanted))
            except Conflict:
                continue
            if self.folder.objects.has_conditions:
                return wanted  # else look again whether another one has written at the same time
        raise StoreError(
            f"{self.shown(self.layout.registry)} was written by others each time; {CURE}"
        )


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
    return RemoteRoot(RemoteFolder(url, roots / digest, PackCache(roots, limit), endpoint))
