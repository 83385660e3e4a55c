"""Windows that end the process which reads them, and decoders that do."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eval_ingest.indexing import build, work

Reader = Callable[..., Any]


def load_libraries() -> None:
    """Nothing is needed."""


def crash_decoder(*_: object) -> tuple[None, None]:
    """A decoder that ends its process."""
    os.abort()


class Deadly:
    """Reads windows, but ends its own process at some: always, or so many times."""

    def __init__(
        self, folder: Path, read: Reader, names: set[str], times: int | None, by: Sequence[int]
    ) -> None:
        self.folder, self.read, self.names, self.times = folder, read, names, times
        self.by = by

    def __call__(self, reader: Any, files: Any, *rest: Any) -> Any:
        if not self.names or files.name in self.names:
            killed = len(list(self.folder.iterdir()))
            if self.times is None or killed < self.times:
                (self.folder / f"{killed}-{os.getpid()}").touch()
                os.kill(os.getpid(), self.by[killed % len(self.by)])
        return self.read(reader, files, *rest)


class Patched(work.IndexTask):
    """A task whose workers read with what stands in `reads`."""

    reads: Any

    def __call__(self, shard: Any) -> Any:
        work.read_window = self.reads
        return super().__call__(shard)

    def shape_of(self, item: Any) -> Any:
        work.read_window = self.reads
        return super().shape_of(item)


@contextlib.contextmanager
def deadly(
    folder: Path,
    names: set[str],
    times: int | None = None,
    by: Sequence[int] = (signal.SIGKILL, signal.SIGSEGV),
) -> Iterator[None]:
    """Windows by these names end the worker processes that index them.

    Args:
        folder: an empty one, in which each end is noted.
        names: of windows; none: all.
        times: how often; None: always.
        by: signals, which take turns.
    """
    reads = Deadly(folder, work.read_window, names, times, by)

    def task(*args: Any, **options: Any) -> Patched:
        made = Patched(*args, **options)
        object.__setattr__(made, "reads", reads)
        return made

    def replaced(made: Any, **changes: Any) -> Any:
        other = replace(made, **changes)
        object.__setattr__(other, "reads", reads)
        return other

    with patch.multiple(build, IndexTask=task, replace=replaced, SHARD_WINDOWS=3):
        yield
