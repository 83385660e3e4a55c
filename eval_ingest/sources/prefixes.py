"""Many windows listed at once: prefixes that cover their names."""

import os
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter


def prefixes(names: Sequence[str], most: int) -> list[str]:
    """Prefixes that cover some folder names, each one `most` of them at most.

    Objects are listed by prefix in pages, one after the other; many prefixes are many at once.

    >>> prefixes(["a1", "a2", "b1", "b2", "b3"], 3)
    ['a', 'b']
    >>> prefixes(["a", "ab"], 1)
    ['a/', 'ab/']
    """
    found: list[str] = []
    # With its slash, no name is the beginning of another.
    waiting = [sorted({f"{name}/" for name in names})] if names else []
    while waiting:
        texts = waiting.pop()
        common = os.path.commonprefix(texts)  # noqa: RUF071  of texts: half a name will do
        if len(texts) <= most:
            found.append(common)
            continue
        branches = [list(some) for _, some in groupby(texts, itemgetter(slice(len(common) + 1)))]
        waiting += reversed(branches)
    return found
