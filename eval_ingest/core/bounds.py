"""What numbers and names of a record may be.

Belongs here: the types of fields. Doesn't: how fields hang together (entry.py), and the columns of
tables (forms.py).

A record may come from somebody else, with a checksum that is right whatever it says: a number that
is read as a size, a place or a key is bounded where it is read.
"""

import json
from typing import Annotated

from pydantic import AfterValidator, Field

MOST_PIXELS = 65_536
"""Of a side."""
MOST_CLASSES = 10_000
MOST_NUMBER = 1 << 53
"""What JSON's numbers hold exactly."""

Count = Annotated[int, Field(ge=0, le=MOST_NUMBER)]
Pixels = Annotated[int, Field(gt=0, le=MOST_PIXELS)]
Whole = Annotated[int, Field(ge=-MOST_NUMBER, le=MOST_NUMBER)]
Split = Annotated[str, Field(pattern=r"\A(train|val|test)\z")]
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
