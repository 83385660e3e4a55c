"""Records of ours: what JSON files hold, and what tables say of themselves.

What belongs here: taking a text for the record that it has to be, or refusing it in words that say
what to do. What doesn't: what records may say (core/bounds.py), and checksums (seal.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from eval_ingest.core.bounds import Record
from eval_ingest.errors import IntegrityError, NewerVersionError
from eval_ingest.store.seal import cure_for, read_sealed, unsealed

Found = TypeVar("Found", bound=BaseModel)


def read_record(kind: type[Found], path: Path, cure: str = "") -> Found | None:
    """What a sealed JSON file holds; None if it isn't there.

    Args:
        kind: of record; the default of its `version` is the one that can be read.
        path: the file.
        cure: what to do about damage; default: ingest the dataset in whose folder it lies.

    Raises:
        NewerVersionError: a newer eval_ingest has written it.
        IntegrityError: it is damaged, or of an older version.
        StoreError: it can't be read.
    """
    cure = cure or cure_for(path.parent.name)
    content = read_sealed(path, cure)
    if content is None:
        return None
    field = kind.model_fields.get("version")
    known = {"version": field.default} if field is not None else {}
    found = record_of(kind, unsealed(content, path, cure), path, cure, known)
    if found is None:
        raise IntegrityError(f"{path} is of another version than {known['version']}", cure)
    return found


def record_of(
    kind: type[Found], text: bytes, path: Path, cure: str, known: Mapping[str, Any]
) -> Found | None:
    """A record by its JSON; None if it is of another kind, or of an older version.

    Args:
        kind: of record.
        text: as it is kept.
        path: where.
        cure: what to do about damage.
        known: its `kind` and `version`, as far as it says so.

    Raises:
        NewerVersionError: a newer eval_ingest has written it.
        IntegrityError: it is damaged; says at which field.
    """
    found: Found | None = None
    try:
        found = kind.model_validate_json(text, strict=True)
        said = vars(found)
        where = found.wrong_field if isinstance(found, Record) else ""
    except ValidationError as error:
        said = {**known, **_said(text)}
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its values"
    if not known.items() <= said.items():
        version, newest = said["version"], known["version"]
        if said.get("kind") == known.get("kind") and isinstance(version, int) and version > newest:
            raise NewerVersionError(path, version, newest)
        return None
    undamaged(where, path, cure)
    return found


def _said(text: bytes) -> dict[str, Any]:
    """As far as it is a JSON object."""
    try:
        value = from_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def undamaged(where: str, path: Path, cure: str) -> None:
    """Raise IntegrityError if a file is damaged at some place."""
    if where:
        raise IntegrityError(f"{path} is damaged at {where:.200}", cure)
