"""registry.json as text, so that entries which somebody else wrote are kept to the byte.

What belongs here: taking the text apart into entries and putting it together again. What doesn't:
files and locks (store/registry.py), and what an entry of ours says (core/entry.py).

A value is never decoded and encoded again: numbers such as 1e-05 or NaN, escapes, the order of
keys and the spaces inside a value all stay.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from json.decoder import scanstring  # type: ignore[attr-defined]  # untyped
from typing import Any, Self

DATASETS = "datasets"
CHECKSUM = "checksum"
"""The last key of a file that we wrote: see store/seal.py."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_INDENT = " " * 4


@dataclass(frozen=True)
class Entry:
    """A dataset's entry: its key and its value as they are written."""

    name: str
    key: str
    """The name as JSON, with its quotes."""
    raw: str
    """The value as JSON."""

    @classmethod
    def of(cls, name: str, value: Mapping[str, Any]) -> Self:
        """An entry that we write."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        return cls(name, json.dumps(name, ensure_ascii=False), text.replace("\n", f"\n{_INDENT}"))

    @property
    def value(self) -> Any:
        """What it says."""
        return json.loads(self.raw)


@dataclass(frozen=True)
class RegistryText:
    """What stands in registry.json, in its order."""

    entries: tuple[Entry, ...] = ()
    fields: tuple[Entry, ...] = ()
    """The other keys of the file but `datasets` and the checksum."""
    datasets_at: int = field(default=-1, compare=False)
    """How many fields stand before `datasets`; negative: all."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a file's text apart.

        Raises:
            ValueError: it is no JSON object that holds an object `datasets`.
        """
        parts = list(_members(text, 0, whole=True))
        found = [k for k, (entry, _) in enumerate(parts) if entry.name == DATASETS]
        if not found:
            raise ValueError("it holds no datasets")
        fields = [e for e, _ in parts if e.name not in (DATASETS, CHECKSUM)]
        start = parts[found[-1]][1]
        before = sum(e.name not in (DATASETS, CHECKSUM) for e, _ in parts[: found[-1]])
        entries = tuple(entry for entry, _ in _members(text, start))
        return cls(entries, tuple(fields), before)

    @classmethod
    def salvage(cls, text: str) -> Self:
        """The entries that stand whole in a text that is cut off or damaged."""
        entries: list[Entry] = []
        match = re.search(rf'"{DATASETS}"\s*:', text)
        if match:
            try:
                for entry, _ in _members(text, _SPACE.match(text, match.end()).end()):  # type: ignore[union-attr]
                    entries.append(entry)
            except ValueError:
                pass  # what comes after that can't be told apart
        return cls(tuple(entries))

    @property
    def values(self) -> dict[str, Any]:
        """What the entries say, by name; of two with one name the last, as in JSON."""
        return {entry.name: entry.value for entry in self.entries}

    @property
    def raw(self) -> dict[str, str]:
        """The entries' values as they are written, by name."""
        return {entry.name: entry.raw for entry in self.entries}

    def put(self, entries: Iterable[Entry]) -> Self:
        """With these entries, each in the place of the one that has its name, else at the end."""
        new = {entry.name: entry for entry in entries}
        last = {entry.name: k for k, entry in enumerate(self.entries)}
        kept = [
            new.pop(entry.name) if entry.name in new and last[entry.name] == k else entry
            for k, entry in enumerate(self.entries)
        ]
        return replace(self, entries=(*kept, *new.values()))

    def without(self, drop: Callable[[Entry], bool]) -> Self:
        """Without some entries."""
        return replace(self, entries=tuple(e for e in self.entries if not drop(e)))

    def changed_since(self, old: Self) -> list[Entry]:
        """The entries that are new, or say something else."""
        before = old.raw
        return [entry for entry in self.entries if before.get(entry.name) != entry.raw]

    def lacking(self, other: Self) -> list[Entry]:
        """The entries of another text whose names this one doesn't have."""
        known = self.raw
        return [entry for entry in other.entries if entry.name not in known]

    def text(self, **fields: str) -> str:
        """The whole file; `fields` replace or follow those that stand there."""
        # The checksum, which is among the new ones, is the last of all.
        wanted = {e.name: (e.key, e.raw) for e in self.fields}
        for name, value in sorted(fields.items(), key=lambda field: field[0] == CHECKSUM):
            wanted[name] = wanted.get(name, (json.dumps(name),))[0], json.dumps(value)
        lines = [f"  {key}: {value}" for key, value in wanted.values()]
        before = len(lines) - (CHECKSUM in fields)
        place = min(self.datasets_at, before) if self.datasets_at >= 0 else before
        lines.insert(place, f'  "{DATASETS}": {self._datasets()}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _datasets(self) -> str:
        if not self.entries:
            return "{}"
        lines = [f"{_INDENT}{entry.key}: {entry.raw}" for entry in self.entries]
        return "{\n" + ",\n".join(lines) + "\n  }"


def extended(raw: str, more: Mapping[str, Any]) -> str:
    """An entry's value with some keys of ours; the others that it has stay as they are.

    Args:
        raw: the value, a JSON object.
        more: keys and values; those that it has already are replaced where they stand.
    """
    lines = members_of(raw)
    for name, value in more.items():
        # NaN may stand in what is kept of somebody else's value.
        text = json.dumps(value, indent=2, ensure_ascii=False)
        key = lines[name].key if name in lines else json.dumps(name)
        lines[name] = Entry(name, key, text.replace("\n", f"\n{_INDENT}  "))
    return object_of(lines.values())


def members_of(raw: str) -> dict[str, Entry]:
    """The members of a JSON object by name, as they are written; of two with one name the last."""
    return {entry.name: entry for entry, _ in _members(raw, 0)}


def object_of(members: Iterable[Entry]) -> str:
    """A JSON object, as an entry's value is written."""
    inside = ",\n".join(f"{_INDENT}  {entry.key}: {entry.raw}" for entry in members)
    return "{\n" + inside + f"\n{_INDENT}" + "}"


def _members(text: str, start: int, whole: bool = False) -> Iterator[tuple[Entry, int]]:
    """The members of the JSON object at a place, each with the place of its value.

    Raises:
        ValueError: there is no object, or it isn't JSON (`whole`: or something follows it).
    """

    def skip(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it always matches

    place = _expect(text, skip(start), "{")
    more = text[place : place + 1] != "}"
    while more:
        begin = _expect(text, place, '"') - 1
        name, end = scanstring(text, begin + 1, True)
        value = _expect(text, skip(end), ":")
        try:
            _, stop = _DECODER.raw_decode(text, value)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        yield Entry(name, text[begin:end], text[value:stop]), value
        place = skip(stop)
        more = text[place : place + 1] == ","
        if more:
            place = skip(place + 1)
    place = _expect(text, place, "}")
    if whole and place != len(text):
        raise ValueError(f"something follows at character {place}")


def _expect(text: str, place: int, character: str) -> int:
    """The place after a character and the spaces that follow it.

    Raises:
        ValueError: another one stands there.
    """
    if text[place : place + 1] != character:
        raise ValueError(f"{character} expected at character {place}")
    if character == '"':
        return place + 1
    return _SPACE.match(text, place + 1).end()  # type: ignore[union-attr]
