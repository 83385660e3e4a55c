"""Damaged GeoTIFFs give pixels or a problem, never a crash, a hang or zeros."""

import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rslearn.utils.raster_format import get_bandset_dirname

from eval_ingest.decoding import geotiff_header as geotiff
from eval_ingest.decoding.geotiff import decode_geotiff
from eval_ingest.decoding.geotiff_header import read_header
from eval_ingest.decoding.grid import band_set_dirname
from eval_ingest.decoding.problems import Unreadable
from eval_ingest_tests.support.geotiffs import GRID, Array, pixels, write

SMALL = replace(GRID, bounds=(50_000, -100_000, 50_032, -99_968))


def _damageable() -> list[bytes]:
    profiles: list[tuple[str, int, dict[str, Any]]] = [
        ("uint16", 12, {}),
        ("uint8", 1, {}),
        ("uint8", 4, {"compress": "packbits"}),
        ("float32", 3, {"compress": "zstd", "predictor": 3}),
        ("uint16", 3, {"compress": "deflate", "predictor": 2, "interleave": "band"}),
        ("uint16", 2, {"compress": "none", "BIGTIFF": "YES"}),
        ("int16", 3, {"ENDIANNESS": "BIG", "nodata": -9999, "predictor": 2}),
        ("uint8", 3, {"tiled": True, "blockxsize": 16, "blockysize": 16}),
        ("uint8", 1, {"compress": "lzma"}),
    ]
    return [
        write(pixels(bands, dtype, 32, 32), SMALL, **profile) for dtype, bands, profile in profiles
    ]


def decode_or_problem(data: bytes) -> Array | None:
    """Pixels of the right shape, or None for a Unreadable; anything else fails the test."""
    try:
        found, _ = decode_geotiff(data, SMALL)
    except Unreadable as problem:
        assert problem.code in ("raster_unreadable", "raster_grid", "window_too_large")
        assert 0 < len(problem.detail) < 250
        return None
    assert found.shape[:2] == (32, 32)
    return found


def test_a_truncated_file_is_never_read() -> None:
    for data in _damageable():
        step = max(1, len(data) // 60)
        for length in [*range(0, len(data), step), *range(40), len(data) - 1]:
            assert decode_or_problem(data[:length]) is None, (length, len(data))


def test_lost_blocks_are_never_read_as_zeros() -> None:
    data = bytearray(write(pixels(12, "uint16")))
    at = struct.unpack_from("<I", data, 4)[0]
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] in (273, 279):
            damaged = data.copy()
            (n,) = struct.unpack_from("<I", data, entry + 4)
            struct.pack_into("<I", damaged, entry + 4, n - 1)
            with pytest.raises(Unreadable, match="raster_unreadable"):
                decode_geotiff(bytes(damaged), GRID)
            struct.pack_into("<I", damaged, entry + 4, n)
            (table,) = struct.unpack_from("<I", data, entry + 8)
            struct.pack_into("<I", damaged, table + 4 * (n - 1), len(data))
            with pytest.raises(Unreadable, match="raster_unreadable"):
                decode_geotiff(bytes(damaged), GRID)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_mutated_bytes_give_pixels_or_a_problem() -> None:
    rng = np.random.default_rng(7)
    files = _damageable()
    outcomes = {True: 0, False: 0}
    slowest = 0.0
    for i in range(2000):
        data = bytearray(files[i % len(files)])
        # half of them in the header, where every byte means something
        end = min(700, len(data)) if i % 2 else len(data)
        for place in rng.integers(0, end, rng.integers(1, 5)):
            data[place] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
        started = time.perf_counter()
        outcomes[decode_or_problem(bytes(data)) is None] += 1
        slowest = max(slowest, time.perf_counter() - started)
    assert min(outcomes.values()) > 200
    assert slowest < 5


def test_damaged_deflate_gives_the_same_result_each_time() -> None:
    # libtiff leaves the last pixels of such a block unset
    rng = np.random.default_rng(2)
    data = write(pixels(3, "uint16"), compress="deflate", predictor=2)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(600, len(data))] = rng.integers(256)
        results = set()
        for _ in range(3):
            try:
                results.add(decode_geotiff(bytes(damaged), GRID)[0].tobytes())
            except Unreadable:
                results.add(b"")
        assert len(results) == 1


HEADS = st.sampled_from([b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b""])


@given(st.builds(bytes.__add__, HEADS, st.binary(max_size=400)))
@settings(max_examples=1000, deadline=None)
def test_a_header_is_read_or_refused(data: bytes) -> None:
    try:
        read_header(data)
    except Unreadable as problem:
        assert problem.code == "raster_unreadable"


@st.composite
def directories(draw: st.DrawFn) -> bytes:
    """TIFFs with a directory of the right form and any content."""
    order, big = draw(st.sampled_from("<>")), draw(st.booleans())
    number = "Q" if big else "I"
    tags = draw(st.lists(st.sampled_from(sorted(geotiff._KNOWN_TAGS)), unique=True, max_size=20))
    values = st.one_of(st.integers(0, 600), st.integers(0, 2 ** (64 if big else 32) - 1))
    head = struct.pack(order + "2sHHHQ", b"II" if order == "<" else b"MM", 43, 8, 0, 16)
    if not big:
        head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    entries = [
        struct.pack(f"{order}HH{number}{number}", tag, draw(st.sampled_from([1, 2, 3, 4, 12, 16])),
                    draw(values), draw(values))
        for tag in sorted(tags)
    ]  # fmt: skip
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + count + b"".join(entries) + struct.pack(order + number, 0) + draw(st.binary())


@given(directories())
@settings(max_examples=300, deadline=None)
def test_any_directory_is_read_or_refused(data: bytes) -> None:
    try:
        read_header(data)
    except Unreadable as problem:
        assert problem.code == "raster_unreadable"


def _tiff(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """A little-endian TIFF of these (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4) + tail


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"II*\0",
        lambda: b"<VRTDataset><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>",
        lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
        lambda: _tiff((256, 4, 1, 0), (257, 4, 1, 4)),
        lambda: _tiff((256, 4, 1, 4), (257, 4, 1, 4)),
        lambda: _tiff((256, 4, 2**31, 4)),
        lambda: _tiff((256, 12, 1, 30), tail=bytes(30)),
        # sixteen exabytes of pixels, and a bomb of two gigabytes
        lambda: _tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), (258, 3, 1, 8),
                      (273, 4, 1, 8), (279, 4, 1, 8)),
        lambda: _tiff((256, 4, 1, 46_000), (257, 4, 1, 46_000), (258, 3, 1, 8), (259, 3, 1, 5),
                      (273, 4, 1, 8), (279, 4, 1, 8)),
    ],
)  # fmt: skip
def test_hopeless_files_are_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(make(), GRID)
    assert caught.value.code == "raster_unreadable"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=20))
def test_band_set_folders_are_named_as_rslearn_names_them(bands: list[str]) -> None:
    assert band_set_dirname(tuple(bands)) == get_bandset_dirname(bands)
