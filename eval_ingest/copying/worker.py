"""What a worker does with some windows: read once, packed, copied."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from eval_ingest.copying.places import Place
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.task import Task
from eval_ingest.decoding.judge import JUDGED_BYTES, read_window, sample_arrays
from eval_ingest.decoding.limits import parse_json
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.errors import SourceError
from eval_ingest.sources.base import Ours, Source, SourceFile, WindowFiles, WindowReader, crc_of
from eval_ingest.store.ahead import WindowsAhead
from eval_ingest.store.manifest import CopiedWindow
from eval_ingest.store.shards import ShardWriter
from eval_ingest.store.window_files import FILES_OF_METADATA, METADATA, Content, Windows
from eval_ingest.waiting import BYTES_BEHIND, COPIES, WINDOWS_BEHIND, Room

ToPlace = tuple[Place, int | None, bool]
"""A window, its row in the shard if it is to be packed, and whether to copy it."""

Ready = tuple[Place, CopiedWindow]
"""A window, and what was copied ahead of it."""


@dataclass(frozen=True)
class CopyingAhead:
    """Copies windows while they are indexed; pickled for worker processes."""

    config: ResolvedConfig
    ahead: WindowsAhead

    @cached_property
    def _mapping(self) -> str:
        return mapping_of(self.config)

    def __call__(self, files: WindowFiles, reader: WindowReader) -> CopiedWindow:
        """Write a window aside."""
        group, name, digest = files.listed
        digest += self._mapping
        with COPIES.watched(lambda: len(files.files)):
            contents = [_content(reader, (group, name), f, None, self.config) for f in files.files]
            return self.ahead.write(group, name, digest, contents)


@dataclass(frozen=True)
class MoveTask:
    """Moves windows that were copied ahead into their places; pickled for worker processes."""

    ahead: WindowsAhead
    windows: Windows

    def __call__(self, batch: list[Ready]) -> list[CopiedWindow | None]:
        """Those that are in their places now; None for each that isn't there any more."""

        def move(ready: Ready) -> CopiedWindow | None:
            place, copied = ready
            return self.ahead.move(copied, place.split, self.windows)

        return list(COPIES.each(move, batch, WINDOWS_BEHIND, files=FILES_OF_METADATA))


@dataclass(frozen=True)
class TransferTask:
    """What a worker does with some windows; pickled for worker processes."""

    source: Source
    config: ResolvedConfig
    windows: Windows
    writer: ShardWriter | None

    @cached_property
    def _mapping(self) -> str:
        return mapping_of(self.config)

    def __call__(self, batch: list[ToPlace]) -> list[CopiedWindow | None]:
        """Pack and copy some windows, several at a time: a root may be a network mount.

        None for those that aren't to be copied.
        """
        layers = self.config.layer_names
        wanted = [partial(self.source.window, place.group, place.name, layers)
                  for place, _, _ in batch]  # fmt: skip
        whole = self.writer is not None or not self.source.moves
        room = Room(BYTES_BEHIND)

        def windows() -> Iterator[tuple[ToPlace, tuple[WindowFiles, WindowReader]]]:
            for window in zip(batch, self.source.readers(wanted, whole), strict=True):
                room.wait(window[1][0].n_bytes)
                yield window

        def place(window: tuple[ToPlace, tuple[WindowFiles, WindowReader]]) -> CopiedWindow | None:
            files = window[1][0]
            try:
                with COPIES.watched(lambda: len(files.files)):
                    return self._place(*window[0], *window[1])
            finally:
                room.give_back(files.n_bytes)

        return list(COPIES.each(place, windows(), WINDOWS_BEHIND))

    def _place(
        self,
        place: Place,
        pack_row: int | None,
        copy: bool,
        files: WindowFiles,
        reader: WindowReader,
    ) -> CopiedWindow | None:
        if files.digest != place.source_digest:
            raise SourceError(
                f"{place.group}/{place.name} has changed since it was indexed; "
                "run the ingest again: only what changed is read anew"
            )
        if pack_row is not None and self.writer is not None:
            self.writer.write(pack_row, read_arrays(reader, files, self.config))
        copied = None
        if copy:
            key, ours = (place.group, place.name), reader.ours()
            contents = [_content(reader, key, file, ours, self.config) for file in files.files]
            digest = files.digest + self._mapping
            copied = self.windows.write(*key, digest, place.split, contents, *ours or ())
        reader.drop()
        return copied


def _content(
    source: WindowReader,
    window: tuple[str, str],
    file: SourceFile,
    ours: Ours | None,
    config: ResolvedConfig,
) -> Content:
    """A file of the copy: as it is, but for labels whose categories the task maps."""
    read = partial(source.read, *window, file)
    if config.task.category_mapping and _is_label(file.path, source.files, config):
        read, ours = partial(_mapped, read, config.task), None
    if ours is not None and file.path != METADATA:
        return Content(file.path, read, (file.size, crc_of(file.version)))
    return Content(file.path, read, None, source.have(*window, file).permissions)


def mapping_of(config: ResolvedConfig) -> str:
    """What follows the digest of a copied window's files: by which categories labels are mapped."""
    task = config.task
    if not task.category_mapping:
        return ""
    return f"-{fingerprint(task.category_mapping, task.property_name, _label_layers(config))}"


def _is_label(path: str, files: WindowFiles, config: ResolvedConfig) -> bool:
    """True for the features of a label's item group that is completed: no other was judged."""
    folder, _, name = path.rpartition("/")
    layer = folder.removeprefix("layers/").partition(".")[0]
    completed = f"{folder}/completed" in files.by_path
    return name == "data.geojson" and completed and layer in _label_layers(config)


def _label_layers(config: ResolvedConfig) -> set[str]:
    return {read.layer for read in config.label.part.reads}


def _mapped(read: Callable[[], bytes], task: Task) -> bytes:
    """A label's GeoJSON with mapped categories, which rslearn's own task can't map.

    As it is, if it is none: an item group that no input reads may hold anything.
    """
    data = read()
    try:
        content = parse_json(data, "", "label_unreadable")
        for feature in content["features"]:
            properties = feature.get("properties") or {}
            value = properties.get(task.property_name)
            if isinstance(value, str):
                properties[task.property_name] = task.category_mapping.get(value, value)
    except (Unreadable, LookupError, TypeError, AttributeError):
        return data
    return json.dumps(content).encode()


def read_arrays(source: WindowReader, files: WindowFiles, config: ResolvedConfig) -> dict[str, Any]:
    """A valid window's arrays as packed.

    Raises:
        SourceError: the window isn't valid any more.
    """
    sample = read_window(source, files, config, window_bytes=JUDGED_BYTES)
    if sample is None or sample.problems:
        detail = sample.problems[0].detail if sample else "it can't be read"
        raise SourceError(f"{files.key} was valid when it was indexed, now: {detail}; run again")
    return sample_arrays(sample, config)
