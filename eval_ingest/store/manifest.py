"""What was copied, window by window, with sizes and checksums.

A stopped copy goes on by it, and `verify` checks the windows against it later.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import google_crc32c
import pyarrow as pa
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from eval_ingest.core.bounds import Count, FolderName, read_kept
from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.forms import ColumnForm, TableForm, folder_names, hexadecimal
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import batched
from eval_ingest.store.atomic import store_errors
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.tables import read_table, write_table
from eval_ingest.waiting import remove_folder

UNFINISHED = ".copying"
"""Beside the windows folder: windows on their way into it, or out of it."""

JOURNAL = ".copy_journal.jsonl"
"""What is copied while a run goes on; the manifest has it in the end."""
MANIFEST_FORM = TableForm(
    "copy_manifest",
    2,
    {
        "group": ColumnForm(pa.string(), whole=True, right=folder_names),
        "name": ColumnForm(pa.string(), whole=True, right=folder_names),
        "source_digest": ColumnForm(pa.string(), whole=True),
        "split": ColumnForm(pa.string(), whole=True, of=frozenset(SPLITS)),
        "n_files": ColumnForm(pa.int32(), whole=True),
        "n_bytes": ColumnForm(pa.int64(), whole=True),
        "checksum": ColumnForm(pa.string(), whole=True, right=hexadecimal),
    },
)
_SCHEMA = MANIFEST_FORM.schema(MANIFEST_FORM.columns)
_READ_TOGETHER = 1 << 12
_SEND_EVERY_S = 30.0
"""How often a remote root gets the journal, so that another machine can go on."""


@dataclass(frozen=True, slots=True)
class CopiedWindow:
    """A window in the copy."""

    group: FolderName
    name: FolderName
    source_digest: str
    """Of its files in the source; after a `-` of what is mapped in labels, where anything is."""
    split: Annotated[str, Field(pattern=r"\A(train|val|test)?\z")]
    n_files: Count
    n_bytes: Count
    checksum: Annotated[str, Field(pattern=r"\A[0-9a-f]{1,64}\z")]
    """Of all files: see FilesChecksum."""

    @property
    def key(self) -> tuple[str, str]:
        """(group, name)."""
        return self.group, self.name


class CopiedWindows(MutableMapping[tuple[str, str], CopiedWindow]):
    """Windows in a copy by group and name, each held as a text: a third of the room of objects."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __getitem__(self, key: tuple[str, str]) -> CopiedWindow:
        *known, digest = self._texts["\0".join(key)].split("\0", 4)  # the one that may be any text
        split, n_files, n_bytes, checksum = known
        return CopiedWindow(*key, digest, split, int(n_files), int(n_bytes), checksum)

    def __setitem__(self, key: tuple[str, str], copied: CopiedWindow) -> None:
        c = copied
        values = (c.split, str(c.n_files), str(c.n_bytes), c.checksum, c.source_digest)
        self._texts["\0".join(key)] = "\0".join(values)

    def __delitem__(self, key: tuple[str, str]) -> None:
        del self._texts["\0".join(key)]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and "\0".join(key) in self._texts

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for text in self._texts:
            group, _, name = text.partition("\0")
            yield group, name

    def __len__(self) -> int:
        return len(self._texts)


class FilesChecksum:
    """Of a window's files: the sum, modulo 2^64, of a BLAKE2b of each one's path and CRC32C.

    So the order doesn't matter, and a file can be exchanged without reading the others.

    >>> a, b = FilesChecksum(), FilesChecksum()
    >>> a.add("x", 1), a.add("y", 2)
    (None, None)
    >>> b.add("y", 2), b.add("x", 3), b.exchange("x", 3, 1)
    (None, None, None)
    >>> str(a) == str(b)
    True
    """

    def __init__(self, text: str = "0") -> None:
        self._sum = int(text, 16)

    def add(self, path: str, crc: int) -> None:
        """Add a file, by its path in the window and its CRC32C."""
        self._sum = (self._sum + self._term(path, crc)) % 2**64

    def exchange(self, path: str, old: int, new: int) -> None:
        """A file had one CRC32C and has another now."""
        self._sum = (self._sum - self._term(path, old) + self._term(path, new)) % 2**64

    @staticmethod
    @lru_cache(maxsize=512)  # markers, and what stands beside rasters, are the same in many windows
    def _term(path: str, crc: int) -> int:
        text = f"{path}\t{crc:08x}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def __str__(self) -> str:
        return f"{self._sum:016x}"


class Manifest:
    """Which windows are in the copy; a journal keeps it true while copying goes on.

    What is about to change is told to the journal first: after a stop, a window is either as the
    manifest says, or the manifest doesn't vouch for it and the next run does it again.
    """

    def __init__(self, layout: DatasetLayout, send: Callable[[], None] = lambda: None) -> None:
        self._layout = layout
        self._send = send
        self._journal = layout.path / JOURNAL
        self._journal_bytes: int | None = None
        """How much of the journal is whole: the rest is a line at which a run was stopped."""
        self._lost: list[tuple[str, str]] = []
        """Windows of the manifest that it doesn't vouch for, because the journal is damaged."""
        self._sent = -math.inf
        # Damaged, it vouches for no window: all are copied again.
        self.windows = unless_damaged(lambda: read_manifest(layout)) or CopiedWindows()
        self._replay()

    def _replay(self) -> None:
        if not self._journal.exists():
            return
        self._journal_bytes = 0
        for entry, end in read_journal(self._journal):
            if entry is None:
                # What follows, and what this line has said, may be that windows are replaced.
                self._lost = list(self.windows)
                self.windows.clear()
                self._journal_bytes = 0
                return
            if not isinstance(entry, CopiedWindow):
                self.windows.pop((entry["group"], entry["name"]), None)
            elif entry.split:
                self.windows[entry.key] = entry
            else:  # an earlier version was about to change it
                self.windows.pop(entry.key, None)
            self._journal_bytes = end

    def add(self, copied: Iterable[CopiedWindow]) -> None:
        """Note windows as copied, at once and on disk."""
        found = {window.key: window for window in copied}
        self.windows.update(found)
        self._write(map(asdict, found.values()), at_once=False)

    def forget(self, keys: Iterable[tuple[str, str]]) -> None:
        """Note that windows are about to be changed, replaced or removed."""
        known = [key for key in keys if self.windows.pop(key, None) is not None]
        self._write(({"group": group, "name": name} for group, name in known), at_once=True)

    def _write(self, entries: Iterable[dict[str, Any]], at_once: bool) -> None:
        text = journal_text(entries)
        if not text:
            return
        text = journal_text({"group": g, "name": n} for g, n in self._lost) + text
        self._lost.clear()
        with store_errors("writing", self._journal):
            self._layout.path.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "ab") as stream:
                if self._journal_bytes is not None:
                    stream.truncate(self._journal_bytes)
                    self._journal_bytes = None
                stream.write(text)
        # Whoever goes on elsewhere may know too little, but nothing that isn't so any more.
        if at_once or time.monotonic() - self._sent > _SEND_EVERY_S:
            self._send()
            self._sent = time.monotonic()

    def close(self) -> None:
        """Write the manifest and drop the journal.

        Raises:
            StoreError: the manifest can't be written.
        """
        parts = [arrow_rows([], _SCHEMA)]
        for keys in batched(sorted(self.windows), _READ_TOGETHER):
            parts.append(arrow_rows([asdict(self.windows[key]) for key in keys], _SCHEMA))
        table = pa.concat_tables(parts)
        write_table(self._layout.copy_manifest, table, MANIFEST_FORM)
        self._journal.unlink(missing_ok=True)
        remove_folder(self._layout.path / UNFINISHED)


def read_manifest(layout: DatasetLayout) -> CopiedWindows:
    """The windows of a copy that has ended: a journal beside it is of no copy, or of another.

    Raises:
        IntegrityError: copy_manifest.parquet is damaged.
        StoreError: it can't be read.
    """
    windows = CopiedWindows()
    found = read_table(layout.copy_manifest, MANIFEST_FORM, layout.name)
    for batch in () if found is None else found[0].to_batches(_READ_TOGETHER):
        windows.update((copied.key, copied) for copied in map(_copied, batch.to_pylist()))
    return windows


def _copied(row: dict[str, Any]) -> CopiedWindow:
    return CopiedWindow(**row)


def journal_text(entries: Iterable[dict[str, Any]]) -> bytes:
    """A line each, with its checksum."""
    lines = (json.dumps(entry).encode() for entry in entries)
    return b"".join(b"%08x %s\n" % (google_crc32c.value(line), line) for line in lines)


class _Gone(TypedDict):
    """What a journal says of a window that is about to be replaced or removed."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    group: FolderName
    name: FolderName


def read_journal(path: Path) -> Iterator[tuple[CopiedWindow | _Gone | None, int]]:
    """What `journal_text` was given, and where its line ends; None for a line that is damaged.

    Nothing of a line that isn't whole: a run was stopped at it.

    Raises:
        StoreError: it can't be read.
    """
    end = 0
    with store_errors("reading", path), open(path, "rb") as stream:
        for line in stream:
            end += len(line)
            if not line.endswith(b"\n"):
                return
            checksum, _, entry = line[:-1].partition(b" ")
            if checksum:
                right = checksum == b"%08x" % google_crc32c.value(entry)
                yield read_kept(CopiedWindow | _Gone, entry) if right else None, end
