"""Reading and judging windows, in shards that workers take."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.index import index_schema
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.validate import Problem
from eval_ingest.decoding.judge import WindowSample, read_window, sample_arrays
from eval_ingest.decoding.limits import WINDOW_BYTES, fetchable
from eval_ingest.decoding.machine import judges
from eval_ingest.indexing.filters import WindowFilter, selected
from eval_ingest.indexing.packer import Packer, pack_row
from eval_ingest.indexing.rows import index_row
from eval_ingest.sources.base import Listed, Source, WindowFiles, WindowReader
from eval_ingest.store.manifest import CopiedWindow
from eval_ingest.store.shards import PackRow
from eval_ingest.waiting import BYTES_BEHIND, COPIES, WINDOWS_BEHIND, Room

CopyAhead = Callable[[WindowFiles, WindowReader], CopiedWindow]
"""Writes a valid window into the copy that it will be part of."""


@dataclass(frozen=True)
class IndexTask:
    """How windows become rows, and perhaps samples; pickled for worker processes."""

    source: Source
    config: ResolvedConfig
    window_filter: WindowFilter
    packer: Packer | None = None
    copy_ahead: CopyAhead | None = None
    """Given where every window that is packed will be copied, too."""
    copy_mode: str = "windows"
    """Of the spec: whether the copy stage will want the bytes of valid windows."""
    window_bytes: int = WINDOW_BYTES
    """That a window may have."""

    def __call__(self, shard: Sequence[tuple[int, Listed]]) -> "IndexedShard":
        """Rows of some windows, each with its place among the samples; runs in a worker."""
        result = IndexedShard()
        rows: list[dict[str, Any]] = []
        windows = self.readers([item for _, item in shard])
        room = Room(BYTES_BEHIND)

        def valid() -> Iterator[tuple[WindowFiles, WindowReader, bool]]:
            """Those that a later stage may want, and whether each is packed."""
            for (place, _), (files, reader) in zip(shard, windows, strict=True):
                sample = self.read(reader, files)
                if sample is None:
                    result.filtered_out.append(files.listed)
                    continue
                rows.append(index_row(sample, self.config, self.judged_by))
                if sample.problems:
                    continue
                packed = self._pack(place, sample)
                result.packed += packed
                room.wait(files.n_bytes)
                yield files, reader, bool(packed)

        def copy(window: tuple[WindowFiles, WindowReader, bool]) -> CopiedWindow | None:
            files, reader, packed = window
            try:
                copied = self.copy_ahead(files, reader) if packed and self.copy_ahead else None
                if copied is None and (
                    self.copy_mode == "windows" or (self.copy_mode == "stream" and not packed)
                ):
                    reader.keep()
                return copied
            finally:
                room.give_back(files.n_bytes)

        copies = COPIES.each(copy, valid(), WINDOWS_BEHIND)
        result.copied = [copied for copied in copies if copied is not None]
        result.waited = self.source.waiting.is_long or COPIES.is_long
        result.table = arrow_rows(rows, index_schema(self.config))
        return result

    def _pack(self, place: int, sample: WindowSample) -> list[tuple[int, PackRow]]:
        assert sample.metadata is not None
        if self.packer is None or not selected(self.config, sample.files, sample.metadata):
            return []
        return self.packer.pack(place, sample, sample_arrays(sample, self.config))

    def shape_of(self, item: Listed) -> PackRow | None:
        """The shape of a window's sample; None if it is no sample."""
        [(files, reader)] = self.readers([item])
        sample = self.read(reader, files)
        if sample is not None:
            reader.keep()  # it is read again when its turn comes
        if sample is None or sample.problems:
            return None
        return pack_row(sample, sample_arrays(sample, self.config), self.config)

    @property
    def judged_by(self) -> str:
        """What decides over windows; one found invalid by anything else is judged again."""
        return f"{judges()} window_mib:{self.window_bytes >> 20}"

    def name_of(self, item: tuple[int, Listed]) -> str:
        """What a window is called."""
        return f"{item[1].group}/{item[1].name}"

    def crashed(self, item: tuple[int, Listed], why: str) -> "IndexedShard":
        """The row of a window that ends every process that reads it."""
        listed = item[1]
        files = self.source.window(listed.group, listed.name, self.config.layer_names)
        sample = WindowSample(files, problems=[Problem("window_crashes", why)])
        row = index_row(sample, self.config, self.judged_by)
        return IndexedShard(arrow_rows([row], index_schema(self.config)))

    def read(self, reader: WindowReader, files: WindowFiles) -> WindowSample | None:
        """A window, judged; None if it isn't wanted."""
        problem = None
        if odd := files.odd_name:
            problem = Problem("name_unusable", f"{odd}: rename it, or remove it")
        elif unusable := files.unusable:
            problem = Problem("file_unusable", f"{unusable}; remove it")
        if problem is not None:
            group, name, _ = files.listed.spelled
            return WindowSample(replace(files, group=group, name=name), problems=[problem])
        wants = self.window_filter.wants
        return read_window(reader, files, self.config, wants, self.window_bytes)

    def readers(self, items: Sequence[Listed]) -> Iterator[tuple[WindowFiles, WindowReader]]:
        """The windows' files and readers, in turn."""
        layers = self.config.layer_names
        windows = [partial(self.source.window, item.group, item.name, layers) for item in items]
        fit = partial(fetchable, window_bytes=self.window_bytes)
        return self.source.readers(windows, self.window_filter.takes_all, fit)


@dataclass
class IndexedShard:
    """What became of some windows."""

    table: pa.Table = None
    filtered_out: list[Listed] = field(default_factory=list)
    """Windows that the filter doesn't want."""
    packed: list[tuple[int, PackRow]] = field(default_factory=list)
    copied: list[CopiedWindow] = field(default_factory=list)
    """Windows that were copied ahead."""
    waited: bool = False
    """True if the worker's disks keep it waiting: more windows at a time are better then."""

    @classmethod
    def joined(cls, shards: "Sequence[IndexedShard]") -> "IndexedShard":
        """Several as one."""
        return cls(
            pa.concat_tables([shard.table for shard in shards]),
            [window for shard in shards for window in shard.filtered_out],
            [packed for shard in shards for packed in shard.packed],
            [copied for shard in shards for copied in shard.copied],
        )
