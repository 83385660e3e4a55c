"""What metadata.json says of a dataset's splits and of its quality, as JSON.

Belongs here: its form: a record from elsewhere may say anything. Doesn't: making the reports
(splits.py, quality.py), and showing them.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from eval_ingest.core.bounds import Count, Finite, Split

_Counts = Annotated[dict[Split, Count], Field(min_length=3)]
_ClassCounts = Annotated[dict[Split, list[Count]], Field(min_length=3)]
_FORM = ConfigDict(extra="allow", allow_inf_nan=False)


class _Spread(TypedDict):
    __pydantic_config__ = _FORM  # type: ignore[misc]
    mean: float
    std: float


class SplitReport(TypedDict):
    """See `core.splits.split_report`."""

    __pydantic_config__ = _FORM  # type: ignore[misc]
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
    __pydantic_config__ = _FORM  # type: ignore[misc]
    code: str
    severity: Literal["error", "warning", "note"]
    count: Count
    of: Count
    text: str
    examples: list[str]


class QualityReport(TypedDict):
    """See `core.quality.quality_report`."""

    __pydantic_config__ = _FORM  # type: ignore[misc]
    verdict: str
    reasons: list[str]
    standard_error: NotRequired[dict[Split, float | None]]
    findings: list[_Finding]


def _or_nothing(value: Any, checked: ValidatorFunctionWrapHandler) -> Any:
    return value if value == {} else checked(value)


_OrNothing = WrapValidator(_or_nothing)
MaybeSplitReport = Annotated[
    dict[str, Any], GetPydanticSchema(lambda _, form: form(SplitReport)), _OrNothing, Finite
]
MaybeQualityReport = Annotated[
    dict[str, Any], GetPydanticSchema(lambda _, form: form(QualityReport)), _OrNothing, Finite
]
