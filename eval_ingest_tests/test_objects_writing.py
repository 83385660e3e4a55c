"""Objects that are written: one contract for Google Cloud Storage, S3, Weka's S3 and others."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects import retry, writing
from eval_ingest.objects.backend import Conflict, Entry, crc32c_text
from eval_ingest.objects.writing import WritableObjects
from eval_ingest_tests.support.servers import BUCKET, ObjectServer, proxy

_ADDRESS = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}


@pytest.fixture(params=["gs", "s3", "weka", "memory"])
def objects(
    request: pytest.FixtureRequest,
    servers: dict[str, ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[WritableObjects]:
    """A new folder of objects."""
    kind, folder = request.param, tmp_path.name.lower()
    monkeypatch.setattr(retry.random, "uniform", lambda *_: 0.0)
    if kind == "memory":
        yield WritableObjects(f"memory://{folder}")
        memory = fsspec.filesystem("memory")
        if memory.exists(f"/{folder}"):
            memory.rm(f"/{folder}", recursive=True)
        return
    server = servers["gs" if kind == "gs" else "s3"]
    for key, value in server.environment.items():
        if kind != "weka" or key != "AWS_ENDPOINT_URL":
            monkeypatch.setenv(key, value)
    endpoint = server.address if kind == "weka" else None
    yield WritableObjects(f"{kind}://{BUCKET}/{folder}", endpoint=endpoint)


def test_what_is_put_is_read_and_deleted(objects: WritableObjects) -> None:
    run = objects.run
    assert run(objects.stat("a/b.json")) is None
    ends = (b"a\r", b"a\n", b"a\r\n", b"\n\r--x--\r\n", b"\r")
    for data in (b"one", b"", bytes(range(256)) * 100, *ends):
        entry = run(objects.put("a/b.json", data))
        assert entry.size == len(data) and entry.name == "a/b.json"
        seen, found = run(objects.read_current("a/b.json"))
        assert (found, seen.token) == (data, entry.token)
    run(objects.put("a/ c ü+%.txt", b"names"))
    assert [e.name for e in sorted(run(objects.find("a")), key=lambda e: e.name)] == [
        "a/ c ü+%.txt",
        "a/b.json",
    ]
    assert all(entry.modified > 1e9 for entry in run(objects.find("a")))
    run(objects.delete(["a/b.json", "a/ c ü+%.txt", "a/nope"]))
    assert run(objects.find("a")) == []


def test_of_two_writers_the_second_is_told(objects: WritableObjects) -> None:
    run = objects.run
    first = run(objects.replace(Entry("x", 0, ""), b"1"))
    with pytest.raises(Conflict):
        run(objects.replace(Entry("x", 0, ""), b"2"))
    second = run(objects.replace(first, b"22"))
    with pytest.raises(Conflict):
        run(objects.replace(first, b"333"))
    assert run(objects.read_current("x"))[1] == b"22"
    run(objects.delete(["x"]))
    with pytest.raises(Conflict):
        run(objects.replace(second, b"4444"))
    assert run(objects.stat("x")) is None


def test_what_somebody_has_written_since_is_not_deleted(objects: WritableObjects) -> None:
    run = objects.run
    one, two = (run(objects.put(name, b"1")) for name in ("x", "y"))
    run(objects.put("x", b"22"))
    with pytest.raises(Conflict):
        run(objects.delete([one]))
    assert run(objects.read_current("x"))[1] == b"22"
    run(objects.delete([two]))
    run(objects.delete([two]))  # as after an answer that was lost
    assert [entry.name for entry in run(objects.find(""))] == ["x"]
    run(objects.delete(["x"]))
    assert run(objects.find("")) == []


def test_a_write_whose_answer_was_lost_counts(objects: WritableObjects) -> None:
    entry = objects.run(objects.replace(Entry("x", 0, ""), b"mine"))
    assert objects.run(objects.replace(Entry("x", 0, ""), b"mine")).token == entry.token


def test_an_object_and_its_version_come_in_one_answer(
    objects: WritableObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    if objects.url.startswith("memory"):
        pytest.skip("no versions there")
    with proxy(objects._endpoint or os.environ[_ADDRESS[objects.url[:2]]]) as between:
        if objects._endpoint is not None:
            objects._endpoint = between.address
        else:
            monkeypatch.setenv(_ADDRESS[objects.url[:2]], between.address)
        written = objects.run(objects.put("a b/x", b"data"))
        between.seen.clear()
        seen, data = objects.run(objects.read_current("a b/x"))
        assert len(between.seen) == 1
        assert (seen.name, seen.size, seen.version, seen.token, data) == (
            *(written.name, written.size, written.version, written.token),
            b"data",
        )
        for fault in ("short", "corrupt", "truncated", "reset", "503"):
            monkeypatch.setattr(between, "READING", (fault,))
            between.seen.clear()
            between.faults = 1.0
            assert objects.run(objects.read_current("a b/x")) == (seen, b"data")
            assert between.done[fault] == 1


def test_an_object_that_is_written_at_each_look_is_read_in_the_end(
    objects: WritableObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.run(objects.put("x", b"1"))
    other = WritableObjects(objects.url, endpoint=objects._endpoint)
    head, get, sizes = objects._backend.head, objects._backend.get, list(range(2, 14))

    async def interrupted(name: str) -> Entry:
        found = await head(name)
        if sizes:
            await other.put("x", b"1" * sizes.pop(0))
        return found

    async def unversioned(name: str) -> tuple[None, bytes]:
        """As a server that doesn't say which version it sends."""
        return None, (await get(name))[1]

    monkeypatch.setattr(objects._backend, "head", interrupted)
    monkeypatch.setattr(objects._backend, "get", unversioned)
    entry, data = objects.run(objects.read_current("x"))
    assert (entry.size, data, sizes) == (13, b"1" * 13, [])


def test_an_object_that_never_stands_still_is_told(
    objects: WritableObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CHANGING_S", 0.2)

    async def changed(name: str, entry: object) -> None:
        raise writing.Changed("at every look")

    monkeypatch.setattr(objects, "_read_current", changed)
    with pytest.raises(StoreError, match=r"x has been changing all the time .*; run again"):
        objects.run(objects.read_current("x"))


def test_many_writers_at_once_lose_nothing(objects: WritableObjects) -> None:
    if objects.url.startswith("memory"):
        pytest.skip("no conditions there")

    async def add(words: list[str]) -> None:
        while words:
            entry, data = await objects.read_current("n")
            try:
                await objects.replace(entry, data + words[0].encode())
            except Conflict:
                continue
            words.pop(0)

    async def four() -> None:
        await asyncio.gather(*(add([f"{who}{k} " for k in range(3)]) for who in "abcd"))

    objects.run(objects.replace(Entry("n", 0, ""), b""))
    objects.run(four())
    expected = sorted(f"{who}{k}" for who in "abcd" for k in range(3))
    assert sorted(objects.run(objects.read_current("n"))[1].decode().split()) == expected


def test_files_go_up_and_come_down_in_parts(
    objects: WritableObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PART_BYTES", 1000)
    data = bytes(range(251)) * 30
    source, parts = tmp_path / "source", list[bytes]()
    source.write_bytes(data)
    entry = objects.run(objects.upload("samples/x.npy", source, crc32c_text(data)))
    assert entry.size == len(data)
    objects.run(objects.stream("samples/x.npy", len(data), parts.append))
    assert b"".join(parts) == data and len(parts) == 8
    with pytest.raises(IntegrityError, match=r"has 7530 bytes, recorded are 7990"):
        objects.run(objects.stream("samples/x.npy", 7990, parts.append))
    with pytest.raises((FileNotFoundError, StoreError)):
        objects.run(objects.stream("samples/y.npy", 10, parts.append))


def test_a_missing_bucket_is_told(objects: WritableObjects) -> None:
    if objects.url.startswith("memory"):
        pytest.skip("no buckets there")
    scheme = objects.url.partition("://")[0]
    other = WritableObjects(f"{scheme}://nowhere-at-all/evals", endpoint=objects._endpoint)
    with pytest.raises(StoreError, match="there is no bucket nowhere-at-all"):
        other.run(other.put("x", b"1"))
    with pytest.raises(StoreError, match="there is no bucket nowhere-at-all"):
        other.run(other.replace(Entry("x", 0, ""), b"1"))


def test_weka_without_mount_or_endpoint_says_what_to_set() -> None:
    objects = WritableObjects("weka://dfive-default/evals")
    with pytest.raises(
        StoreError,
        match=r"/weka/dfive-default is not mounted here, and WEKA_ENDPOINT_URL is not set; "
        r"set WEKA_ENDPOINT_URL .* or OLMOEARTH_EVAL_DATASETS",
    ):
        objects.run(objects.stat("x"))
