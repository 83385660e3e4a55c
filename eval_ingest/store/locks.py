"""Lock files: of two processes on this machine, one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
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
