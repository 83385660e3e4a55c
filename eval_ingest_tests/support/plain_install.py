"""Python that sees what a plain install brings, or one with some extras, and nothing else.

For programs that a test runs in a process of their own.
"""

_HIDING = r"""
import re, sys
from importlib import metadata

def brought(name, extras, found):
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in found:
        return
    try:
        requires = metadata.distribution(name).requires or []
    except metadata.PackageNotFoundError:
        return
    found.add(name)
    for text in requires:
        wanted = re.search(r"extra == .([\w.-]+).", text)
        if wanted is None or wanted[1] in extras:
            brought(re.match(r"[\w.-]+", text)[0], (), found)

distributions = set()
brought("eval-ingest", EXTRAS, distributions)
tops = {
    top: {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    for top, names in metadata.packages_distributions().items()
}
hidden = {top for top, names in tops.items() if not names & distributions}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""


def only_with(*extras: str) -> str:
    """The first lines of such a program: the modules of other extras can't be imported.

    By the metadata of what is installed. `hidden` is the set of those modules.
    """
    return f"EXTRAS = {extras!r}\n{_HIDING}"
