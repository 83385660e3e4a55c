"""What is compiled where there is a C compiler, and done by Python elsewhere: both are tested."""

from types import ModuleType

import pytest

WAYS = ("compiled", "python")


def take(way: str, module: ModuleType, extension: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a module do its work one way or the other; skips where nothing is compiled.

    Args:
        way: one of WAYS.
        module: ours, which does without the extension.
        extension: the name that it has in the module.
        monkeypatch: puts it back.
    """
    if way == "python":
        monkeypatch.setattr(module, extension, None)
    elif getattr(module, extension) is None:
        pytest.skip("no C compiler")
