"""What metadata.json says of a dataset's splits and of its quality, as JSON.

Belongs here: its form, and that what was read has it: a record from elsewhere may say anything.
Doesn't: making the reports (splits.py, quality.py), and showing them.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12


class _Counts(TypedDict):
    train: int
    val: int
    test: int


class _ClassCounts(TypedDict):
    train: list[int]
    val: list[int]
    test: list[int]


class _Spread(TypedDict):
    mean: float
    std: float


class SplitReport(TypedDict):
    """See `core.splits.split_report`."""

    strategy: str
    counts: _Counts
    samples: NotRequired[_Counts]
    labelled_samples: NotRequired[_Counts]
    left_out: NotRequired[dict[str, int]]
    class_counts: NotRequired[_ClassCounts]
    classes_missing: NotRequired[dict[str, list[str]]]
    distance_from_train: NotRequired[dict[str, float]]
    target: NotRequired[dict[str, _Spread]]


class _Finding(TypedDict):
    code: str
    severity: Literal["error", "warning", "note"]
    count: int
    of: int
    text: str
    examples: list[str]


class QualityReport(TypedDict):
    """See `core.quality.quality_report`."""

    verdict: str
    reasons: list[str]
    standard_error: NotRequired[dict[str, float | None]]
    findings: list[_Finding]


def wrong_report(split_report: Mapping[str, Any], quality: Mapping[str, Any], classes: int) -> str:
    """Where reports aren't what we write; "" if they are, or aren't there."""
    for name, kind, report in (
        ("split_report", SplitReport, split_report),
        ("quality", QualityReport, quality),
    ):
        if report:
            try:
                _adapter(kind).validate_python(report, strict=True)
            except ValidationError as error:
                return ".".join([name, *(str(part) for part in error.errors()[0]["loc"])])
    counts = split_report.get("class_counts")
    if counts is not None and any(len(found) != classes for found in counts.values()):
        return "split_report.class_counts"
    return ""


@lru_cache(maxsize=2)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
