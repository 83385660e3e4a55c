"""Files of a window in the copy, by the compiled writer and by Python's own, which do the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_ingest.errors import StoreError
from eval_ingest.store import told_apart, window_files
from eval_ingest.store.window_files import Windows, write_checked
from eval_ingest_tests.support import compiled


@pytest.fixture(params=compiled.WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    compiled.take(request.param, window_files, "_writing", monkeypatch)
    yield request.param


def test_files_are_written_with_their_folders_and_permissions(tmp_path: Path) -> None:
    files = {"metadata.json": b"{}", "layers/a/b/large.tif": os.urandom(3 << 20),
             "layers/a/completed": b"", "layers/\u00fc/x": b"1"}  # fmt: skip
    old = os.umask(0o027)
    try:
        write_checked(str(tmp_path), [(path, data, 0o644) for path, data in files.items()])
    finally:
        os.umask(old)
    found = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {path: file.read_bytes() for path, file in found.items()} == files
    assert {file.stat().st_mode & 0o777 for file in found.values()} == {0o640}


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        write_checked(str(tmp_path), [("x", b"ours", 0o666)])
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(FileExistsError):
        write_checked(str(tmp_path), [("link", b"ours", 0o666)])
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["g/a", "g/b", "h/a"], None),
        (["g/a", "g/A"], ("g/A", "g/a")),
        (["g/x", "G/y"], ("G", "g")),
        (["g/\u00e9", "g/e\u0301"], ("g/e\u0301", "g/\u00e9")),
        (["g/\u00c9", "g/e\u0301"], ("g/e\u0301", "g/\u00c9")),
        (["g/stra\u00dfe", "g/STRASSE"], ("g/STRASSE", "g/stra\u00dfe")),
        (["g/\udcff", "g/\udcfe"], None),
    ],
)
def test_names_that_are_one_to_the_disk_are_refused_before_anything_is_written(
    names: list[str], alike: tuple[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows(tmp_path / "windows")
    windows.require_told_apart(tuple(name.split("/")) for name in names)  # this disk knows them
    asked: list[tuple[str, str]] = []

    def are_one(folder: Path, *pair: str) -> bool:
        asked.append(pair)
        return True

    monkeypatch.setattr(told_apart, "_are_one", are_one)
    if alike is None:
        windows.require_told_apart(tuple(name.split("/")) for name in names)
        assert not asked
        return
    with pytest.raises(StoreError, match="are one name to the disk of"):
        windows.require_told_apart(tuple(name.split("/")) for name in names)
    assert asked[0] == alike and not list(tmp_path.iterdir())
