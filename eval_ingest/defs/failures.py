"""Our errors as Dagster failures: the message first, and a retry only where it may help."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from eval_ingest.defs.console import FAULT, say_last, take_back
from eval_ingest.errors import EngineError, EvalIngestError, SourceError, StoreError, lacking
from eval_ingest.redaction import holds_secret, shown

RETRIES = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL)
"""For failures that allow retries: a stage goes on where it stopped, so trying again is cheap."""

_LASTING = (
    FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
    ImportError, ValueError,
)  # fmt: skip
_LASTING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_LASTING_HTTP = {400, 401, 403, 404}


@contextmanager
def as_failure(dataset: str) -> Iterator[None]:
    """Turn what is raised inside into a `dagster.Failure` whose description says what to do."""
    try:
        yield
        take_back(dataset)
    except EvalIngestError as error:
        # The message says it all; a traceback is worth showing where another library failed.
        raise _failure(dataset, str(error), may_pass(error)) from _shown(error.__cause__)
    except Exception as error:
        is_outside = isinstance(error, OSError)
        cure = "run again: it goes on where it stopped"
        if not is_outside:
            cure = f"{FAULT}: report it with the traceback"
        text = lacking(error) or f"{type(error).__name__}: {error}; {cure}"
        passes = is_outside and may_pass(error)
        raise _failure(dataset, shown(f"{dataset}: {text}"), passes) from _shown(error)


@contextmanager
def retried() -> Iterator[None]:
    """Ask for another try where a failure allows it.

    For what people interrupt: a retry policy has Dagster try that again, too.
    """
    try:
        yield
    except dg.Failure as failure:
        if not failure.allow_retries:
            raise
        wanted = dg.RetryRequested(RETRIES.max_retries, seconds_to_wait=RETRIES.delay)
        raise wanted from failure


def _shown(error: BaseException | None) -> BaseException | None:
    """A cause whose traceback Dagster may keep: none that quotes a URL's password or signature."""
    cause, seen = error, 0
    while cause is not None and seen < 20:
        if holds_secret(str(cause)):
            return None
        cause, seen = cause.__cause__ or cause.__context__, seen + 1
    return error


def _failure(dataset: str, text: str, allow_retries: bool) -> dg.Failure:
    say_last(dataset, text)
    return dg.Failure(text, allow_retries=allow_retries)


def may_pass(error: Exception) -> bool:
    """True if the network, a disk or a worker failed, and the same may work a little later."""
    cause: BaseException | None = error
    if isinstance(error, EvalIngestError):
        if type(error) not in (SourceError, StoreError, EngineError):
            return False  # the subclasses are about what the data is, not about reaching it
        cause = error.__cause__
    if cause is None or isinstance(cause, _LASTING):
        return False
    return (
        getattr(cause, "errno", None) not in _LASTING_ERRNO
        and getattr(cause, "code", None) not in _LASTING_HTTP
    )
