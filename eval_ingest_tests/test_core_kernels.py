"""The compiled loops beside libtiff, numpy and torch, which do the same."""

import mmap
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval_ingest.core import kernels
from eval_ingest.core.kernels import Blocks, Runs
from eval_ingest.core.norm import measure

pytestmark = pytest.mark.skipif(not kernels.are_compiled(), reason="no C compiler")


def blocks_of(streams: list[bytes], height: int, row_bytes: int, rows: int) -> tuple[bytes, Blocks]:
    """A file that holds tables of offsets and sizes, and then the streams."""
    start = 8 * len(streams)
    offsets = [start + sum(map(len, streams[:k])) for k in range(len(streams))]
    head = struct.pack(f"<{len(streams)}I", *offsets)
    head += struct.pack(f"<{len(streams)}I", *map(len, streams))
    place = (0, 4, 4 * len(streams), 4)
    return head + b"".join(streams), Blocks(
        *place, len(streams), height, row_bytes, rows, row_bytes, False
    )


def tiff_of(stream: bytes, height: int, width: int) -> bytes:
    """A TIFF of bytes in one strip, as little as libtiff needs of it."""
    tags = {256: width, 257: height, 258: 8, 259: 5, 262: 1, 277: 1, 278: height, 279: len(stream)}
    tags[273] = 8 + 2 + 12 * 9 + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + stream


@st.composite
def byte_rows(draw: st.DrawFn) -> np.ndarray:
    """Bytes (H, W): from noise to long runs, from a few to many thousand."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 400))
    values = draw(st.sampled_from([1, 2, 3, 17, 256]))
    found = rng.integers(0, values, (height, width)).astype(np.uint8)
    if draw(st.booleans()):
        found = np.repeat(found, draw(st.integers(1, 40)), axis=1)[:, :width]
    return np.ascontiguousarray(found)


@given(byte_rows(), st.integers(1, 90))
@settings(max_examples=300, deadline=None)
def test_lzw_gives_back_what_was_encoded(array: np.ndarray, rows: int) -> None:
    height, width = array.shape
    streams = [
        imagecodecs.lzw_encode(array[k : k + rows].tobytes()) for k in range(0, height, rows)
    ]
    data, blocks = blocks_of(streams, height, width, rows)
    out = np.full_like(array, 99)
    assert kernels.decode_lzw(data, blocks, out)
    np.testing.assert_array_equal(out, array)


@given(byte_rows(), st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_lzw_is_refused_or_read_as_the_reference_does(
    array: np.ndarray, data: st.DataObject
) -> None:
    stream = bytearray(imagecodecs.lzw_encode(array.tobytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(stream) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            stream[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del stream[place:]
        else:
            stream[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        if not stream:
            stream = bytearray(1)
    file, blocks = blocks_of([bytes(stream)], array.shape[0], array.shape[1], array.shape[0])
    out = np.empty_like(array)
    if kernels.decode_lzw(file, blocks, out):
        reference = imagecodecs.tiff_decode(tiff_of(bytes(stream), *array.shape))
        np.testing.assert_array_equal(out, reference.reshape(out.shape))


@pytest.mark.parametrize(
    "change",
    [
        {"offsets_at": -1},
        {"offsets_at": 10**9},
        {"sizes_at": 2**62},
        {"offset_bytes": 3},
        {"n_blocks": 0},
        {"n_blocks": 3},
        {"height": 0},
        {"height": 11},
        {"row_bytes": 2**62},
        {"row_bytes": -7},
        {"block_height": 2**62},
        {"block_height": 0},
        {"block_row_bytes": 2**62},
        {"tiled": True, "block_row_bytes": 4},
    ],
)
def test_blocks_that_contradict_the_file_are_refused(change: dict[str, int]) -> None:
    array = np.arange(70, dtype=np.uint8).reshape(10, 7)
    data, blocks = blocks_of([imagecodecs.lzw_encode(array.tobytes())], 10, 7, 10)
    assert kernels.decode_lzw(data, blocks, np.empty_like(array))
    assert not kernels.decode_lzw(data, blocks._replace(**change), np.empty_like(array))


def test_blocks_beyond_the_file_are_refused() -> None:
    array = np.arange(70, dtype=np.uint8).reshape(10, 7)
    data, blocks = blocks_of([imagecodecs.lzw_encode(array.tobytes())], 10, 7, 10)
    out = np.empty_like(array)
    for at in (0, 4):  # its offset, then its size
        for value in (len(data) + 1, 2**32 - 1):
            damaged = bytearray(data)
            struct.pack_into("<I", damaged, at, value)
            assert not kernels.decode_lzw(bytes(damaged), blocks, out)


def test_tiles_are_put_together() -> None:
    array = np.random.default_rng(0).integers(0, 9, (20, 30)).astype(np.uint8)
    padded = np.zeros((32, 32), np.uint8)
    padded[:20, :30] = array
    tiles = [
        imagecodecs.lzw_encode(padded[y : y + 16, x : x + 16].tobytes())
        for y in (0, 16)
        for x in (0, 16)
    ]
    data, blocks = blocks_of(tiles, 20, 30, 16)
    out = np.empty_like(array)
    assert kernels.decode_lzw(data, blocks._replace(block_row_bytes=16, tiled=True), out)
    np.testing.assert_array_equal(out, array)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16]),
        st.tuples(st.integers(1, 300), st.integers(1, 14)),
    )
)
@settings(max_examples=200, deadline=None)
def test_moments_are_those_of_exact_arithmetic(rows: np.ndarray) -> None:
    found = kernels.measure(rows)
    assert found is not None
    wide = rows.astype(np.int64)
    expected = [
        np.full(rows.shape[1], len(rows)),
        wide.sum(axis=0),
        (wide**2).sum(axis=0),
        wide.min(axis=0),
        wide.max(axis=0),
    ]
    np.testing.assert_array_equal(found, np.array(expected, np.float64))


@pytest.mark.parametrize(("dtype", "value"), [(np.uint16, 65535), (np.int16, -32768)])
def test_moments_of_many_extreme_pixels_do_not_overflow(dtype: type, value: int) -> None:
    n = 200_003
    found = kernels.measure(np.full((n, 3), value, dtype))
    assert found is not None
    assert found[:, 0].tolist() == [n, float(n * value), float(n * value**2), value, value]


def test_moments_are_the_same_without_the_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 65535, (64, 64, 12, 12)).astype(np.uint16)
    fast = measure(pixels)
    monkeypatch.setattr(kernels, "_kernels", None)
    np.testing.assert_array_equal(measure(pixels), fast)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 11, 12])
def test_interleaving_puts_bands_in_order(dtype: str, bands: int) -> None:
    rng = np.random.default_rng(bands)
    rasters = [rng.integers(0, 200, (7, 5, 1, 12)).astype(dtype) for _ in range(4)]
    order = rng.permutation(12)[:bands].tolist()
    out = np.zeros((7, 5, 4, bands), dtype)
    assert kernels.interleave(rasters, order, out)
    np.testing.assert_array_equal(out, np.concatenate([r[..., order] for r in rasters], axis=2))


def test_rasters_that_differ_are_not_interleaved() -> None:
    like = np.zeros((4, 4, 1, 3), np.uint16)
    out = np.zeros((4, 4, 2, 3), np.uint16)
    gaps = np.zeros((4, 4, 1, 6), np.uint16)[..., ::2]
    two_steps = np.zeros((4, 4, 2, 3), np.uint16)
    for other in (like.astype(np.int16), like[:3], two_steps, gaps):
        assert not kernels.interleave([like, other], [0, 1, 2], out)
    with pytest.raises(ValueError, match="order names a band"):
        kernels.interleave([like, like], [0, 1, 3], out)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("part", [np.s_[:], np.s_[1:4, 2:7], np.s_[::2], np.s_[:, 3:4], np.s_[2:2]])
def test_scaling_equals_torch_to_the_last_bit(dtype: str, part: object) -> None:
    rng = np.random.default_rng(3)
    stored = rng.integers(0, 120, (6, 9, 5, 3)).astype(dtype)[part]
    factor, offset = (rng.normal(0, 3, 15).astype(np.float32) for _ in range(2))
    out = np.empty(stored.shape, np.float32)
    assert kernels.scale(stored, factor, offset, out)
    rows = torch.from_numpy(stored.astype(np.float32)).reshape(-1, 15)
    expected = torch.addcmul(torch.from_numpy(offset), rows, torch.from_numpy(factor))
    np.testing.assert_array_equal(out, expected.numpy().reshape(out.shape))
    assert kernels.scale(stored, None, None, out)
    np.testing.assert_array_equal(out, stored.astype(np.float32))


def test_what_scaling_does_not_know_is_left_to_others() -> None:
    out = np.empty((2, 3, 2, 2), np.float32)
    ones = np.ones(4, np.float32)
    assert not kernels.scale(np.zeros(out.shape, np.float64), ones, ones, out)
    assert not kernels.scale(np.zeros((2, 3, 2, 3), np.uint16), ones, ones, out)
    assert not kernels.scale(np.zeros(out.shape, np.uint16)[..., ::-1], ones, ones, out)
    assert not kernels.scale(np.zeros(out.shape, np.uint16), np.ones(5, np.float32), ones, out)


def runs_in(folder: Path, stored: np.ndarray, **changes: Any) -> Runs:
    """Rows 1 to 3 and columns 1 and 2 of samples 4, 0 and 2 of an array in a file."""
    (folder / "stored").write_bytes(bytes(64) + stored.tobytes())
    with open(folder / "stored", "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sample, row, pixel = stored.strides[:3]
    starts = 64 + np.array([4, 0, 2]) * sample + row + pixel
    items = 2 * pixel // stored.itemsize
    runs = Runs(memory, stored.dtype, starts, np.array([2, 0, 1]), 3, row, items)
    return runs._replace(**changes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("scaled", [True, False])
def test_gathering_equals_scaling_each_sample(dtype: str, scaled: bool, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 2, 3)).astype(dtype)
    factor, offset = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
    by = (factor, offset) if scaled else (None, None)
    found, expected = np.empty((2, 3, 3, 2, 2, 3), np.float32)
    kernels.gather(runs_in(tmp_path, stored), *by, found)
    for place, sample in ((2, 4), (0, 0), (1, 2)):
        assert kernels.scale(stored[sample, 1:4, 1:3], *by, expected[place])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_gathering_as_is_copies(dtype: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-99, 99, (5, 6, 7)).astype(dtype)
    found = np.empty((3, 3, 2), dtype)
    kernels.gather_as_is(runs_in(tmp_path, stored), found)
    assert np.array_equal(found, stored[[0, 2, 4], 1:4, 1:3])


@pytest.mark.parametrize(
    "changes",
    [
        {"starts": np.array([64, -2, 64])},
        {"starts": np.array([64, 64, 65])},
        {"starts": np.array([64, 64, 64 + 5 * 6 * 7 * 6 * 2])},
        {"starts": np.array([64, 1 << 62, 64])},
        {"starts": np.array([64, 64])},
        {"places": np.array([0, 1, 3])},
        {"places": np.array([0, -1, 2])},
        {"rows": 1 << 40},
        {"row_bytes": 1 << 50},
        {"row_bytes": 0},
        {"row_bytes": 3},
        {"items": 1 << 60},
        {"items": 0},
    ],
)
def test_what_lies_outside_the_file_or_the_batch_is_not_gathered(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    stored = np.ones((5, 6, 7, 2, 3), np.uint16)
    out = np.zeros((3, 3, 2, 2, 3), np.float32)
    with pytest.raises(ValueError, match="outside"):
        kernels.gather(runs_in(tmp_path, stored, **changes), None, None, out)
    assert not out.any()


def test_what_gathering_knows_is_told_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.can_gather({"uint8", "float32"}, as_is=False)
    assert not kernels.can_gather({"uint8", "float64"}, as_is=False)
    assert kernels.can_gather({"int8"}, as_is=True)
    assert not kernels.can_gather({"int8", "int16"}, as_is=True)
    monkeypatch.setattr(kernels, "_gather", None)
    assert not kernels.can_gather({"uint8"}, as_is=False)
    assert not kernels.can_gather({"uint8"}, as_is=True)
