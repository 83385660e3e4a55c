"""Archives byte by byte: GNU tar and `gzip -t` are the judges of what is whole.

Every byte of small archives is changed, and every end cut off. What the judges refuse is refused;
what they read is read with the same bytes. Where ours is stricter, the test says where and why.
"""

import contextlib
import gzip
import io
import itertools
import lzma
import os
import random
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval_ingest.errors import SourceError
from eval_ingest.sources.archive import open_archive
from eval_ingest.sources.decompress import StreamError, decompressed
from eval_ingest.sources.tar import BLOCK, TarError, TarStream

Files = dict[str, bytes]


def tar_of(files: Files, format: int = tarfile.GNU_FORMAT, **fields: str) -> bytes:
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.pax_headers = dict(fields)
            archive.addfile(member, io.BytesIO(data))
    return to.getvalue()


def ours(data: bytes) -> Files | None:
    """What we read of an archive; None if it is refused."""
    archive, found = TarStream(decompressed(io.BytesIO(data).read)), {}
    try:
        for member in archive:
            path = os.path.normpath(os.fsdecode(member.path)).lstrip("/")
            if member.problem or (path == "." and not member.is_folder):
                return None
            if not member.is_folder:
                found[path] = b"".join(archive.data())
    except (TarError, StreamError):
        return None
    return found


def theirs(data: bytes, folder: Path) -> Files | None:
    """What GNU tar reads of it, and gzip where it is compressed; None if it is refused."""
    path = folder / "a.tar"
    path.write_bytes(data)
    with contextlib.ExitStack() as cleaned:
        target = folder / "out"
        target.mkdir()
        cleaned.callback(subprocess.run, ["rm", "-rf", str(target)], check=True)
        command = ["tar", "-xf", str(path), "-C", str(target)]
        run = subprocess.run(command, capture_output=True, check=False)
        if run.returncode:
            return None
        files = (file for file in target.rglob("*") if file.is_file() and not file.is_symlink())
        return {str(file.relative_to(target)): file.read_bytes() for file in files}


def flipped(data: bytes, places: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    for place in places:
        yield place, data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


SMALL = {"crops/config.json": b"{}", "crops/windows/g/w/metadata.json": b'{"group": "g"}' * 40}


def test_every_byte_of_a_tar_changed_once(tmp_path: Path) -> None:
    data = tar_of(SMALL)
    end = data.rindex(b"}") // BLOCK * BLOCK + BLOCK  # of the last member; the end markers follow
    # A sample: each takes a run of tar. STEP=1 in the environment tries every byte.
    places = range(3, end + 3 * BLOCK, int(os.environ.get("STEP", "29")))
    checksums = [block + 148 + k for block in (0, end) for k in (0, 7)]
    stricter = []
    for place, changed in flipped(data, iter([*places, *checksums])):
        expected, found = theirs(changed, tmp_path), ours(changed)
        if found is None and expected is not None:
            stricter.append(place)
        else:
            assert found == expected, place
    # GNU tar warns of a lone zero block and goes on: a header may have been overwritten there.
    assert all(end + BLOCK <= place < end + 2 * BLOCK for place in stricter)
    assert stricter


def test_a_changed_byte_with_its_checksum_made_right_is_read_as_gnu_tar_reads_it(
    tmp_path: Path,
) -> None:
    """A tool may write odd headers; what is in them is then meant."""
    data = tar_of(SMALL)
    tried = [(place, value) for place in (*range(1, 148), *range(157, 265), 345, 400, 508)
             for value in (ord(" "), ord("7"), 0x80, 0xFF, 0)]  # fmt: skip
    for place, value in random.Random(1).sample(tried, 60):
        block = bytearray(data[:BLOCK])
        block[place] = value
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        changed = bytes(block) + data[BLOCK:]
        assert ours(changed) == theirs(changed, tmp_path), (place, value)


@pytest.mark.parametrize("level", [0, 9])
def test_every_byte_of_a_gzip_changed_once(level: int, tmp_path: Path) -> None:
    data = gzip.compress(tar_of({"a": b"windows " * 9}), level, mtime=7)
    step = max(1, len(data) // 50)
    for place, changed in flipped(data, iter(range(0, len(data), step))):
        expected, found = theirs(changed, tmp_path), ours(changed)
        assert found == expected, place


def test_an_archive_cut_off_anywhere_is_refused() -> None:
    data = tar_of(SMALL)
    end = data.rindex(b"}") // BLOCK * BLOCK + 3 * BLOCK  # behind the second block of zeros
    assert ours(data[:end]) == SMALL
    assert not [k for k in range(0, end, 7) if ours(data[:k]) is not None]
    packed = gzip.compress(data)
    assert not [k for k in range(len(packed)) if ours(packed[:k]) is not None]


def test_a_damaged_header_in_the_middle_is_not_the_end(small: Path, tmp_path: Path) -> None:
    """Python's tarfile reads 8 of 20 windows of such an archive, and says nothing."""
    path = tmp_path / "crops.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(small, "crops")
    with tarfile.open(path) as archive:
        middle = archive.getmembers()[len(archive.getmembers()) // 2].offset
    data = bytearray(path.read_bytes())
    for spoil in (b"\xff", bytes(BLOCK)):  # a byte, and all of it
        changed = data.copy()
        changed[middle + 3 : middle + 3 + len(spoil)] = spoil
        if len(spoil) == BLOCK:
            changed[middle : middle + BLOCK] = spoil
        path.write_bytes(changed)
        with pytest.raises(SourceError, match=r"can't be unpacked: .* at byte [\d,]+"):
            open_archive(str(path), tmp_path / "inside")
        assert list((tmp_path / "inside").iterdir()) == []


def header(flags: int, extra: bytes = b"", crc: int | None = None) -> bytes:
    start = b"\x1f\x8b\x08" + bytes([flags]) + struct.pack("<IBB", 7, 0, 3) + extra
    if flags & 2:
        start += struct.pack("<H", zlib.crc32(start) & 0xFFFF if crc is None else crc)
    return start


def member_of(data: bytes, start: bytes) -> bytes:
    packed = zlib.compress(data, 6, wbits=-15)
    return start + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("flags", "extra", "crc"),
    [
        (0, b"", None),
        (4, struct.pack("<H", 6) + b"BC\x02\0\x1b\0", None),
        (4, struct.pack("<H", 0), None),
        (8, b"crops.tar\0", None),
        (16, b"a comment\0", None),
        (2, b"", None),
        (2, b"", 1),
        (31, struct.pack("<H", 2) + b"xy" + b"name\0" + b"comment\0", None),
        (31, struct.pack("<H", 2) + b"xy" + b"name\0" + b"comment\0", 0),
        (32, b"", None),
        (64, b"", None),
        (128, b"", None),
        (4, struct.pack("<H", 60000), None),
        (8, b"no end", None),
    ],
)
def test_gzip_headers_are_read_as_gzip_reads_them(
    flags: int, extra: bytes, crc: int | None, tmp_path: Path
) -> None:
    data = member_of(tar_of(SMALL), header(flags, extra, crc))
    assert ours(data) == theirs(data, tmp_path)


def test_all_members_of_a_compressed_stream_are_read(tmp_path: Path) -> None:
    data = tar_of(SMALL)
    parts = [data[k : k + 700] for k in range(0, len(data), 700)]
    for joined in (
        b"".join(gzip.compress(part) for part in parts),  # as bgzip and pigz -i do
        b"".join(
            member_of(part, header(k % 2 * 4, b"\0\0" * (k % 2))) for k, part in enumerate(parts)
        ),
        gzip.compress(b"") + gzip.compress(data) + gzip.compress(b""),
        gzip.compress(data) + bytes(5000),
    ):
        assert ours(joined) == SMALL == theirs(joined, tmp_path)
    for broken in (
        gzip.compress(data) + b"garbage",
        gzip.compress(data) + b"\x1f",
        gzip.compress(data) + bytes(100) + gzip.compress(data),
        gzip.compress(data) + b"\x1f\x8b\x08",
    ):
        assert ours(broken) is None and theirs(broken, tmp_path) is None


def test_other_programs_compress_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(SMALL))
    done = []
    for command in (
        ["gzip", "-c"],
        ["pigz", "-ci"],
        ["bgzip", "-c"],
        ["bzip2", "-c"],
        ["xz", "-c"],
    ):
        with contextlib.suppress(FileNotFoundError):
            packed = subprocess.run([*command, str(path)], capture_output=True, check=True).stdout
            assert ours(packed) == SMALL
            assert ours(packed[:-3]) is None
            done.append(command[0])
    assert "gzip" in done


LONG = "crops/windows/" + "g" * 120 + "/" + "w" * 130 + "/metadata.json"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(format: int, tmp_path: Path) -> None:
    name = LONG if format != tarfile.USTAR_FORMAT else "a" * 90 + "/" + "b" * 90
    data = tar_of({name: b"x" * 600, "é/ü": b"y"}, format)
    assert ours(data) == theirs(data, tmp_path) == {name: b"x" * 600, "é/ü": b"y"}


def test_pax_headers_say_path_and_size(tmp_path: Path) -> None:
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for pax, name in (({"path": "other/name", "size": "700"}, "b"), ({}, "c")):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 700, pax
            archive.addfile(member, io.BytesIO(b"z" * 700))
    data = to.getvalue()
    assert ours(data) == theirs(data, tmp_path) == {"other/name": b"z" * 700, "c": b"z" * 700}
    for bad in (b"9x path=a\n", b"99 path=a\n", b"10 path a\n", b"\n"):
        broken = data.replace(b"19 path=other/name\n", bad.ljust(19, b"\0"))
        assert broken != data and ours(broken) is None and theirs(broken, tmp_path) is None


def block(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    """A member, or a header that is about the next one."""
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    head[:100], head[124:136], head[156:157] = name.ljust(100, b"\0"), b"%011o\0" % len(data), kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data + bytes(-len(data) % BLOCK)


def pax(*records: bytes) -> bytes:
    """A header of records that are shorter than 90 bytes."""
    return block(b"x", b"".join(b"%d %s\n" % (len(r) + 4, r) for r in records), b"x")


@pytest.mark.parametrize("before", [
    pax(b"mtime=1.5", b"uid=4294967295"), pax(b"mtime=soon"), pax(b"uid=99999999999"),
    pax(b"gid=-1"),
    pax(b"path\0x=other"), pax(b"path=a/other"), pax(b"path=a/other") + pax(b"comment=later"),
    block(b"L", b"a/long\0", b"L"), block(b"L", b"a/one\0", b"L") + block(b"L", b"a/two", b"L"),
    block(b"L", b"a/long\0", b"L") + pax(b"path=a/other"),
    pax(b"path=a/other") + block(b"L", b"a/long\0", b"L"), block(b"L", b"\0", b"L"),
])  # fmt: skip
def test_headers_of_headers_count_as_gnu_tar_counts_them(before: bytes, tmp_path: Path) -> None:
    for member in (block(b"a/plain", b"data"), block(b"a/folder/", b"", b"7"),
                   block(b"a/folder/", b"data", b"7"), block(b"a/odd", b"data", b"Q")):  # fmt: skip
        data = before + member + bytes(2 * BLOCK)
        assert ours(data) == theirs(data, tmp_path)


@pytest.mark.parametrize("zeros", [0, 3, 4, 6, 8])
def test_zeros_follow_an_xz_stream_by_fours(zeros: int, tmp_path: Path) -> None:
    data = lzma.compress(tar_of(SMALL)) + bytes(zeros)
    assert ours(data) == theirs(data, tmp_path)


def test_a_global_pax_header_holds_for_all(tmp_path: Path) -> None:
    to = io.BytesIO()
    with tarfile.open(
        fileobj=to, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert ours(to.getvalue()) == theirs(to.getvalue(), tmp_path) == {"a": b""}


SPARSE = [
    "--format=gnu --sparse",
    *(f"--format=posix --sparse --sparse-version={version}" for version in ("0.0", "0.1", "1.0")),
]


def sparse_tar(folder: Path, how: str, holes: int) -> bytes:
    """An archive of a file of so many parts with holes between, and of others around it."""
    with open(folder / "b", "wb") as stream:
        for k in range(holes):
            stream.seek((1 + 3 * k) << 16)
            stream.write(bytes([k % 250 + 1]) * (5000 if k % 2 else 40_000))
        stream.truncate(stream.tell() + (200_000 if holes % 2 else 0))
    for name in "ac":
        (folder / name).write_bytes(name.encode() * 700)
    command = ["tar", "-cf", "-", "-C", str(folder), *how.split(), "a", "b", "c"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize("how", SPARSE)
@pytest.mark.parametrize("holes", [0, 1, 4, 60])
def test_sparse_files_are_read_whole(how: str, holes: int, tmp_path: Path) -> None:
    data = sparse_tar(tmp_path, how, holes)
    found = ours(data)
    assert found is not None and found["b"] == (tmp_path / "b").read_bytes()
    assert found == theirs(data, tmp_path)


@pytest.mark.parametrize("how", SPARSE)
def test_sparse_maps_that_are_damaged_are_told(how: str, tmp_path: Path) -> None:
    data = sparse_tar(tmp_path, how, 5)
    rng, whole = random.Random(how), ours(data)
    for place in rng.sample(range(1024, 4096), 150):
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256)
        found = ours(bytes(changed))
        if found is not None and found != whole:
            assert found == theirs(bytes(changed), tmp_path), place


def test_a_sparse_file_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "hole", "wb") as stream:
        stream.truncate(30 << 30)
    path = tmp_path / "a.tar"
    command = ["tar", "-cf", str(path), "-C", str(tmp_path), "--sparse", "hole"]
    subprocess.run(command, check=True)
    with pytest.raises(SourceError, match=r"'hole' is a sparse file of .* without --sparse"):
        open_archive(str(path), tmp_path / "inside")


def test_the_last_of_two_members_of_a_name_counts(tmp_path: Path) -> None:
    data = tar_of({"a": b"first", "./a": b"second, longer", "b": b""})
    assert ours(data) == theirs(data, tmp_path) == {"a": b"second, longer", "b": b""}
    path = tmp_path / "a.tar"
    window = "windows/g/w/metadata.json"
    files = {"config.json": b"{}", window: b"4" * 900, "windows/g/w/items.json": b""}
    path.write_bytes(tar_of({**files, f"./{window}": b"{}"}))
    source = open_archive(str(path), tmp_path / "inside")
    found = source.window("g", "w", frozenset()).files
    assert [(file.path, file.size) for file in found] == [("items.json", 0), ("metadata.json", 2)]
    assert source.read("g", "w", found[1]) == b"{}"


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    for names in (("a", "a/b"), ("a/b", "a")):
        (tmp_path / "a.tar").write_bytes(tar_of(dict.fromkeys(names, b"x")))
        with pytest.raises(SourceError, match="is a file in one place, a folder in another"):
            open_archive(str(tmp_path / "a.tar"), tmp_path / "inside")


def test_what_follows_the_end_is_told(tmp_path: Path) -> None:
    config, window = {"config.json": b"{}"}, {"windows/g/w/metadata.json": b"{}"}
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(config) + b"rubbish" * 99)
    [note] = open_archive(str(path), tmp_path / "inside").notes
    assert "693 bytes of no use follow the archive's end" in note
    path.write_bytes(tar_of(config) + tar_of(window))  # GNU tar reads the first alone
    with pytest.raises(SourceError, match="another archive begins at byte 10,240"):
        open_archive(str(path), tmp_path / "inside")


def test_bytes_at_random_are_refused_and_nothing_else() -> None:
    rng = random.Random(1)
    seeds = [tar_of(SMALL), gzip.compress(tar_of(SMALL)), tar_of(SMALL, tarfile.PAX_FORMAT, x="é")]
    for _ in range(400):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found = ours(bytes(data[: rng.randrange(len(data))]))
        assert found is None or set(found) <= set(SMALL) or found


# ------------------------------------------------------------------------------------------- bombs


def pax_member(kind: bytes, records: dict[bytes, bytes], n_bytes: int = 0) -> bytes:
    """A pax header; with `n_bytes`, and the header of a member of so many bytes behind it."""
    lines = []
    for key, value in records.items():
        size = len(key) + len(value) + 3
        size += len(str(size + len(str(size))))
        lines.append(b"%d %s=%s\n" % (size, key, value))
    data = b"".join(lines)
    head, member = tarfile.TarInfo("pax"), tarfile.TarInfo("a")
    head.size, head.type, member.size = len(data), kind, n_bytes
    found = head.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)
    return found + member.tobuf(tarfile.GNU_FORMAT) if n_bytes else found


def test_what_no_member_needs_of_global_headers_takes_no_memory() -> None:
    stream = TarStream(
        [*(pax_member(b"g", {b"k%d" % k: b"x" * 500_000}) for k in range(100)), bytes(2 * BLOCK)]
    )
    tracemalloc.start()
    assert list(stream) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("first", [b"99999999999999\n", b"9" * 600, b"\n", b"0" * 4000])
def test_a_sparse_map_is_no_longer_than_its_parts(first: bytes) -> None:
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}
    endless = itertools.repeat(b"0" * (1 << 20), 3_000)
    with pytest.raises(TarError):
        list(TarStream(itertools.chain([pax_member(b"x", records, 1 << 33), first], endless)))


def test_parts_of_a_sparse_file_take_time_by_their_number() -> None:
    records = {b"GNU.sparse.size": b"9"} | {b"GNU.sparse.offset": b""}
    data = pax_member(b"x", records)
    part = b"22 GNU.sparse.offset=\n" * 45_000
    head = tarfile.TarInfo("pax")
    head.size, head.type = len(part), b"x"
    started = time.process_time()
    with pytest.raises(TarError):
        list(TarStream([data, head.tobuf(), part, bytes(-len(part) % BLOCK), bytes(2 * BLOCK)]))
    assert time.process_time() - started < 2


def test_an_xz_stream_takes_no_more_memory_than_it_may() -> None:
    small, large = (
        lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": size,
                                      "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}])
        for size in (1 << 16, 1 << 29)
    )  # fmt: skip
    assert next(decompressed(io.BytesIO(small).read)) == b"x"
    with pytest.raises(StreamError, match="Memory usage limit"):
        next(decompressed(io.BytesIO(large).read))
