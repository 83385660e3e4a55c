"""GeoTIFF bytes to pixels: every value and type against rslearn's own GeotiffRasterFormat."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rslearn.utils.geometry import Projection
from rslearn.utils.raster_array import RasterArray, RasterMetadata
from rslearn.utils.raster_format import GeotiffRasterFormat
from upath import UPath

from eval_ingest.decoding import geotiff as decode
from eval_ingest.decoding import geotiff_header as geotiff
from eval_ingest.decoding.geotiff import decode_geotiff
from eval_ingest.decoding.geotiff_header import read_header
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.problems import Unreadable
from eval_ingest_tests.support.geotiffs import GRID, UTM, Array, pixels, write


def by_rslearn(data: bytes, grid: Grid, folder: Path) -> Array:
    """(bands, H, W) as rslearn reads it."""
    (folder / "geotiff.tif").write_bytes(data)
    crs = rasterio.crs.CRS.from_string(grid.crs)
    projection = Projection(crs, grid.x_resolution, grid.y_resolution)
    raster = GeotiffRasterFormat().decode_raster(
        UPath(folder), projection, grid.bounds, resampling=Resampling.nearest
    )
    height, width = raster.array.shape[2:]
    return raster.array.reshape(-1, height, width)


def assert_same(data: bytes, grid: Grid, folder: Path) -> Array:
    found, header = decode_geotiff(data, grid)
    expected = np.moveaxis(by_rslearn(data, grid, folder), 0, -1)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert header.dtype == found.dtype.name
    return found


@pytest.fixture
def no_gdal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the fast path wasn't taken")

    monkeypatch.setattr(decode, "warp", refuse)
    apart = decode.isolated.run
    monkeypatch.setattr(
        decode.isolated,
        "run",
        lambda f, *rest, **more: refuse() if f is refuse else apart(f, *rest, **more),
    )


@pytest.fixture
def gdal_calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    calls: list[bytes] = []
    warp = decode.warp

    def count(data: bytes, *rest: Any) -> Any:
        calls.append(data)
        return warp(data, *rest)

    def count_isolated(function: Any, data: Any, *rest: Any, **more: Any) -> Any:
        if function is decode.decode_shared:
            return isolated_run(function, data, *rest, **more)
        calls.append(data)
        return isolated_run(warp, data, *rest)

    isolated_run = decode.isolated.run
    monkeypatch.setattr(decode.isolated, "run", count_isolated)
    monkeypatch.setattr(decode, "warp", count)
    return calls


DTYPES = ("uint8", "uint16", "int16", "int32", "uint32", "float32", "float64", "int64", "uint64")


@pytest.mark.parametrize("bands", [1, 2, 3, 12, 144])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_and_band_counts(dtype: str, bands: int, no_gdal: None, tmp_path: Path) -> None:
    array = pixels(bands, dtype)
    found = assert_same(write(array), GRID, tmp_path)
    np.testing.assert_array_equal(found, np.moveaxis(array, 0, -1))
    assert found.flags.c_contiguous


def test_rasters_that_rslearn_wrote(no_gdal: None, tmp_path: Path) -> None:
    array = pixels(144, "uint16").reshape(12, 12, 64, 64)
    projection = Projection(rasterio.crs.CRS.from_string(UTM), 10, -10)
    raster = RasterArray(array=array, metadata=RasterMetadata(nodata_value=0))
    GeotiffRasterFormat().encode_raster(UPath(tmp_path), projection, GRID.bounds, raster)
    assert_same((tmp_path / "geotiff.tif").read_bytes(), GRID, tmp_path)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("tile", [None, 16, 48])
@pytest.mark.parametrize("compress", ["none", "lzw", "deflate", "zstd", "packbits"])
def test_compressions_and_layouts(
    compress: str, tile: int | None, interleave: str, no_gdal: None, tmp_path: Path
) -> None:
    profile: dict[str, Any] = {"compress": compress, "interleave": interleave}
    if tile:
        profile |= {"tiled": True, "blockxsize": tile, "blockysize": 32}
    array = pixels(5, "int16", 61, 47)
    grid = replace(GRID, bounds=(50_000, -100_000, 50_047, -99_939))
    forms: list[dict[str, Any]] = [{}, {"BIGTIFF": "YES"}]
    for form in [*forms, *({"ENDIANNESS": "BIG"} | form for form in forms)]:
        assert_same(write(array, **profile, **form), grid, tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("compress", ["lzw", "deflate", "zstd"])
def test_predictors(dtype: str, compress: str, no_gdal: None, tmp_path: Path) -> None:
    predictor = 3 if dtype[0] == "f" else 2
    for interleave, order in itertools.product(("pixel", "band"), ("LITTLE", "BIG")):
        data = write(
            pixels(3, dtype),
            compress=compress,
            predictor=predictor,
            interleave=interleave,
            ENDIANNESS=order,
        )
        assert_same(data, GRID, tmp_path)


@pytest.mark.parametrize("compress", ["lerc", "lzma", "jpeg", "webp"])
def test_unusual_compressions_go_to_gdal(
    compress: str, gdal_calls: list[bytes], tmp_path: Path
) -> None:
    try:
        data = write(pixels(3, "uint8"), compress=compress)
    except rasterio.errors.RasterioError:
        pytest.skip(f"this GDAL has no {compress}")
    assert_same(data, GRID, tmp_path)
    assert gdal_calls


def test_int8_stays_int8(tmp_path: Path) -> None:
    # rasterio's WarpedVRT hands int8 out as int16; the values are the same.
    array = pixels(3, "int8")
    for data in (write(array), write(array, compress="lzma")):
        found, header = decode_geotiff(data, GRID)
        assert found.dtype == header.dtype == "int8"
        np.testing.assert_array_equal(np.moveaxis(found, -1, 0), by_rslearn(data, GRID, tmp_path))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_alpha_masks_as_gdal_masks(interleave: str, no_gdal: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    array = rng.integers(0, 256, (4, 64, 64), dtype=np.uint8)
    array[3][rng.random((64, 64)) < 0.3] = 0
    data = write(array, interleave=interleave)
    assert read_header(data).alpha
    found = assert_same(data, GRID, tmp_path)
    assert not np.array_equal(found, np.moveaxis(array, 0, -1))
    larger = replace(GRID, bounds=(49_999, -100_001, 50_065, -99_935))
    assert_same(data, larger, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "profile"),
    [
        ("uint16", {"alpha": "yes", "count": 2}),
        ("uint8", {"alpha": "premultiplied"}),
        ("uint8", {"photometric": "CMYK"}),
        ("uint8", {"photometric": "MINISWHITE", "count": 1}),
        ("uint8", {"NBITS": 4, "count": 1}),
        ("uint8", {"NBITS": 1, "count": 1}),
        ("uint8", {"compress": "jpeg", "photometric": "YCBCR", "count": 3}),
        ("complex64", {"count": 1}),
    ],
)
def test_what_pixels_mean_is_left_to_gdal(
    dtype: str, profile: dict[str, Any], gdal_calls: list[bytes], tmp_path: Path
) -> None:
    array = np.abs(pixels(profile.get("count", 4), "uint8") % 2).astype(dtype)
    data = write(array, **profile)
    assert not read_header(data).simple
    assert_same(data, GRID, tmp_path)
    assert gdal_calls


def test_palettes_masks_and_overviews_are_left_to_gdal(
    gdal_calls: list[bytes], tmp_path: Path
) -> None:
    array = pixels(1, "uint8") % 4
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": 64, "height": 64}
    profile |= {"crs": UTM, "transform": Affine(10, 0, 500_000, 0, -10, 1_000_000)}
    for kind in ("palette", "mask", "overview"):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
            with memory.open(**profile) as raster:
                raster.write(array)
                if kind == "palette":
                    raster.write_colormap(1, {1: (255, 0, 0), 2: (0, 255, 0)})
                if kind == "mask":
                    raster.write_mask(array[0] > 1)
                if kind == "overview":
                    raster.build_overviews([2], Resampling.nearest)
            data = bytes(memory.read())
        assert not read_header(data).simple
        assert_same(data, GRID, tmp_path)
    assert len(gdal_calls) == 3


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", 0), ("uint8", 255), ("uint16", 0), ("int16", -9999), ("int32", -9999),
     ("uint32", 0), ("float32", -9999), ("float32", float("nan")), ("float64", float("nan")),
     ("float32", float(np.finfo("float32").min)), ("float32", -9999.9), ("int64", 0)],
)  # fmt: skip
def test_nodata_keeps_fills_and_is_moved_as_by_gdal(
    dtype: str, nodata: float, bands: int, tmp_path: Path
) -> None:
    array = pixels(bands, dtype)
    array[np.random.default_rng(1).random(array.shape) < 0.3] = nodata
    array[:, 10:20, 10:20] = nodata
    data = write(array, nodata=nodata)
    np.testing.assert_equal(read_header(data).nodata, nodata)
    assert_same(data, GRID, tmp_path)
    assert_same(data, replace(GRID, bounds=(49_999, -100_001, 50_063, -99_935)), tmp_path)


def test_nan_and_infinity_are_values(no_gdal: None, tmp_path: Path) -> None:
    array = pixels(3, "float32")
    array[0, :5], array[1, 5:9], array[2, 7] = np.nan, np.inf, -np.inf
    assert_same(write(array), GRID, tmp_path)
    assert_same(write(array, nodata=0), GRID, tmp_path)


def test_nodata_outside_of_the_type_is_rslearns_business(tmp_path: Path) -> None:
    data = write(pixels(1, "uint16"), nodata=65535).replace(b"65535\0", b"-9999\0")
    assert read_header(data).nodata == -9999
    assert not read_header(data).simple
    assert_same(data, GRID, tmp_path)


@pytest.mark.parametrize("sides", [(-1, -1, -1, -1), (1, 1, 1, 1), (-1, 0, 1, 0), (5, 9, -7, -3)])
@pytest.mark.parametrize("profile", [{}, {"nodata": 7}, {"interleave": "band"}])
def test_windows_shifted_by_whole_pixels(
    sides: tuple[int, ...], profile: dict[str, Any], no_gdal: None, tmp_path: Path
) -> None:
    bounds = tuple(a + b for a, b in zip(GRID.bounds, sides, strict=True))
    data = write(pixels(3, "int16"), **profile)
    found = assert_same(data, replace(GRID, bounds=bounds), tmp_path)  # type: ignore[arg-type]
    assert found.base is None or profile


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_rasters_coarser_than_the_window(factor: int, no_gdal: None, tmp_path: Path) -> None:
    # zoom_offset -1, -2, -3, and the same with a window that begins within a raster pixel
    x, y, size = 50_000 // factor, -100_000 // factor, 64 // factor + 2
    coarse = Grid(UTM, 10.0 * factor, -10.0 * factor, (x, y, x + size, y + size))
    data = write(pixels(3, "uint16", size, size), coarse)
    assert_same(data, GRID, tmp_path)
    assert_same(data, replace(GRID, bounds=(50_001, -99_999, 50_060, -99_950)), tmp_path)


@pytest.mark.parametrize(("factor", "fast"), [(2, False), (3, True), (4, False), (5, True)])
def test_rasters_finer_than_the_window(
    factor: int, fast: bool, gdal_calls: list[bytes], tmp_path: Path
) -> None:
    # With an even factor a pixel's centre is on an edge, and only GDAL knows how it rounds.
    bounds = tuple(bound * factor for bound in GRID.bounds)
    fine = Grid(UTM, 10.0 / factor, -10.0 / factor, bounds)  # type: ignore[arg-type]
    data = write(pixels(2, "uint8", 64 * factor, 64 * factor), fine)
    assert_same(data, GRID, tmp_path)
    assert bool(gdal_calls) is not fast


@given(
    factor=st.floats(0.3, 3),
    shift=st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    resolution=st.sampled_from([10.0, 1 / 3, 0.0001]),
)
@settings(max_examples=60, deadline=None)
def test_any_resolution_and_offset(
    tmp_path_factory: pytest.TempPathFactory,
    factor: float,
    shift: tuple[float, float],
    resolution: float,
) -> None:
    crs = "EPSG:4326" if resolution == 0.0001 else UTM
    raster = Grid(crs, resolution, -resolution, (5000, -4000, 5040, -3970))
    place = Affine(
        resolution,
        0,
        (5000 + shift[0]) * resolution,
        0,
        -resolution,
        (4000 + shift[1]) * resolution,
    )
    data = write(pixels(2, "uint16", 30, 40), raster, place)
    bounds = tuple(round(bound / factor) for bound in raster.bounds)
    window = Grid(crs, resolution * factor, -resolution * factor, bounds)  # type: ignore[arg-type]
    try:
        found, _ = decode_geotiff(data, window)
    except Unreadable as problem:
        assert problem.code == "raster_grid"
    else:
        expected = by_rslearn(data, window, tmp_path_factory.mktemp("any"))
        np.testing.assert_array_equal(np.moveaxis(found, -1, 0), expected)


def test_degrees_and_wkt_take_the_fast_path(no_gdal: None, tmp_path: Path) -> None:
    degrees = Grid("EPSG:4326", 0.0001, -0.0001, (123_457, -512_345, 123_520, -512_300))
    assert_same(write(pixels(3, "uint16", 45, 63), degrees), degrees, tmp_path)
    for code in (UTM, "EPSG:3857"):
        data = write(pixels(1, "uint8"), replace(GRID, crs=code))
        wkt = rasterio.crs.CRS.from_string(code).to_wkt()
        assert_same(data, replace(GRID, crs=wkt), tmp_path)


def test_a_wkt_without_a_code_goes_to_gdal(gdal_calls: list[bytes], tmp_path: Path) -> None:
    crs = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=7 +datum=WGS84 +units=m")
    grid = Grid(crs.to_wkt(), 10.0, -10.0, (5, 6, 69, 70))
    assert_same(write(pixels(2, "uint8"), grid), grid, tmp_path)
    assert gdal_calls


def test_another_crs_is_warped(tmp_path: Path) -> None:
    data = write(pixels(3, "uint16", 80, 80), replace(GRID, bounds=(49_992, -100_008, 0, 0)))
    degrees = Grid("EPSG:4326", 0.0001, -0.0001, (-30_000, -90_444, -29_950, -90_400))
    assert_same(data, degrees, tmp_path)
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(data, replace(degrees, bounds=(-30_100, -90_444, -29_950, -90_400)))
    assert caught.value.code == "raster_grid"
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(data, replace(degrees, crs="EPSG:32756"))
    assert caught.value.code == "raster_grid"


def test_rotated_south_up_and_point_rasters_are_warped(
    gdal_calls: list[bytes], tmp_path: Path
) -> None:
    array = pixels(2, "uint8", 90, 90)
    rotated = Affine(10, 0.4, 499_870, 0.4, -10, 1_000_130)
    assert_same(write(array, transform=rotated), GRID, tmp_path)
    upwards = Affine(10, 0, 499_870, 0, 10, 999_300)
    assert_same(write(array, transform=upwards), GRID, tmp_path)
    south_up = Grid(UTM, 10.0, 10.0, (49_990, 99_940, 50_050, 100_000))
    assert_same(write(array, transform=upwards), south_up, tmp_path)
    file = tmp_path / "points.tif"
    file.write_bytes(write(array, replace(GRID, bounds=(49_990, -100_010, 0, 0))))
    with rasterio.open(file, "r+") as raster:
        raster.update_tags(AREA_OR_POINT="Point")
    points = file.read_bytes()
    assert read_header(points).epsg is None
    assert_same(points, GRID, tmp_path)
    assert len(gdal_calls) == 4


def test_a_raster_far_larger_than_the_window_is_read_in_part(
    gdal_calls: list[bytes], tmp_path: Path
) -> None:
    large = replace(GRID, bounds=(49_000, -101_000, 0, 0))
    data = write(
        np.zeros((1, 2100, 2100), np.uint8), large, tiled=True, blockxsize=256, blockysize=256
    )
    assert_same(data, GRID, tmp_path)
    assert len(gdal_calls) == 1


@pytest.mark.parametrize("profile", [{}, {"compress": "lzma"}])
@pytest.mark.parametrize(
    "bounds",
    [
        (49_998, -100_000, 50_064, -99_936),
        (50_000, -100_000, 50_066, -99_936),
        (50_000, -100_002, 50_064, -99_936),
        (50_000, -100_000, 50_064, -99_934),
        (50_064, -100_000, 50_128, -99_936),
        (0, 0, 64, 64),
        (0, 0, 100_000, 1_000_000),
    ],
)
def test_a_raster_that_does_not_cover_the_window_is_a_problem(
    bounds: tuple[int, int, int, int], profile: dict[str, Any]
) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(write(pixels(1, "uint8"), **profile), replace(GRID, bounds=bounds))
    assert caught.value.code in ("raster_grid", "window_too_large")


def test_a_raster_without_georeference_is_a_problem() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        data = write(pixels(1, "uint8"), transform=Affine.identity(), crs=None)
    with pytest.raises(Unreadable) as caught:
        decode_geotiff(data, GRID)
    assert caught.value.code == "raster_grid"


def test_sparse_files_are_filled_as_gdal_fills_them(tmp_path: Path) -> None:
    array = pixels(1, "uint8")
    array[:, :32] = 0
    profiles: list[dict[str, Any]] = [{}, {"nodata": 0}, {"nodata": 9}]
    for profile in profiles:
        data = write(array, SPARSE_OK=True, tiled=True, blockxsize=32, blockysize=32, **profile)
        assert_same(data, GRID, tmp_path)


def test_a_header_is_not_taken_for_that_of_a_similar_file(tmp_path: Path) -> None:
    array = pixels(3, "uint16")
    one = write(array, nodata=0)
    files = [one, write(array, nodata=1), one.replace(b"UTM zone 30N", b"UTM zone 31N")]
    elsewhere = replace(GRID, bounds=(50_001, -100_000, 50_065, -99_936))
    files += [
        write(array, elsewhere, nodata=0),
        write(array, replace(GRID, crs="EPSG:32631"), nodata=0),
    ]
    expected = []
    for data in files:
        geotiff._heads.clear()
        expected.append(read_header(data))
    for order in itertools.permutations(range(len(files))):
        assert [read_header(files[i]) for i in order] == [expected[i] for i in order]
    assert expected[3].origin == (500_010, 1_000_000)
    assert expected[4].epsg == 32631


def test_threads_get_the_same_pixels() -> None:
    files = [write(pixels(4, "uint16", seed=seed)) for seed in range(20)]
    expected = [decode_geotiff(data, GRID)[0] for data in files]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda data: decode_geotiff(data, GRID)[0], files * 5)
        for one, other in zip(found, expected * 5, strict=True):
            np.testing.assert_array_equal(one, other)
