"""Files of a window are written by C as Python writes them, and what can't be written is told."""

import os
import random
from pathlib import Path

import pytest

from eval_ingest.store import window_files

Plain = list[tuple[str, bytes, int]]


def some(rng: random.Random) -> Plain:
    """Files in folders, empty ones, large ones, with names that aren't ASCII."""
    names = {f"{rng.choice('abü')}/{rng.randrange(9)}/{'n' * rng.randrange(1, 200)}.tif"
             for _ in range(20)}  # fmt: skip
    sizes = (0, 1, 4095, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)
    return [(name, rng.randbytes(rng.choice(sizes)), rng.choice((0o644, 0o600, 0o666)))
            for name in sorted({*names, "metadata.json"})]  # fmt: skip


def found(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("seed", range(3))
def test_c_and_python_write_the_same(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = some(random.Random(seed))
    for name, module in (("c", window_files._writing), ("python", None)):
        monkeypatch.setattr(window_files, "_writing", module)
        (tmp_path / name).mkdir()
        window_files._write_checked(str(tmp_path / name), files)
    assert found(tmp_path / "c") == found(tmp_path / "python")
    assert {name: data for name, (data, _) in found(tmp_path / "c").items()} == {
        name: data for name, data, _ in files
    }


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["f" * 200] * 30), "file/below"])
def test_what_can_not_be_written_is_an_error_of_the_systems(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = os.listdir(tmp_path)
    with pytest.raises(OSError):
        window_files._write_checked(str(tmp_path), [(name, b"data", 0o644)])
    assert set(before) <= set(os.listdir(tmp_path))


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        window_files._write_checked(str(tmp_path), [("a", b"ours", 0o644)])
    assert (tmp_path / "a").read_bytes() == b"theirs"
