"""YAML and JSON from people and from buckets: plain values come out, or a problem in one line.

Only what PyYAML's SafeLoader makes, with the numbers that jsonargparse knows, since rslearn reads
model.yaml by it: 1e3 is one, and dates are texts. What could grow beyond all bounds while it is
read is stopped: `<<` merges multiply, and nesting goes as deep as somebody likes. Aliases cost
nothing until all that they stand for is looked at: load_whole_yaml.
"""

import contextlib
import json
import re
from typing import Any

import yaml

MAX_CHARACTERS = 500_000
"""Real files have about ten thousand; so many take ten seconds and 160 MB to be parsed."""

_MAX_MERGED_ENTRIES = 10_000
"""Entries of one mapping after its `<<` merges."""

_MAX_VALUES = 1_000_000
"""Values that a text may stand for, each counted as often as aliases repeat it."""

PARSE_FAULTS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
)
"""What PyYAML's constructors raise on texts such as `!!int ""` or a date in month 13."""


class YamlProblem(ValueError):
    """A text isn't YAML, or none that can be read; says where."""


PLACEHOLDER = re.compile(r"\$\{[^{}\n]*\}|\{\{[^{}\n]*\}\}|\{[A-Z][A-Z0-9_]*\}")
"""${VAR}, ${VAR:-default}, {{ var }} and {TEMPLATE}: texts to be filled in, not YAML mappings."""
_SHIELD = str.maketrans("{}", "\ue000\ue001")
_UNSHIELD = str.maketrans("\ue000\ue001", "{}")


class OddNumber(int):
    """A whole number that is not written as usual: 017 (fifteen), 1_000, 0x1F, 1:30.

    As a text, such as a group's name, it would be another one.
    """


_FLOAT = re.compile(
    r"""[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)
"""What jsonargparse takes for a number with a fraction or an exponent."""


class _FullMatch:
    """A pattern for PyYAML, which calls `match` on a whole scalar."""

    @staticmethod
    def match(text: str) -> re.Match[str] | None:
        return _FLOAT.fullmatch(text)


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader with jsonargparse's scalars, and a limit on what `<<` can grow to."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_MERGED_ENTRIES:
            raise yaml.constructor.ConstructorError(
                None, None, "too many merged entries", node.start_mark
            )

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A text, in which placeholders have their braces back."""
        value = super().construct_scalar(node)
        return value.translate(_UNSHIELD) if isinstance(value, str) else value

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """An integer, marked if it is written in an unusual way."""
        value: int = self.construct_yaml_int(node)
        return value if str(value) == node.value else OddNumber(value)


_TIMESTAMP, _NUMBER = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, known) for tag, known in resolvers if tag not in (_TIMESTAMP, _NUMBER)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBER, _FullMatch, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def load_yaml(text: str) -> Any:
    """The value of a YAML text; placeholders stay as texts.

    Raises:
        YamlProblem: it can't be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlProblem(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        shielded = PLACEHOLDER.sub(lambda match: match.group().translate(_SHIELD), text)
        return yaml.load(shielded, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise YamlProblem(_marked(error).translate(_UNSHIELD)) from None
    except (yaml.YAMLError, *PARSE_FAULTS) as error:
        raise YamlProblem(first_line(error)) from None


def load_whole_yaml(text: str) -> Any:
    """The value of a YAML text of which all is used: compared, printed, or made a model of.

    Raises:
        YamlProblem: it can't be read, or its aliases repeat values without end.
    """
    value = load_yaml(text)
    check_whole(value)
    return value


def check_whole(value: Any) -> None:
    """Refuse a value of YAML of which all is used, if that would never end.

    Raises:
        YamlProblem: its aliases repeat values without end.
    """
    if _count(value, {}) > _MAX_VALUES:
        raise YamlProblem(f"its aliases repeat more than {_MAX_VALUES:,} values, or themselves")


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values it stands for, each as often as aliases repeat it."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1  # until it is counted: it holds itself
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in inner)
    return known[id(value)]


_BARE = re.compile(r"(?<=[:\[,\s])(\$\{[^{}\"\n]*\})(?=\s*[,\]}\n])")


def load_json(text: str) -> Any:
    """The value of a JSON text, in which a bare ${VAR} may stand for one; it stays as a text.

    rslearn fills in variables before it parses.

    Raises:
        ValueError, RecursionError: it can't be read.

    >>> load_json('{"path": ${DATASET_PATH}}')
    {'path': '${DATASET_PATH}'}
    """
    try:
        return json.loads(text)
    except PARSE_FAULTS as first:
        with contextlib.suppress(*PARSE_FAULTS):
            return json.loads(_BARE.sub(r'"\1"', text))
        raise first from None


def class_path_of(value: Any) -> str:
    """The class path of a value, also where only its text is given; "" if there is none."""
    named = value.get("class_path") if isinstance(value, dict) else value
    return named if isinstance(named, str) else ""


def untyped(text: str) -> Any:
    """What jsonargparse makes of a text where a value of any type may stand, such as a tag's.

    >>> untyped("2025"), untyped("yes"), untyped("val"), untyped("2025-12-10")
    (2025, True, 'val', '2025-12-10')
    """
    stripped = text.strip()
    if stripped in ("", "-"):
        return text
    if stripped.removeprefix("-").isdecimal():
        return int(stripped)
    try:
        value = load_whole_yaml(text)
    except YamlProblem:
        return text
    if isinstance(value, dict) and all(inner is None for inner in value.values()):
        return text  # `{x}` and `x:` are texts to it
    return text if isinstance(value, str) else value


def _marked(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
    return f"{line}{error.problem or error.context or 'unreadable'}"


def first_line(error: BaseException) -> str:
    """What a parser's error says, on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (str(error) or type(error).__name__).splitlines()[0]
