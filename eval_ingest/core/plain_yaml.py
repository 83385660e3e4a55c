"""YAML that comes from people and from buckets: plain values come out, or a problem in one line.

Only what PyYAML's SafeLoader makes; and what could grow beyond all bounds while it is read is
stopped: `<<` merges multiply, and nesting goes as deep as somebody likes.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 5_000_000
"""Real files have about ten thousand; a longer one is not a configuration."""

_MAX_MERGED_ENTRIES = 10_000
"""Entries of one mapping after its `<<` merges."""

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


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader, with a limit on what `<<` merges can grow to."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_MERGED_ENTRIES:
            raise yaml.constructor.ConstructorError(
                None, None, "too many merged entries", node.start_mark
            )


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        YamlProblem: it can't be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlProblem(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise YamlProblem(_marked(error)) from None
    except (yaml.YAMLError, *PARSE_FAULTS) as error:
        raise YamlProblem(first_line(error)) from None


def _marked(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
    return f"{line}{error.problem or error.context or 'unreadable'}"


def first_line(error: BaseException) -> str:
    """What a parser's error says, on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (str(error) or type(error).__name__).splitlines()[0]
