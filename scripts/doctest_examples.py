"""Examples in docstrings as code on the site: a Griffe extension, named in mkdocs.yml.

Lines of doctest stand in our docstrings as they are, below the text or the errors; Markdown would
make quotations of them.
"""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*)*", re.MULTILINE)


class DoctestExamples(griffe.Extension):
    """Puts a fence around each example."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    indent, text = found["indent"], re.sub(r" +# doctest: .*", "", found[0])
    return f"{indent}```pycon\n{text}\n{indent}```"
