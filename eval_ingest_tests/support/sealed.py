"""Sealed files with whatever they are to say, be it a record of ours or not."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from eval_ingest.core.forms import TableForm
from eval_ingest.store.records import read_record

_Anything = RootModel[dict[str, Any]]


def read_sealed_json(path: Path, cure: str = "") -> dict[str, Any]:
    """The object in a sealed JSON file, without its checksum."""
    found = read_record(_Anything, path, cure)
    assert found is not None
    return found.root


@dataclass(frozen=True)
class _Facts:
    facts: Any

    def model_dump_json(self) -> str:
        return json.dumps(self.facts)


def saying(facts: Any, geo: bool = False) -> TableForm:
    """The form of a table that says this of itself, for `write_table`."""
    return TableForm("", 0, {}, lambda **_: _Facts(facts), geo)  # type: ignore[arg-type]
