"""What metadata.json says of a dataset's splits and of its quality, as JSON.

Belongs here: its form, and that what was read has it: a record from elsewhere may say anything.
Doesn't: making the reports (splits.py, quality.py), and showing them.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from eval_ingest.core.bounds import Count, Split

_Counts = Annotated[dict[Split, Count], Field(min_length=3)]
_ClassCounts = Annotated[dict[Split, list[Count]], Field(min_length=3)]


class _Spread(TypedDict):
    mean: float
    std: float


class SplitReport(TypedDict):
    """See `core.splits.split_report`."""

    strategy: str
    counts: _Counts
    samples: NotRequired[_Counts]
    labelled_samples: NotRequired[_Counts]
    left_out: NotRequired[dict[str, Count]]
    class_counts: NotRequired[_ClassCounts]
    classes_missing: NotRequired[dict[Split, list[str]]]
    distance_from_train: NotRequired[dict[Split, float]]
    target: NotRequired[dict[Split, _Spread]]


class _Finding(TypedDict):
    code: str
    severity: Literal["error", "warning", "note"]
    count: Count
    of: Count
    text: str
    examples: list[str]


class QualityReport(TypedDict):
    """See `core.quality.quality_report`."""

    verdict: str
    reasons: list[str]
    standard_error: NotRequired[dict[Split, float | None]]
    findings: list[_Finding]


def wrong_report(split_report: Mapping[str, Any], quality: Mapping[str, Any], classes: int) -> str:
    """Where reports aren't what we write; "" if they are."""
    for name, kind, report in (
        ("split_report", SplitReport, split_report),
        ("quality", QualityReport, quality),
    ):
        if report or kind is SplitReport:
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
