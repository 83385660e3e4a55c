"""Rasters packed per layer and .npy rasters: equal to rslearn's, read once, and without it."""

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.storages import rewritten
from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.decoding import fallback
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.judge import read_window
from eval_ingest.decoding.numpy_raster import decode_numpy
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.decoding.sidecars import NumpySidecar
from eval_ingest.sources.local import LocalSource
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.oracle import rslearn_samples

WAYS = {"packed": {"per_layer": True}, "npy": {"numpy": True}}
WAYS["packed npy"] = WAYS["packed"] | WAYS["npy"]


@pytest.fixture
def no_rslearn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read through rslearn."""
    for name in ("read_raster", "read_features"):
        monkeypatch.setattr(fallback, name, None)


@pytest.mark.usefixtures("no_rslearn")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["ragged_segmentation", "three_modalities"])
def test_samples_equal_those_of_rslearn_and_the_copy_is_as_it_was(
    case: str, way: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    source = rewritten(written(case), tmp_path / "source", **WAYS[way])
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, case, max_invalid_fraction=0.5))
    expected = {(s.group, s.name): s for s in rslearn_samples(root / case, source / "model.yaml")}
    compared = 0
    for split in ("train", "val", "test"):
        dataset = EvalDataset(case, split, root=root, normalize=None, crop=None)
        for i in range(len(dataset)):
            group, name = dataset.window(i).split("/")
            compare(dataset, dataset[i], expected[group, name])
            compared += 1
            for path in (source / "windows" / group / name / "layers").rglob("*.*"):
                copied = root / case / path.relative_to(source)
                assert not copied.is_file() or copied.read_bytes() == path.read_bytes()
    assert compared == len(expected) > 8


def read_config(source: Path) -> ResolvedConfig:
    return make_job(source, source.parent / "unused").config


def test_a_packed_layer_is_read_once(written: Callable[[str], Path], tmp_path: Path) -> None:
    source = rewritten(written("segmentation"), tmp_path / "source", per_layer=True, numpy=True)
    config = read_config(source)
    reads: list[str] = []

    class Counted(LocalSource):
        def read(self, group: str, name: str, file: Any) -> bytes:
            reads.append(file.path)
            return super().read(group, name, file)

    found = Counted(str(source))
    window = next(iter(found.windows(found.groups(), config.layer_names)))
    sample = read_window(found, window, config)
    assert sample is not None and not sample.problems
    assert sample.modalities["sentinel2_l2a"].pixels.shape[2] == 3
    assert len(reads) == len(set(reads))
    assert sum(path.endswith("data.npy") for path in reads) == 2  # pixels and label


META = "window_storage_meta.json"


def dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        (META, lambda d: b"", "raster_unreadable"),
        (META, lambda d: b'{"group_timestep_counts": [1]}', "raster_bands"),
        (META, lambda _: b'{"group_timestep_counts": 3}', "raster_unreadable"),
        (META, lambda d: b'{"group_timestep_counts": [3]}', "raster_missing"),
        ("data.npy", lambda d: d[:-1], "raster_unreadable"),
        ("data.npy", lambda d: d.replace(b"'<u2'", b"'|O8'"), "raster_unreadable"),
        ("data.npy", lambda d: d.replace(b"'<u2'", b"'<u4'"), "raster_unreadable"),
        ("metadata.json", lambda d: d.replace(b"32630", b"32631"), "raster_grid"),
        ("metadata.json", lambda d: b"[]", "raster_unreadable"),
        ("metadata.json", lambda d: dumped(json.loads(d) | {"timestamps": None}), None),
    ],
)  # fmt: skip
def test_a_damaged_packed_layer_is_a_problem_of_its_window(
    name: str, change: Callable[[bytes], bytes], code: str | None,
    written: Callable[[str], Path], tmp_path: Path,
) -> None:  # fmt: skip
    source = rewritten(written("segmentation"), tmp_path / "source", per_layer=True, numpy=True)
    config = read_config(source)
    path = next((source / "windows").glob(f"*/*/layers/sentinel2/*/{name}"))
    path.write_bytes(change(path.read_bytes()))
    group, window = path.relative_to(source / "windows").parts[:2]
    opened = LocalSource(str(source))
    sample = read_window(opened, opened.window(group, window, config.layer_names), config)
    assert sample is not None
    assert [problem.code for problem in sample.problems] == ([code] if code else [])


# ------------------------------------------------------------------------------------ one raster


CRS = "EPSG:32630"
GRID = Grid(CRS, 10.0, -10.0, (100, -200, 107, -195))


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return stream.getvalue()


def sidecar(bounds: tuple[int, ...], **more: Any) -> bytes:
    projection = {"crs": CRS, "x_resolution": 10, "y_resolution": -10}
    return json.dumps({"projection": projection, "bounds": bounds, **more}).encode()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2", "int64"])
@pytest.mark.parametrize("nodata", [None, 0, 7, float("nan")])
@pytest.mark.parametrize(
    "bounds",
    [
        (100, -200, 107, -195),
        (98, -203, 110, -190),
        (103, -198, 120, -196),
        (90, -200, 103, -197),
    ],
)
def test_a_raster_on_other_bounds_equals_rslearns(
    dtype: str, nodata: float | None, bounds: tuple[int, int, int, int], tmp_path: Path
) -> None:
    from rasterio.crs import CRS as RasterioCRS
    from rslearn.utils.geometry import Projection
    from rslearn.utils.raster_array import RasterArray, RasterMetadata
    from rslearn.utils.raster_format import NumpyRasterFormat
    from upath import UPath

    if nodata != nodata and np.dtype(dtype).kind != "f":
        pytest.skip("such a type holds no NaN")
    rng = np.random.default_rng(0)
    shape = (3, 2, bounds[3] - bounds[1], bounds[2] - bounds[0])
    array = rng.integers(0, 100, shape).astype(dtype)
    if array.dtype.kind == "f":
        array[rng.random(shape) < 0.2] = np.nan
    if bounds[0] == 98:
        array = np.asfortranarray(array)
    times = [(datetime(2024, k, 1, tzinfo=UTC), datetime(2024, k, 9, tzinfo=UTC)) for k in (1, 2)]
    raster = RasterArray(array=array, timestamps=times, metadata=RasterMetadata(nodata))
    projection = Projection(RasterioCRS.from_string(CRS), 10, -10)
    path = UPath(tmp_path)
    NumpyRasterFormat().encode_raster(path, projection, bounds, raster)
    expected = NumpyRasterFormat().decode_raster(path, projection, GRID.bounds)
    stored = NumpySidecar.parse((tmp_path / "metadata.json").read_bytes())
    found = decode_numpy((tmp_path / "data.npy").read_bytes(), stored, GRID)
    assert found.dtype == expected.array.dtype.newbyteorder("=")
    assert np.array_equal(
        found, expected.array.transpose(2, 3, 1, 0), equal_nan=found.dtype.kind == "f"
    )
    assert stored.intervals == expected.timestamps


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (1,)


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    raw = text.encode()
    return b"\x93NUMPY" + version + len(raw).to_bytes(2, "little") + raw


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 a zip",
        b"\x93NUMPY\x01",
        b"\x93NUMPY\x09\x00\x10\x00",
        npy(np.array([Bomb()], object)),
        npy(np.zeros((2, 5, 7))),
        npy(np.zeros((1, 1, 5, 7), "M8[D]")),
        npy(np.zeros((1, 1, 5, 7), [("a", "<f4")])),
        npy(np.zeros((1, 1, 5, 6))),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000, 5, 7)}"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 1, 5, 7)}"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 1, 5, 7)}"),
        header("{'descr': '<f8', 'fortran_order': 0, 'shape': (1, 1, 5, 7)}"),
        header("__import__('os').system('false')"),
        header("(" * 3000),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 5, 7)}") + bytes(280),
        header("{'descr': '(2,)<f8', 'fortran_order': False, 'shape': (1, 1, 5, 7)}") + bytes(600),
        npy(np.zeros((1, 1, 5, 7)))[:-1],
        npy(np.zeros((0, 1, 5, 7))),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_and_nothing_is_unpickled(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_numpy(data, NumpySidecar.parse(sidecar(GRID.bounds)), GRID)
    assert caught.value.code in ("raster_unreadable", "raster_grid")


@pytest.mark.parametrize(
    "content",
    [
        sidecar((107, -200, 120, -195)),
        sidecar((-(2**62), -200, 2**62, -195)),
        sidecar(GRID.bounds).replace(b"32630", b"3857"),
        sidecar(GRID.bounds).replace(b'"x_resolution": 10', b'"x_resolution": 20'),
        sidecar(GRID.bounds).replace(b'"EPSG:32630"', b"7"),
        sidecar(GRID.bounds).replace(b'"crs"', b'"crz"'),
        sidecar((100, -200)),
        sidecar(GRID.bounds, timestamps=[["2024-01-01", "x"]]),
    ],
)
def test_a_raster_that_lies_elsewhere_is_refused(content: bytes) -> None:
    with pytest.raises(Unreadable):
        decode_numpy(npy(np.zeros((1, 1, 5, 7))), NumpySidecar.parse(content), GRID)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version: tuple[int, int]) -> None:
    array = np.arange(70, dtype="int16").reshape(1, 2, 5, 7)
    found = decode_numpy(npy(array, version), NumpySidecar.parse(sidecar(GRID.bounds)), GRID)
    assert np.array_equal(found, array.transpose(2, 3, 1, 0))
