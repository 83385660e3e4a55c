"""The rslearn copy of a dataset's windows in a folder: see `base.Windows`."""

import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eval_ingest.errors import StoreError
from eval_ingest.store.manifest import CopiedWindow
from eval_ingest.store.roots.base import Key
from eval_ingest.store.window_files import (
    Contents,
    Measured,
    change_split,
    copy_window,
    measure_copy,
    remove_strangers,
)


@dataclass(frozen=True)
class LocalWindows:
    """Windows in a folder."""

    folder: Path

    def has(self, group: str, name: str) -> bool:
        return (self.folder / group / name / "metadata.json").is_file()

    def clear(self, keys: Iterable[Key]) -> None:
        pass  # each is exchanged by a rename

    def write(
        self, group: str, name: str, source_digest: str, split: str, files: Contents
    ) -> CopiedWindow:
        return copy_window(self.folder, group, name, source_digest, split, files)

    def change_splits(self, windows: Iterable[tuple[CopiedWindow, str]]) -> list[CopiedWindow]:
        return [change_split(self.folder, copied, split) for copied, split in windows]

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Measured | StoreError]]:
        for group, name in keys:
            try:
                yield (group, name), measure_copy(self.folder / group / name)
            except StoreError as error:
                yield (group, name), error

    def keep_only(self, keys: Container[Key]) -> None:
        remove_strangers(self.folder, keys)

    def paths(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            inside = Path(folder).relative_to(self.folder).as_posix()
            yield from (f"{inside}/{name}" for name in sorted(names))
