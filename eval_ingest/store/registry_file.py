"""registry.json on a disk, which other tools write as well: without a lock, and not at once.

What belongs here: reading the file as it stands, and replacing it without losing what somebody
writes at the same moment. What doesn't: which entries are ours (store/registry.py).

The existing OlmoEarth eval code empties the file, then writes it. So a file that is no JSON may
be on its way and is looked at again; and the file that is replaced is kept by a hard link until
it is sure that nobody was writing into it.
"""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from eval_ingest.core.registry_text import CHECKSUM, Entry, RegistryText
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import read_bytes, write_bytes
from eval_ingest.store.seal import UNSEALED, is_sealed, sealed_bytes, wrong_seal

CURE = "run: eval-ingest registry rebuild"
REGISTRY_VERSION = "1.0"
"""The version that the existing OlmoEarth eval code writes and reads."""

READING_S = 1.0
"""How long a reader waits for somebody who is writing the file."""
WRITING_S = 5.0
"""The same before the file is replaced."""

RESCUED_S = 3600.0
"""Entries that would have been lost are put back for so long, if they are gone again."""

_ATTEMPTS = 50
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class Standing:
    """The file as it stands."""

    data: bytes | None
    """None: there is no file."""
    text: RegistryText
    """Of a damaged file, the entries that are whole."""
    ours: bool = False
    """It carries our checksum, and that is right."""
    damage: str = ""
    """What is wrong with it."""
    unfinished: bool = False
    """It is no JSON at all: somebody may be writing it."""

    def says(self, text: RegistryText) -> bool:
        """True if there is nothing to write where this text is to stand."""
        return text == self.text and self.data is not None and not self.damage


def look(path: Path, patience_s: float | None = None, before: Standing | None = None) -> Standing:
    """The file as it stands; a file that isn't JSON is looked at again for a while.

    But not if it still is what it was `before`, when somebody has waited already.

    Raises:
        StoreError: it can't be read.
    """
    deadline = time.monotonic() + (READING_S if patience_s is None else patience_s)
    while True:
        found = understood(read_bytes(path))
        if found == before:
            return found
        if not found.damage or is_sealed(found.data or b"") or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def understood(data: bytes | None) -> Standing:
    """What stands in a file of these bytes."""
    if data is None:
        return Standing(None, RegistryText())
    text = data.decode(**_ENCODING).removeprefix("\ufeff")
    damage = wrong_seal(data) if is_sealed(data) else ""
    try:
        return Standing(data, RegistryText.parse(text), is_sealed(data) and not damage, damage)
    except ValueError as error:
        unfinished = not (damage or _is_json(text))
        damage = damage or f"is damaged: it is not the JSON of a registry ({error})"
        return Standing(data, RegistryText.salvage(text), False, damage, unfinished)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def intact(path: Path, standing: Standing) -> RegistryText:
    """The text of a file that isn't damaged.

    Raises:
        IntegrityError: it is.
    """
    if standing.damage:
        raise IntegrityError(f"{path} {standing.damage}", CURE)
    return standing.text


def content(text: RegistryText) -> bytes:
    """The file's content, with the time and our checksum."""
    written = text.text(**_facts(text), **{CHECKSUM: UNSEALED})
    return sealed_bytes(written.encode(**_ENCODING))


def _facts(text: RegistryText) -> dict[str, str]:
    known = {entry.name for entry in text.fields}
    version = {} if "version" in known else {"version": REGISTRY_VERSION}
    return {**version, "updated_at": datetime.now(UTC).isoformat()}


def exchange(path: Path, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
    """Replace the file by a changed one, under our lock; nothing is written if nothing changes.

    What somebody else has written into the file meanwhile is kept.

    Raises:
        StoreError: it can't be read or written, or others write it all the time.
    """
    standing = look(path, WRITING_S)
    base = _with_rescued(path, _with_strays(path, restored(path, standing)))
    for _ in range(_ATTEMPTS):
        wanted = change(base)
        if standing.says(wanted):
            return wanted
        keep_copy(path, standing)
        old = _link(path)
        write_bytes(path, content(wanted))
        theirs = standing if old is None else look(old, WRITING_S, standing)
        if theirs.data != standing.data:
            # Somebody had the old file open, and what they wrote is not in the new one.
            _rescue(path, theirs.text.changed_since(standing.text))
        if old is not None and not theirs.unfinished:
            old.unlink(missing_ok=True)  # else somebody may write on: see _with_strays
        if theirs.data == standing.data:
            return wanted
        standing = look(path, WRITING_S)
        base = _with_rescued(path, standing.text)
    raise StoreError(f"{path} is written by others all the time; {CURE}")


def _rescued(path: Path) -> Path:
    return path.with_name(f".{path.stem}.rescued{path.suffix}")


def _rescue(path: Path, entries: list[Entry]) -> None:
    """Remember entries for a while: who wrote them may write again what he had read before."""
    known = understood(read_bytes(_rescued(path))).text
    write_bytes(_rescued(path), content(known.put(entries)))


def _with_rescued(path: Path, text: RegistryText) -> RegistryText:
    """The text, with what was rescued lately and isn't there any more."""
    rescued = _rescued(path)
    with contextlib.suppress(FileNotFoundError):
        if abs(time.time() - rescued.stat().st_mtime) < RESCUED_S:
            return text.put(text.lacking(understood(read_bytes(rescued)).text))
        rescued.unlink()
    return text


def keep_copy(path: Path, standing: Standing) -> bool:
    """Keep a dated copy of a file that isn't ours, the first time, and of a damaged one.

    Returns True if one was written.

    Raises:
        StoreError: it can't be written.
    """
    if standing.data is None or standing.ours:
        return False
    kept = copies(path)
    if kept and (not standing.damage or any(read_bytes(copy) == standing.data for copy in kept)):
        return False
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    write_bytes(path.with_name(f"{path.stem}.{stamp}{path.suffix}"), standing.data)
    return True


def copies(path: Path) -> list[Path]:
    """The dated copies of the file, the newest last."""
    is_copy = copy_pattern(path).fullmatch
    return sorted(found for found in path.parent.glob("*") if is_copy(found.name))


def copy_pattern(path: Path) -> re.Pattern[str]:
    """What the names of its dated copies are."""
    return re.compile(rf"{re.escape(path.stem)}\.[0-9].*Z{re.escape(path.suffix)}")


def restored(path: Path, standing: Standing) -> RegistryText:
    """The text; of a damaged file with what a dated copy has and it lacks."""
    text = standing.text
    if standing.damage:
        for copy in reversed(copies(path)):
            kept = understood(read_bytes(copy)).text
            text = text.put(text.lacking(kept))
    return text


def _with_strays(path: Path, text: RegistryText) -> RegistryText:
    """With what was written into files that had just been replaced, and that nobody could wait for.

    A stopped run has left them, or somebody who wrote into one stood still for long.
    """
    for stray in path.parent.glob(f".{path.name}.*.old"):
        found = understood(read_bytes(stray))
        text = text.put(text.lacking(found.text))
        with contextlib.suppress(FileNotFoundError):
            if not found.unfinished or time.time() - stray.stat().st_mtime > RESCUED_S:
                stray.unlink()
    return text


def _link(path: Path) -> Path | None:
    """A second name of the file, which stays when it is replaced; None where that can't be."""
    second = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    with contextlib.suppress(OSError):  # there is no file yet, or the file system has no links
        os.link(path, second)
        return second
    return None
