"""What a record of ours may say: what all have in common, and bounds of numbers and names.

Belongs here: the types of fields. Doesn't: how fields hang together (entry.py), the columns of
tables (forms.py), and reading files (store/records.py).

A record may come from somebody else, with a checksum that is right whatever it says: a number that
is read as a size, a place or a key is bounded where it is read.
"""

import json
import re
from functools import lru_cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Value = TypeVar("Value")

MOST_PIXELS = 65_536
"""Of a side."""
MOST_CLASSES = 10_000
MOST_NUMBER = 1 << 53
"""What JSON's numbers hold exactly."""

Count = Annotated[int, Field(ge=0, le=MOST_NUMBER)]
Pixels = Annotated[int, Field(gt=0, le=MOST_PIXELS)]
Whole = Annotated[int, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
Split = Annotated[str, Field(pattern=r"\A(train|val|test)\z")]
FolderName = Annotated[str, Field(pattern=r"\A(\.{3,}|\.{0,2}[^./\x00])[^/\x00]*\z")]
"""See `forms.is_folder_name`."""
RelativePath = Annotated[str, Field(pattern=r"\A(\.?\w[\w.-]*/)*\.?\w[\w.-]*\z", max_length=255)]
"""Below a folder: never out of it."""


def _checked_json(text: str) -> str:
    try:
        json.loads(text or "{}")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return text


JsonText = Annotated[str, AfterValidator(_checked_json)]
"""JSON as somebody else wrote it, or nothing."""


def _finite(value: Value) -> Value:
    json.dumps(value, allow_nan=False)
    return value


Finite = AfterValidator(_finite)
"""Of a field that may hold anything: JSON knows no other numbers."""
JsonObject = Annotated[dict[str, Any], Finite]


class Record(BaseModel):
    """What a file of ours holds, or a part of it; `version`, where there is one, is a field.

    A new field raises the version, or is left out of what is kept where it says nothing: to those
    who don't know it, it is damage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def __copy__(self) -> Self:
        """Without what was worked out of its fields: a copy may get others."""
        copied = super().__copy__()
        for name in vars(copied).keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied

    @property
    def wrong_field(self) -> str:
        """Where it isn't what we write, though each field is of its kind; "" if it is."""
        return ""


def kept(value: Any) -> str:
    r"""JSON that `read_kept` takes: half a character, which pydantic refuses, is spelled in it.

    Names of folders are any bytes, and Python has a half for each that is no UTF-8.

    >>> print(read_kept(str, kept("d" + chr(0xDCE9) + "mo")))
    d\udce9mo
    """
    text = json.dumps(value, ensure_ascii=False)
    return _HALF.sub(lambda half: rf"\\u{ord(half[0]):x}", text)


_HALF = re.compile("[\ud800-\udfff]")


def read_kept(kind: Any, text: str | bytes | None) -> Any | None:
    """What this machine has kept for itself, such as a memory of earlier looks, by its JSON.

    Args:
        kind: its type.
        text: as it is kept; None if nothing is.

    Returns:
        None if it is anything else: it can be done without, and is made anew.
    """
    try:
        return _adapter(kind).validate_json(text or b"", strict=True)
    except ValidationError:
        return None


_adapter = lru_cache(maxsize=16)(TypeAdapter)
