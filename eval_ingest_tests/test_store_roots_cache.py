"""The cache of remote roots' packed samples: whole files, within a limit, for several processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import crc32c_text
from eval_ingest.store.roots import cache as pack_cache
from eval_ingest.store.roots.cache import PackCache

SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> PackCache:
    """Room for three files."""
    return PackCache(tmp_path / "roots", 3 * SIZE)


def place(cache: PackCache, shard: str) -> Path:
    return cache.folder / "root" / "crops" / "samples" / shard / "target.npy"


def content(shard: str) -> bytes:
    return (shard * SIZE).encode()[:SIZE]


def fetcher(data: bytes, told: list[str] | None = None) -> Callable[[Path], None]:
    def fetch(part: Path) -> None:
        assert part.stat().st_size == SIZE  # reserved, so that others see it
        part.write_bytes(data)
        if told is not None:
            told.append(part.name)

    return fetch


def get(cache: PackCache, shard: str, told: list[str] | None = None) -> bytes:
    data = content(shard)
    path = cache.fetched(place(cache, shard), SIZE, crc32c_text(data), fetcher(data, told))
    return path.read_bytes()


def held(cache: PackCache) -> set[str]:
    return {path.parent.name for path in cache.folder.glob("*/*/samples/*/*.npy")}


def test_a_file_is_fetched_once(cache: PackCache) -> None:
    told: list[str] = []
    assert get(cache, "a", told) == get(cache, "a", told) == content("a")
    assert len(told) == 1


def test_what_was_used_longest_ago_makes_room(cache: PackCache) -> None:
    for shard in "abc":
        get(cache, shard)
        time.sleep(0.01)  # of the file system's clock
    get(cache, "a")
    get(cache, "d")
    assert held(cache) == {"a", "c", "d"}
    get(cache, "e")
    assert held(cache) == {"a", "d", "e"}


def test_a_file_that_is_mapped_stays_readable(cache: PackCache) -> None:
    get(cache, "a")
    with open(place(cache, "a"), "rb") as stream:
        for shard in "bcd":
            get(cache, shard)
        assert held(cache) == {"b", "c", "d"}
        assert stream.read() == content("a")


def test_what_arrives_damaged_is_not_kept(cache: PackCache) -> None:
    with pytest.raises(
        IntegrityError, match=r"arrived with CRC32C \S+, recorded is \S+; run again"
    ):
        cache.fetched(place(cache, "a"), SIZE, crc32c_text(content("a")), fetcher(content("b")))
    assert held(cache) == set()
    assert [p.name for p in place(cache, "a").parent.iterdir()] == [".target.npy.lock"]


def test_a_download_that_was_stopped_does_not_count(cache: PackCache) -> None:
    def stopped(part: Path) -> None:
        part.write_bytes(content("a")[:10])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetched(place(cache, "a"), SIZE, None, stopped)
    assert held(cache) == set()
    assert get(cache, "a") == content("a")


def test_files_of_another_size_or_checksum_are_fetched_again(cache: PackCache) -> None:
    get(cache, "a")
    path, told = place(cache, "a"), list[str]()
    path.write_bytes(content("a")[:-1])
    assert get(cache, "a", told) == content("a") and len(told) == 1
    other = content("b")  # packed anew under the same name
    found = cache.fetched(path, SIZE, crc32c_text(other), fetcher(other, told))
    assert found.read_bytes() == other and len(told) == 2
    path.with_name(".target.npy.note").unlink()
    cache.fetched(path, SIZE, None, fetcher(other, told))
    assert len(told) == 3


def test_what_a_killed_process_left_is_removed(cache: PackCache) -> None:
    get(cache, "a")
    left = place(cache, "a").with_name(".target.npy.1.part")
    left.write_bytes(bytes(2 * SIZE))
    get(cache, "b")  # the part counts, since somebody may be writing it
    assert held(cache) == {"b"} and left.exists()
    os.utime(left, (1, 1))
    get(cache, "c")
    assert held(cache) == {"b", "c"} and not left.exists()


def test_a_file_larger_than_the_limit_is_told(tmp_path: Path) -> None:
    cache = PackCache(tmp_path, SIZE - 1)
    with pytest.raises(StoreError, match=r"the cache may hold .* set EVAL_INGEST_CACHE_GIB"):
        get(cache, "a")


def test_a_full_disk_makes_room_first_and_is_told_then(
    cache: PackCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(cache, "a")
    usage = SimpleNamespace(free=pack_cache.LEFT_FREE)
    monkeypatch.setattr(pack_cache, "shutil", SimpleNamespace(disk_usage=lambda path: usage))
    get(cache, "b")
    assert held(cache) == {"b"}
    usage.free = 0
    with pytest.raises(StoreError, match=r"needs 1,000 bytes, and 0 are free in .* free space"):
        get(cache, "c")


PROCESS = """
import sys, time
from pathlib import Path
from eval_ingest.store.roots.cache import PackCache

folder, log, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = PackCache(folder, 3000)
for k in range(rounds):
    for shard in "abcde":
        def fetch(part):
            part.write_bytes((shard * 1000).encode())
            with open(log, "a") as stream:
                stream.write(shard)
        path = folder / "root" / "crops" / "samples" / shard / "target.npy"
        for _ in range(5):
            try:
                found = cache.fetched(path, 1000, None, fetch).read_bytes()
                assert found == (shard * 1000).encode()
                break
            except FileNotFoundError:
                continue  # another process needed the room at this very moment
"""


def test_several_processes_share_it(cache: PackCache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROCESS, str(cache.folder), str(log)]
    running = [subprocess.Popen([*command, "20"]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(held(cache)) == 3
    assert len(log.read_text()) >= 5
    assert list(cache.folder.rglob("*.part")) == []


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    cache, log = PackCache(tmp_path / "roots", 10**9), tmp_path / "log"
    script = PROCESS.replace("3000", "10**9")
    command = [sys.executable, "-c", script, str(cache.folder), str(log)]
    running = [subprocess.Popen([*command, "1"]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(log.read_text()) == list("abcde")
