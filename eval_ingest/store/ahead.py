"""Windows of the copy that are written while they are indexed: their bytes are in memory then.

Belongs here: the folder in which they wait until their splits are known, the journal of which ones
are there, and how they get into the copy. Does not: which windows those are (indexing/build.py),
and what the files of the copy are (copying/worker.py).
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval_ingest.store.atomic import store_errors
from eval_ingest.store.manifest import CopiedWindow, CopiedWindows, journal_text, read_journal
from eval_ingest.store.window_files import (
    METADATA,
    Contents,
    Windows,
    measured,
    rewrite_split,
    write_checked,
)
from eval_ingest.waiting import remove_folder


@dataclass(frozen=True)
class WindowsAhead:
    """Windows that wait for their splits; pickled for worker processes.

    Args:
        folder: where; each has a folder in it that is named after the window and its digest, and
            is whole when it has that name.
    """

    folder: Path

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def _place(self, window: CopiedWindow) -> Path:
        text = "\0".join((*window.key, window.source_digest))
        named = hashlib.blake2b(os.fsencode(text), digest_size=16)
        return self.folder / named.hexdigest()

    def write(self, group: str, name: str, source_digest: str, files: Contents) -> CopiedWindow:
        """Write a window's files and read them back; what it gives has no split yet.

        Raises:
            IntegrityError: what was read back differs from what was written.
            StoreError: it can't be written.
        """
        known, plain = measured(files, "")
        window = CopiedWindow(group, name, source_digest, "", *known)
        place = self._place(window)
        aside = f"{place}.part"
        with store_errors("copying to", place):
            try:
                os.mkdir(aside)
            except FileNotFoundError:
                os.makedirs(aside, exist_ok=True)
            except FileExistsError:  # it was lost or stopped at this one
                shutil.rmtree(aside)
                os.mkdir(aside)
            write_checked(aside, plain)
            # Whatever a worker that was lost, or a run that was stopped, had written there.
            shutil.rmtree(f"{aside}.old", ignore_errors=True)
            Windows.put(aside, place)
        return window

    def note(self, windows: Sequence[CopiedWindow]) -> None:
        """Note windows that were written: a run that is stopped goes on with them."""
        if windows:
            with store_errors("writing", self._journal), open(self._journal, "ab") as stream:
                # On a line of its own, should a run have been stopped at the last one.
                stream.write(b"\n" + journal_text(map(asdict, windows)))

    def noted(self) -> CopiedWindows:
        """The windows that wait, by group and name."""
        found = CopiedWindows()
        for entry, _ in read_journal(self._journal) if self._journal.exists() else ():
            if isinstance(entry, CopiedWindow):
                found[entry.key] = entry
        return found

    def move(self, window: CopiedWindow, split: str, windows: Windows) -> CopiedWindow | None:
        """Put a window into its place in the copy, with its split; None if it is gone or damaged.

        Raises:
            StoreError: it can't be moved.
        """
        place, final = self._place(window), windows.folder / window.group / window.name
        copied = rewrite_split(window, split, place / METADATA)
        if copied is not None:
            with store_errors("copying to", final):
                if not final.parent.exists():
                    final.parent.mkdir(parents=True, exist_ok=True)
                windows.put(place, final)
        return copied

    def clear(self) -> None:
        """Remove those that no split has."""
        remove_folder(self.folder)
