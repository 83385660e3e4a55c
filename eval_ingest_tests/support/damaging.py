"""Ways to damage a file, and what is told of it. Which files those are: the tests."""

from collections.abc import Callable
from pathlib import Path

CURE = "run: eval-ingest ingest crops"
Damage = Callable[[Path], None]


def one(root: Path, pattern: str) -> Path:
    """The first file that a pattern names."""
    return next(iter(sorted(root.glob(pattern))))


def flip(place: int) -> Damage:
    """Change a byte; counted from the end if negative."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)

    return damage


def cut(path: Path) -> None:
    """Leave the first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


def grown(path: Path) -> None:
    """More than there was."""
    path.write_bytes(path.read_bytes() + b"\0" * 512)
