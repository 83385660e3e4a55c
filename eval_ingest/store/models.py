"""Sealed JSON files that hold a pydantic model: read, or refused in words that say what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eval_ingest.errors import IntegrityError, NewerVersionError
from eval_ingest.store.seal import cure_for, read_sealed_json

Model = TypeVar("Model", bound=BaseModel)


def read_model(
    kind: type[Model], path: Path, wrong: Callable[[Model], str] = lambda model: ""
) -> Model | None:
    """What a sealed JSON file holds; None if it isn't there.

    Args:
        kind: of model; the default of its `version` is the one that can be read.
        path: the file, in a dataset's folder.
        wrong: says where fields don't belong together.

    Raises:
        NewerVersionError: a newer eval_ingest has written it.
        IntegrityError: it is damaged, or of an older version.
        StoreError: it can't be read.
    """
    cure = cure_for(path.parent.name)
    content = read_sealed_json(path, cure)
    if content is None:
        return None
    known = kind.model_fields["version"].default
    version = content.get("version", known)
    if isinstance(version, int) and version > known:
        raise NewerVersionError(path, version, known)
    if version != known:
        what = f"{path} has version {version!s:.80}, this eval_ingest reads {known}"
        raise IntegrityError(what, cure)
    return checked(kind, content, path, cure, wrong)


def checked(
    kind: type[Model],
    content: dict[str, Any],
    path: Path,
    cure: str,
    wrong: Callable[[Model], str] = lambda model: "",
) -> Model:
    """A record as its model: every field in its bounds.

    Raises:
        IntegrityError: it isn't; says at which field.
    """
    try:
        model = kind.model_validate(content)
        where = wrong(model)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its values"
    if where:
        raise IntegrityError(f"{path} is damaged at {where:.200}", cure)
    return model
