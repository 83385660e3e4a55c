"""An eval root behind a URL: s3://, gs://, weka:// without a mount, and whatever fsspec knows.

Its objects lie as the files of a local root do (store/paths.py). On this machine a folder of the
cache mirrors it, so that everything works on local paths:

| part | |
|---|---|
| mirror.py | small files here, and the objects that they are copies of |
| remote_store.py | a dataset: its files, sent after each stage; its shards; what is cleared away |
| holding.py, lease.py | who may write, and writes that only the holder can make |
| cache.py | packed samples that were fetched, within a limit |
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
from pathlib import Path

from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import is_name
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import Conflict, Entry
from eval_ingest.store.registry_file import (
    CURE,
    content,
    copies,
    copy_pattern,
    keep_copy,
    look,
    restored,
)
from eval_ingest.store.roots.base import EvalRoot, Value
from eval_ingest.store.roots.cache import PackCache
from eval_ingest.store.roots.mirror import Mirror
from eval_ingest.store.roots.remote_store import RemoteStore

ATTEMPTS = 20
"""How often a file that several machines compile is written anew."""


class RemoteRoot(EvalRoot):
    """An eval root behind a URL: see `base.EvalRoot`."""

    def __init__(self, mirror: Mirror, cache: PackCache) -> None:
        super().__init__(mirror.path)
        self.mirror = mirror
        self.cache = cache
        self.cache_bytes = cache.limit

    @property
    def address(self) -> str:
        return self.mirror.url

    def shown(self, path: Path) -> str:
        return self.mirror.shown(path)

    def dataset(self, name: str) -> RemoteStore:
        layout = self.layout.dataset(name)
        return RemoteStore(self, layout, mirror=self.mirror, cache=self.cache)

    def dataset_names(self) -> list[str]:
        return sorted(self._published())

    def fetch_metadata(self) -> list[str]:
        found = self._published()
        listed = {entry.name: entry for entry in found.values()}
        self.mirror.pull([self.path / name for name in listed], listed)
        return sorted(found)

    def _published(self) -> dict[str, Entry]:
        """metadata.json of every dataset that has one."""
        objects = self.mirror.objects
        names = list(filter(is_name, objects.folders("")))
        found = objects.run_all([objects.stat(f"{name}/metadata.json") for name in names])
        return {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        self.mirror.pull([path])
        try:
            return read()
        except IntegrityError:
            self.mirror.pull_again(path)
            return read()

    def fetch_folder(self, folder: Path) -> None:
        self.mirror.pull_folder(folder)

    def send(self, *paths: Path) -> None:
        self.mirror.push(paths)

    def names(self) -> set[str]:
        return {entry.name for entry in self.mirror.objects.below("")}

    def write(self, path: Path, data: bytes) -> None:
        objects = self.mirror.objects
        self.mirror.keep(path, objects.run(objects.put(self.mirror.name(path), data)), data)

    def _pull_copies(self) -> None:
        """Have the dated copies of registry.json: other machines have kept them as well."""
        listed = {entry.name: entry for entry in self.mirror.objects.below("")}
        kept = filter(copy_pattern(self.layout.registry).fullmatch, listed)
        self.mirror.pull([self.path / name for name in kept], listed)

    def update_registry(self, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
        path = self.layout.registry
        for attempt in range(ATTEMPTS):
            time.sleep(random.uniform(0, 0.2 * attempt))
            self.mirror.pull([path])
            standing = look(path, 0)  # what is in a bucket is whole
            if standing.damage:
                self.mirror.pull_again(path)
                standing = look(path, 0)
            if standing.data is not None and not standing.ours:
                self._pull_copies()
            wanted = change(restored(path, standing))
            if standing.says(wanted):
                return wanted
            if keep_copy(path, standing):
                self.send(*copies(path))
            try:
                self.mirror.replace(path, content(wanted))
            except Conflict:
                continue
            if self.mirror.objects.has_conditions:
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
    return RemoteRoot(Mirror(url, roots / digest, endpoint), PackCache(roots, limit))
