"""A value in a configuration file that knows its place, so that every message can name it.

Here texts become plain values, and nothing is imported or instantiated: the files come from a
bucket, and a class_path in them is code.
"""

import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eval_ingest.core.plain_yaml import (
    MAX_CHARACTERS,
    PARSE_FAULTS,
    PLACEHOLDER,
    OddNumber,
    class_path_of,
    first_line,
    load_json,
    load_yaml,
)
from eval_ingest.errors import ConfigError, UnsupportedError, brief

_MAX_SHOWN = 120
"""Characters of a value in a message."""

_ALLOWED_PACKAGES = re.compile(
    r"\w+|(rslearn|rslp|torch|torchmetrics|torchvision|lightning|helios|olmoearth\w*)(\.\w+)+"
)

_VARIABLE = re.compile(r"\$\{([^{}\n]+)\}")
_DEFAULT = re.compile(r"\$\{\w+:-([^{}]*)\}")


_EXACT = 2**53
"""Whole numbers up to this are exact as floats, and fit every array."""


@dataclass(frozen=True)
class Node:
    """A value of a configuration file, with its place in it."""

    value: Any
    """None where the file has nothing."""
    file: str
    """The file's name, such as `model.yaml`."""
    path: str = ""
    """Dotted, such as `data.init_args.task`."""
    where: str = ""
    """The folder or URL that holds the file."""

    @property
    def place(self) -> str:
        """`model.yaml: data.init_args.task`, as provenance gives it."""
        return f"{self.file}: {self.path}" if self.path else self.file

    def error(
        self, problem: str, cure: str = "", kind: type[ConfigError] = ConfigError
    ) -> ConfigError:
        """An error about this value: where it stands, what is wrong, what to do."""
        folder = f"{self.where.rstrip('/')}/" if self.where else ""
        return kind(f"{folder}{self.place}: {problem}{'; ' + cure if cure else ''}")

    def unsupported(self, problem: str, cure: str = "") -> ConfigError:
        """An error about a value that is right, but can't become an eval."""
        return self.error(problem, cure, UnsupportedError)

    # --- structure ---

    def get(self, *keys: Hashable) -> "Node":
        """The value under these keys; a Node of None where there is none."""
        node = self
        for key in keys:
            inner = node.value.get(key) if isinstance(node.value, dict) else None
            node = node._child(inner, f".{key}")
        return node

    @property
    def args(self) -> "Node":
        """Its init_args if it is written as class_path and init_args, else itself."""
        if isinstance(self.value, dict) and (
            "class_path" in self.value or "init_args" in self.value
        ):
            return self.get("init_args")
        return self

    @property
    def class_path(self) -> str:
        """The class path, also where only its text is given; empty if there is none."""
        return class_path_of(self.value)

    @property
    def class_name(self) -> str:
        """The last part of the class path."""
        return self.class_path.rpartition(".")[2]

    def items(self) -> list["Node"]:
        """The elements of a list; none if it is missing."""
        if self.value is None:
            return []
        if not isinstance(self.value, list | tuple):
            raise self.error(f"is {self.shown}, but must be a list")
        return [self._child(value, f"[{i}]") for i, value in enumerate(self.value)]

    def entries(self) -> dict[str, "Node"]:
        """The entries of a mapping; none if it is missing."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"is {self.shown}, but must be a mapping")
        return {str(key): self._child(value, f".{key}") for key, value in self.value.items()}

    # --- scalars ---

    @property
    def given(self) -> bool:
        """True if the file has a value here that isn't an unset placeholder."""
        return self.value is not None and not self.unset

    @property
    def unset(self) -> bool:
        """True for a placeholder without default, such as ${PATCH_SIZE}."""
        return (
            isinstance(self.value, str)
            and PLACEHOLDER.fullmatch(self.value.strip()) is not None
            and _DEFAULT.fullmatch(self.value.strip()) is None
        )

    @property
    def shown(self) -> str:
        """The value, short enough for a message."""
        text = brief(self.value, 60)
        return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."

    def text(self) -> str:
        """The text; empty if it is missing. Numbers are taken as their text."""
        value = self._filled()
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            raise self.error(f"is {self.shown}, but must be a text")
        return str(value)

    def name(self) -> str:
        """A text that names something: a group, a band, a class; empty if it is missing.

        A whole number as it is usually written is taken as its text. Of other numbers, and of yes
        and no, YAML doesn't keep what was written; rslearn takes none of them.
        """
        value = self._filled()
        if isinstance(value, bool | float | OddNumber):
            kind = "yes or no" if isinstance(value, bool) else f"the number {value}"
            raise self.error(f"is read as {kind}, but must be a text", "write it in quotes")
        return self.text()

    def names(self) -> tuple[str, ...]:
        """A list of names, in their places; a lone one is taken as a list of one."""
        if isinstance(self.value, list | tuple):
            return tuple(item.name() for item in self.items())
        return (self.name(),) if self.given else ()

    def number(self) -> float | None:
        """The number, neither NaN nor infinite; None if it is missing or an unset placeholder."""
        found = self._number()
        if found is not None and not math.isfinite(found):
            raise self.error(f"is {self.shown}, but must be a finite number")
        return found

    def nodata(self) -> float | None:
        """A number that means no data; None if there is none, or for NaN, which never is data."""
        found = self._number()
        return None if found is None or math.isnan(found) else self.number()

    def _number(self) -> float | None:
        value = self._filled()
        if value is None or self.unset:
            return None
        try:
            return float(str(value) if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(f"is {self.shown}, but must be a number") from None

    def integer(self, least: int = -_EXACT, most: int = _EXACT) -> int | None:
        """The whole number; None if it is missing or an unset placeholder.

        What takes memory or time in proportion to it says how large it may be.
        """
        number = self.number()
        if number is None:
            return None
        if not number.is_integer():
            raise self.error(f"is {self.shown}, but must be a whole number")
        if not least <= number <= most:
            raise self.error(f"is {self.shown}, but must be {least} to {most}")
        return int(number)

    def flag(self, default: bool = False) -> bool:
        """True or false; the default if it is missing or an unset placeholder."""
        value = self._filled()
        if value is None or self.unset:
            return default
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise self.error(f"is {self.shown}, but must be true or false")
        return value

    def _child(self, value: Any, suffix: str) -> "Node":
        path = f"{self.path}{suffix}".lstrip(".")
        return Node(value, self.file, path, self.where)

    def _filled(self) -> Any:
        """The value, or a placeholder's default."""
        if isinstance(self.value, str):
            default = _DEFAULT.fullmatch(self.value.strip())
            if default:
                return default.group(1) or None
        return self.value


def with_variables(text: str, variables: Mapping[str, str]) -> str:
    """The text with `${NAME}` replaced, before it is parsed, as rslearn does; others stay."""
    return _VARIABLE.sub(lambda match: variables.get(match.group(1), match.group()), text)


def parse_json(text: str, file: str, where: str) -> Node:
    """The JSON object in `text`; a ConfigError names file, line and problem."""
    return _parsed(load_json, "JSON object", text, Node(None, file, where=where))


def parse_yaml(text: str, file: str, where: str) -> Node:
    """The YAML mapping in `text`; placeholders stay as texts."""
    return _parsed(load_yaml, "YAML mapping", text, Node(None, file, where=where))


def _parsed(load: Callable[[str], Any], expected: str, text: str, root: Node) -> Node:
    if len(text) > MAX_CHARACTERS:
        raise root.error(
            f"has {len(text):,} characters, more than the {MAX_CHARACTERS:,} allowed",
            "is this the right file?",
        )
    try:
        value = load(text)
    except PARSE_FAULTS as error:
        raise root.error(f"is not valid {expected[:4]}: {first_line(error)}") from None
    if not isinstance(value, dict):
        found = "empty" if value is None else f"a {type(value).__name__}"
        raise root.error(f"is {found}, but must be a {expected}")
    if half := _half_text(value):
        raise root.error(f"{half[:40]!r} holds half a character", "write the whole one")
    return replace(root, value=value)


def _half_text(value: Any) -> str:
    """A text with half a character, a surrogate alone, which no file can hold; or nothing."""
    seen, waiting = set(), [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str) and inner.encode(errors="ignore").decode() != inner:
            return inner
        if isinstance(inner, dict | list) and id(inner) not in seen:
            seen.add(id(inner))
            waiting += [*inner, *inner.values()] if isinstance(inner, dict) else inner
    return ""


def check_class_path(node: Node) -> None:
    """Refuse a class path outside the packages that datasets may name."""
    named = node.get("class_path") if isinstance(node.value, dict) else node
    if not _ALLOWED_PACKAGES.fullmatch(node.class_path):
        raise node.error(
            f"class_path {named.shown} is not of a package that may be named here (rslearn, "
            "rslp, torch, torchmetrics, torchvision, lightning, helios, olmoearth*)",
            "a class_path is code: replace it by one of these packages' classes",
        )


def check_class_paths(root: Node) -> None:
    """Refuse any class path under `root` that is outside the allowed packages."""
    seen: set[int] = set()  # YAML aliases can make the tree a graph, even a cyclic one
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node.value) in seen or not isinstance(node.value, dict | list):
            continue
        seen.add(id(node.value))
        if isinstance(node.value, dict):
            if "class_path" in node.value:
                check_class_path(node)
            waiting.extend(node.entries().values())
        else:
            waiting.extend(node.items())


@dataclass
class Notes:
    """Collects provenance and warnings; handed through the steps of `inference.resolve.resolve`."""

    provenance: dict[str, str] = field(default_factory=dict)
    """Field name to the place it came from."""
    warnings: list[str] = field(default_factory=list)

    def origin(self, name: str, place: str) -> None:
        """Record where the value of a field came from."""
        self.provenance[name] = place

    def warn(self, text: str) -> None:
        """Record a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)
