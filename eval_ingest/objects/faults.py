"""Which errors of a file system may pass, and which say that something isn't allowed."""

import asyncio
import contextlib
import errno

from eval_ingest.objects.backend import Truncated

_PASSING_ERRNO = {
    errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT,
    errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN,
}  # fmt: skip
"""EREMOTEIO and EBUSY are what s3fs makes of the answers 500 and 503."""
_UNREACHED_ERRNO = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ECONNREFUSED}
_PASSING_MODULES = {"aiohttp", "aiobotocore", "botocore", "requests", "urllib3", "http", "ssl"}


def may_pass(error: BaseException) -> bool:
    """True for what the network or an overloaded server does, and a second try may not meet."""
    if isinstance(error, Truncated | TimeoutError | asyncio.TimeoutError | ConnectionError):
        return True
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    code = getattr(error, "code", None) or getattr(error, "status", None)
    with contextlib.suppress(TypeError, ValueError):
        return int(code) in (408, 425, 429) or 500 <= int(code) < 600  # type: ignore[arg-type]
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNO:
        return True
    if is_mistyped(error):
        return False
    return type(error).__module__.partition(".")[0] in _PASSING_MODULES


def is_answer(error: BaseException) -> bool:
    """True if an error is what a server said, and not that nobody said anything."""
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    if isinstance(error, OSError) and error.errno in _UNREACHED_ERRNO:
        return False
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    if module == "botocore":
        return not name.endswith(("ConnectionError", "TimeoutError", "ClosedError", "SSLError"))
    return module not in ("aiohttp", "requests", "urllib3", "ssl")


def is_mistyped(error: BaseException) -> bool:
    """True if no such request can be sent at all: the name of the bucket, most often."""
    return type(error).__name__ in ("ParamValidationError", "InvalidURL", "InvalidRegionError")


def is_forbidden(error: BaseException) -> bool:
    """True if the server or the lack of credentials says no."""
    code = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
    text = str(error)
    return not is_requester_pays(error) and (
        isinstance(error, PermissionError)
        or code in ("401", "403")
        or _code_of_s3(error) in ("401", "403")
        or text.startswith("Forbidden")
        or "Unable to locate credentials" in text
        or "does not have storage.objects" in text
    )


def is_requester_pays(error: BaseException) -> bool:
    """True if Google wants to know who pays; S3 gives no reason, as to anybody without rights."""
    return "requester pays" in str(error).lower() or "user project" in str(error).lower()


def is_conflict(error: BaseException) -> bool:
    """True if a condition of a write to S3 wasn't met."""
    return _code_of_s3(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def _code_of_s3(error: BaseException) -> str:
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def first_line(error: BaseException) -> str:
    """An error as one line: its type, and the beginning of what it says."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1].strip()}"
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
