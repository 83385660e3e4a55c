"""Read back what was ingested and compare it with what was recorded."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eval_ingest.copying.rslearn_index import wrong_indexes
from eval_ingest.core.entry import CopyResult, Metadata, Shard, SplitFile
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import file_crc32c
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.npy import check_npy
from eval_ingest.store.outcomes import read_copy
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.open import windows_of
from eval_ingest.store.seal import again, read_sealed
from eval_ingest.store.tables import read_facts
from eval_ingest.store.window_files import Measured

if TYPE_CHECKING:  # a local root doesn't pay for it
    from eval_ingest.store.roots.remote import RemoteRoot


class Verified(NamedTuple):
    """What was found."""

    checked: str
    """What was read."""
    problems: list[str]
    """One text per damaged thing."""


def verify(
    layout: DatasetLayout, metadata: Metadata, progress: Callable[[str, int, int], None]
) -> Verified:
    """Compare sizes and checksums of the copied windows, and the shape of every packed file.

    rslearn's own indexes are compared with the windows' splits: rslearn itself wouldn't notice.

    Of a remote dataset the packed files' checksums too; nothing of it is kept on this machine.

    Raises:
        StoreError: a remote root can't be read.
    """
    problems = []
    layout.root.pull(*_tables(layout, metadata.splits, metadata.shards), layout.copy_manifest)
    copy = None
    with contextlib.suppress(IntegrityError):  # told by whoever looks at the stages' outcomes
        copy = read_copy(layout)
    problems += [error.what for error in _damage(layout, metadata.splits, metadata.shards, copy)]
    if layout.remote is not None:
        problems += _wrong_objects(layout, layout.remote, metadata.shards)
    windows, unsure = _copied(layout, metadata)
    problems += unsure
    for done, (key, now) in enumerate(windows_of(layout).measured(windows), start=1):
        window = windows[key]
        recorded = Measured(window.n_files, window.n_bytes, window.checksum)
        if isinstance(now, StoreError):
            problems.append(str(now))
        elif now != recorded:
            problems.append(
                f"windows/{window.group}/{window.name}: {now.n_files} files, {now.n_bytes} "
                f"bytes, checksum {now.checksum}; recorded {recorded.n_files}, "
                f"{recorded.n_bytes}, {recorded.checksum}"
            )
        progress("windows verified", done, len(windows))
    if layout.remote is None:
        splits = {key: window.split for key, window in windows.items()}
        problems += wrong_indexes(layout.path, splits)
    total = sum(window.n_bytes for window in windows.values())
    checked = (
        f"{len(windows)} windows ({total / 2**20:.1f} MiB), "
        f"{len(metadata.shards)} shard{'s' * (len(metadata.shards) != 1)}, "
        f"{len(metadata.splits)} split indexes read"
    )
    return Verified(checked, problems)


def _copied(
    layout: DatasetLayout, metadata: Metadata
) -> tuple[dict[tuple[str, str], CopiedWindow], list[str]]:
    """The windows that the manifest vouches for, and what is wrong with it."""
    try:
        read_facts(layout.copy_manifest, layout.name)
    except IntegrityError as error:
        return {}, [error.what]
    windows = Manifest(layout).windows
    wanted = sum(found.n_windows for found in metadata.splits.values())
    if metadata.spec.copy_mode == "windows" and len(windows) != wanted:
        return windows, [f"{len(windows)} windows are copied, {wanted} are in the splits"]
    return windows, []


def look_at(layout: DatasetLayout, copy: CopyResult) -> CopyResult:
    """The outcome of a local dataset's copy stage, if what it names is there and looks right.

    Small files are read; of packed samples sizes and headers, of windows nothing.

    Raises:
        IntegrityError: something is missing or damaged.
    """
    cure = again(layout.name)
    if copy.mode == "windows" and read_sealed(layout.copy_manifest, cure) is None:
        raise IntegrityError(f"{layout.copy_manifest} is missing", cure)
    for error in _damage(layout, copy.splits, copy.shards, copy):
        raise error
    return copy


def _tables(
    layout: DatasetLayout, splits: Mapping[str, SplitFile], shards: Sequence[Shard]
) -> list[Path]:
    return [
        *(layout.path / found.index for found in splits.values()),
        *(layout.samples / shard.name / "index.parquet" for shard in shards),
    ]


def _damage(
    layout: DatasetLayout,
    splits: Mapping[str, SplitFile],
    shards: Sequence[Shard],
    copy: CopyResult | None,
) -> Iterator[IntegrityError]:
    """What is wrong with split indexes, shards, and the files beside the copied windows."""
    cure = again(layout.name)
    for path in _tables(layout, splits, shards):
        try:
            if read_sealed(path, cure) is None:
                yield IntegrityError(f"{path} is missing", cure)
        except IntegrityError as error:
            yield error
    if layout.remote is not None:
        return
    for shard in shards:
        for name, array in shard.arrays.items():
            try:
                check_npy(layout.samples / shard.name / f"{name}.npy", array, cure)
            except IntegrityError as error:
                yield error
    for name, recorded in copy.files.items() if copy is not None else ():
        try:
            found = file_crc32c(layout.path / name)
        except OSError as error:
            yield IntegrityError(f"{layout.path / name}: {error.strerror}", cure)
            continue
        if found != recorded:
            what = f"{layout.path / name} has CRC32C {found}, recorded is {recorded}"
            yield IntegrityError(what, cure)


def _wrong_objects(
    layout: DatasetLayout, remote: "RemoteRoot", shards: Sequence[Shard]
) -> Iterator[str]:
    for shard in shards:
        for name, array in shard.arrays.items():
            path = layout.samples / shard.name / f"{name}.npy"
            wrong = remote.check_array(path, array)
            if wrong is not None:
                yield f"{path.relative_to(layout.path)}: {wrong}"
