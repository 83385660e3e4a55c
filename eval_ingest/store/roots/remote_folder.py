"""An eval root's folder in a bucket, and the folder of the cache that mirrors it here.

What both the root and its datasets need: connections, names, and files as they are now. Who may
write is in holding.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_ingest.objects.writing import WritableObjects
from eval_ingest.redaction import redacted
from eval_ingest.store.roots.cache import PackCache
from eval_ingest.store.roots.mirror import Mirror, noted


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in a bucket, and the folder that mirrors it."""

    url: str
    path: Path
    """The mirror."""
    cache: PackCache
    """Of packed samples."""
    endpoint: str | None = None
    """Of Weka's S3."""

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens its own connections.
        return {name: self.__dict__[name] for name in ("url", "path", "cache", "endpoint")}

    @cached_property
    def objects(self) -> WritableObjects:
        """The bucket's objects, by names relative to the folder."""
        return WritableObjects(self.url, endpoint=self.endpoint)

    @cached_property
    def mirror(self) -> Mirror:
        """The small files here."""
        return Mirror(self.path, self.objects)

    def name(self, path: Path) -> str:
        """The object of a local path."""
        return path.relative_to(self.path).as_posix()

    def shown(self, path: Path) -> str:
        """What a local path stands for, for people."""
        inside = self.name(path)
        return redacted(self.url if inside == "." else f"{self.url}/{inside}")

    def reach(self) -> None:
        """Look at it once: a server that is out of reach is told soon.

        Raises:
            StoreError: it can't be reached.
        """
        _ = self._reached

    @cached_property
    def _reached(self) -> bool:
        self.objects.greet()
        self.objects.run(self.objects.stat("registry.json"))
        return True

    def pull(self, paths: Sequence[Path]) -> None:
        """Have files as they are now.

        Raises:
            StoreError: they can't be read.
        """
        self.reach()
        self.mirror.pull(paths)

    def pull_again(self, path: Path) -> None:
        """Have a file whose copy here is damaged.

        Raises:
            StoreError: it can't be read.
        """
        self.mirror.drop(path)
        self.pull([path])

    def pull_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """
        self.reach()
        entries = self.objects.run(self.objects.list_folder(self.name(folder)))
        listed = {entry.name: entry for entry in entries if not entry.folder}
        mirrored = {noted(note) for note in folder.glob(".*.version")}
        self.mirror.pull({*mirrored, *(self.path / name for name in listed)}, listed)
