"""What stops the reading of a window or of one of its rasters: a code, and what was found."""

from eval_ingest.core.validate import Problem


class Unreadable(Exception):
    """Stops reading a window; carries the problem."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(code, detail)


class RasterProblem(Exception):
    """A raster can't be used; `code` is `raster_unreadable` or `raster_grid`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


def broken(why: str) -> RasterProblem:
    """The problem of a raster that can't be read."""
    return RasterProblem("raster_unreadable", why)


def shortened(error: Exception) -> str:
    """A decoder's message on one line; GDAL's may hold a whole CRS."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."
