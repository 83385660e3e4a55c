"""Many windows listed at once: prefixes that cover their names."""

import os
from collections.abc import Sequence


def prefixes(names: Sequence[str], most: int) -> list[str]:
    """Prefixes that cover some folder names, each one `most` of them at most.

    Objects are listed by prefix in pages, one after the other; many prefixes are many at once.

    >>> prefixes(["a1", "a2", "b1", "b2", "b3"], 3)
    ['a', 'b']
    >>> prefixes(["a", "ab"], 1)
    ['a/', 'ab/']
    """
    found: list[str] = []

    def divide(texts: list[str]) -> None:
        common = os.path.commonprefix(texts)  # noqa: RUF071  of texts: half a name will do
        if len(texts) <= most:
            found.append(common)
            return
        branches: dict[str, list[str]] = {}
        for text in texts:
            branches.setdefault(text[: len(common) + 1], []).append(text)
        for branch in branches.values():
            divide(branch)

    if names:
        # With its slash, no name is the beginning of another.
        divide(sorted(f"{name}/" for name in names))
    return found
