"""What stops the reading of a window or of one of its rasters: a code, and what was found."""

from eval_ingest.core.validate import Problem

_MOST_DETAIL = 1_000
"""Characters: a value from a source may have millions."""


def cut(text: str) -> str:
    """A text of a length that can be kept and shown, and that is no lone surrogate."""
    plain = text[:_MOST_DETAIL].encode("utf-8", "backslashreplace").decode()
    return plain if len(text) <= _MOST_DETAIL else f"{plain}..."


class Unreadable(Exception):
    """Stops reading a window, or one of its rasters; `code` is a key of core.validate.PROBLEMS."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def problem(self) -> Problem:
        """What the window's row says."""
        return Problem(self.code, cut(self.detail))


class NotUnderstoodError(Unreadable):
    """A file that may be whole, but whose form our own reader doesn't know."""


def broken(why: str) -> Unreadable:
    """The problem of a raster that can't be read."""
    return Unreadable("raster_unreadable", why)


def not_understood(why: str) -> Unreadable:
    """The problem of a raster that perhaps another reader can read."""
    return NotUnderstoodError("raster_unreadable", why)


def shortened(error: Exception) -> str:
    """A decoder's message on one line; GDAL's may hold a whole CRS."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
