"""Which windows are valid: the problem codes, and how many invalid windows are too many."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval_ingest.errors import InvalidWindowsError

PROBLEMS: dict[str, str] = {
    "metadata_missing": "the window has no metadata.json",
    "metadata_unreadable": "metadata.json can't be read or lacks a field",
    "bounds_invalid": "bounds are not four integers that span a positive area",
    "layer_not_completed": "a layer that the task reads is not completed",
    "raster_missing": "a completed layer lacks its raster",
    "raster_unreadable": "a raster can't be decoded",
    "raster_sidecar": "a file beside a raster would change what GDAL reads",
    "decoder_stopped": "a decoder crashed, or took too long or too much memory",
    "window_crashes": "reading it ends the process that does, however often it is tried",
    "window_too_large": "the window has more bytes than it may have",
    "name_unusable": "its name, or a file's in it, is not UTF-8 text",
    "file_unusable": "what is in it is no file, lies too deep, or is too much to be listed",
    "raster_bands": "a raster has the wrong number of bands or timesteps",
    "raster_dtype": "a raster's type isn't the one in config.json",
    "raster_grid": "a raster doesn't cover the window",
    "input_nodata": "an input is wholly nodata",
    "input_not_finite": "an input has no finite pixel",
    "label_missing": "there is no label",
    "unlabelled": "there is no label, as the task expects of some windows (allow_invalid)",
    "label_unreadable": "the label can't be read",
    "label_all_invalid": "no pixel of the label is valid",
    "label_out_of_range": "the label holds a class outside 0 .. num_classes - 1; if it marks "
    "missing labels, name it as the task's nodata_value",
}


EXPECTED = frozenset({"unlabelled"})
"""Codes of windows that are in no split, but are no sign of broken data."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a window is invalid."""

    code: str
    """A key of PROBLEMS."""
    detail: str
    """What was found where, for the person who looks at this one window."""


@dataclass(frozen=True)
class InvalidSummary:
    """The invalid windows of an index, counted by reason."""

    n_windows: int
    n_invalid: int
    reasons: dict[str, int]
    """Windows per problem code, most frequent first; a window counts once per code."""
    examples: dict[str, list[str]]
    """Up to three `group/name: detail` per code."""
    n_expected: int = 0
    """Of the invalid windows those that are expected to be."""

    @property
    def n_broken(self) -> int:
        """Invalid windows that nothing led to expect."""
        return self.n_invalid - self.n_expected

    @property
    def fraction(self) -> float:
        """Share of windows that are broken, 0 to 1."""
        return self.n_broken / self.n_windows if self.n_windows else 0.0

    def lines(self) -> list[str]:
        """The table of reasons, one line each."""
        return [
            f"  {code:<20} {count:>7}  {PROBLEMS.get(code, '')}; e.g. {self.examples[code][0]}"
            for code, count in self.reasons.items()
        ]


def summarise(
    keys: Sequence[str], problems: Iterable[Sequence[Problem]], n_windows: int
) -> InvalidSummary:
    """Count invalid windows by reason.

    Args:
        keys: `group/name` of the invalid windows.
        problems: theirs, in step with the keys.
        n_windows: how many windows there are, valid ones included.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    expected = 0
    for key, found in zip(keys, problems, strict=True):
        codes = {problem.code for problem in found}
        counts.update(codes)
        expected += codes <= EXPECTED
        for problem in found:
            if len(examples[problem.code]) < 3:
                examples[problem.code].append(f"{key}: {problem.detail}")
    return InvalidSummary(
        n_windows, len(keys), dict(counts.most_common()), dict(examples), expected
    )


def check_invalid_fraction(
    summary: InvalidSummary, limit: float, dataset: str, asked: str = ""
) -> None:
    """Stop an ingest that would rest on mostly broken data.

    `asked` are the filters, by which windows that can't be read are not left out.

    Raises:
        InvalidWindowsError: nothing is valid, or more than `limit` (0 to 1) is invalid.
    """
    if summary.n_windows == 0:
        raise InvalidWindowsError(
            f"{dataset}: no windows were found; check groups, tags and temporal_range in the spec"
        )
    if summary.n_invalid == summary.n_windows or summary.fraction > limit:
        told = (
            f"{dataset}: {summary.n_broken or summary.n_invalid} of {summary.n_windows} windows "
            f"are invalid ({summary.fraction:.1%}; at most {limit:.1%} may be); repair the source, "
            "or raise max_invalid_fraction in the spec (--max-invalid-fraction) if that is "
            "expected:"
        )
        lines = [told, *summary.lines()]
        if asked and summary.n_invalid == summary.n_windows:
            lines.append(f"  no other window has what is asked for: {asked}")
        raise InvalidWindowsError("\n".join(lines))
