"""Rasters of every form are what rslearn reads, of source and copy, or they are told by name."""

import random
from collections import Counter
from pathlib import Path

import pytest
import rasterio

from eval_ingest import EvalDataset, pipeline
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import rasters
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.factories import raster_of, segmentation
from eval_ingest_tests.support.oracle import rslearn_samples

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_every_form_is_read_as_rslearn_reads_it_or_refused(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    own, *others = rasters.grids()
    for k, (name, data) in enumerate(rasters.make_all()):
        for grid in (own, others[k % 2]):
            try:
                outcomes[rasters.compare({"geotiff.tif": data}, grid, tmp_path)] += 1
            except AssertionError as error:
                raise AssertionError(f"{name} on {grid.bounds}: {error}") from error
    assert outcomes["equal"] > 200
    assert outcomes.keys() == {"equal", "raster_grid", "raster_unreadable", "raster_dtype"}


def test_mixtures_of_them_too(tmp_path: Path) -> None:
    tries, outcomes = rasters.Rasters(tmp_path / "work"), Counter[str]()
    for seed in range(60):
        outcomes += tries.try_one(random.Random(seed))
    assert outcomes["equal"] > 20


FORMS: dict[str, tuple[dict[str, object], dict[int, rasters.Tag], dict[str, bytes]]] = {
    # how a raster is written again, which tags are changed, what lies beside it
    "as it was": ({}, {}, {}),
    "tiles and a predictor": ({"compress": "zstd", "predictor": 2, "tiled": True,
                               "blockxsize": 16, "blockysize": 16}, {}, {}),
    "band after band": ({"compress": "lerc", "interleave": "band"}, {}, {}),
    "big-endian BigTIFF": ({"compress": "deflate", "BIGTIFF": "YES", "ENDIANNESS": "BIG"}, {}, {}),
    "nodata that is none": ({}, {42113: (2, b"-1e400\0")}, {}),
    "a scale": ({}, {42112: (2, b'<GDALMetadata><Item name="SCALE" sample="0" role="scale">2'
                                b"</Item></GDALMetadata>\0")}, {}),
    "the last band is alpha": ({}, {338: (3, *[0] * 10, 2)}, {}),
    "statistics beside": ({}, {}, {"geotiff.tif.aux.xml":
                                   b'<PAMDataset><PAMRasterBand band="1"><Metadata>'
                                   b'<MDI key="STATISTICS_MEAN">3</MDI></Metadata>'
                                   b"</PAMRasterBand></PAMDataset>"}),
    "a mask beside": ({}, {}, {"geotiff.tif.msk": b"x"}),
    "a world file": ({}, {}, {"geotiff.tfw": b"10\n0\n0\n-10\n0\n0\n"}),
    "a nodata value beside": ({}, {}, {"geotiff.tif.aux.xml":
                                       b'<PAMDataset><PAMRasterBand band="1"><NoDataValue>5'
                                       b"</NoDataValue></PAMRasterBand></PAMDataset>"}),
    "a band less": ({}, {277: (3, 11)}, {}),
}  # fmt: skip


REFUSED = ("a mask beside", "a world file", "a nodata value beside", "a band less")


def test_the_source_the_copy_and_samples_agree(tmp_path: Path) -> None:
    source, root = segmentation(tmp_path, windows=2 * len(FORMS)), tmp_path / "root"
    windows = sorted((source / "windows").glob("*/*"))
    forms = {window.name: form for window, form in zip(windows, 2 * list(FORMS), strict=True)}
    for window in windows:
        _write_again(raster_of(window), *FORMS[forms[window.name]])
    index = pipeline.ingest(make_job(source, root, max_invalid_fraction=0.5))[0].value
    assert index.summary.reasons == {"raster_sidecar": 6, "raster_bands": 2}
    valid = [name for name, form in forms.items() if form not in REFUSED]
    by_copy, by_source = (
        {s.name: s for s in rslearn_samples(folder, source / "model.yaml", names=names)}
        for folder, names in ((root / "crops", None), (source, valid))
    )
    assert by_copy.keys() == by_source.keys() == set(valid)
    for split in ("train", "val", "test"):
        dataset = EvalDataset("crops", split, root=root, normalize=None, crop=None)
        for i in range(len(dataset)):
            name = dataset.window(i).split("/")[1]
            compare(dataset, dataset[i], by_copy[name])
            compare(dataset, dataset[i], by_source[name])
            valid.remove(name)
    assert not valid


def _write_again(
    path: Path, profile: dict[str, object], tags: dict[int, rasters.Tag], beside: dict[str, bytes]
) -> None:
    with rasterio.open(path) as raster:
        array, known = raster.read(), raster.profile
    known.pop("blockysize"), known.pop("tiled")
    with rasterio.open(path, "w", **known | profile) as raster:
        raster.write(array)
    path.write_bytes(rasters.retagged(path.read_bytes(), tags))
    for name, content in beside.items():
        path.with_name(name).write_bytes(content)
