"""Lock files: of two processes on this machine, one at a time; and folders that are one's alone."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eval_ingest.errors import LockedError, StoreError
from eval_ingest.store.atomic import store_error, store_errors


@contextmanager
def locked(path: Path, timeout_s: float, waiting_for: str) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        LockedError: another process holds it for longer than the timeout.
        StoreError: the lock file can't be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # of a place such as /proc, where nothing can be made
        raise StoreError(
            f"the folder {path.parent} can't be made; set OLMOEARTH_EVAL_DATASETS to another one"
        ) from error
    except OSError as error:
        raise store_error(path.parent, "making", error) from error
    with store_errors("locking", path):
        try:
            lock.acquire()
        except Timeout as error:
            raise LockedError(
                f"{waiting_for}: another process holds {path}; wait for it to finish and run again"
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def folder_aside(parent: Path, pattern: str, doing: str) -> Iterator[Path]:
    """A new folder for this process alone, which goes in the end.

    Those of the same pattern that killed processes have left go now: a lock beside each, which is
    held from before the folder is made, says whether somebody is at it.

    Args:
        parent: where; made if it isn't there.
        pattern: of such folders' names, in which `*` becomes a word of this one's own.
        doing: what is done there, for messages.

    Raises:
        StoreError: it can't be made.
    """

    def lock_of(folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.lock")

    for left in [path for path in parent.glob(pattern) if path.is_dir()]:
        with suppress(StoreError), locked(lock_of(left), 0.0, doing):
            shutil.rmtree(left, ignore_errors=True)
            lock_of(left).unlink(missing_ok=True)
    mine = parent / pattern.replace("*", secrets.token_hex(8))
    with locked(lock_of(mine), 0.0, doing):
        try:
            with store_errors("making", mine):
                mine.mkdir()
            yield mine
        finally:
            shutil.rmtree(mine, ignore_errors=True)
            lock_of(mine).unlink(missing_ok=True)
