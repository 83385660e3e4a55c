"""A source is data: nothing in it runs, is opened, or fetched, neither here nor from the copy."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rasterio
from shapely.errors import ShapelyError

from eval_ingest import pipeline
from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.crs_text import cites_others, is_crs_text
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.decoding.judge import read_window
from eval_ingest.errors import EvalIngestError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest.sources.local import LocalSource
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import poison
from eval_ingest_tests.support.factories import first_window, raster_of
from eval_ingest_tests.support.oracle import rslearn_samples

Copied = Callable[[str], Path]
SPEC = DatasetSpec.parse({"name": "crops", "source": "x"}, "test")


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[poison.Watch]:
    monkeypatch.setenv("EVAL_INGEST_TEST_SECRET", "s3cr3tvalue")
    with poison.watched(tmp_path / "outside") as watch:
        yield watch


def _words(watch: poison.Watch) -> tuple[str, ...]:
    return ("subprocess", "evil_module", "http:", "vsicurl", str(watch.secret), "s3cr3tvalue")


# ------------------------------------------------------------------------------------ config.json


FORMATS = (
    {"class_path": "rslearn.utils.raster_format.GeotiffRasterFormat",
     "init_args": {"block_size": 64, "geotiff_options": {"compress": "zstd"}}},
    {"class_path": "rslearn.utils.raster_format.ImageTileRasterFormat",
     "init_args": {"format": "png", "tile_size": 64}},
    {"name": "single_image", "format": "png"},
)  # fmt: skip
"""More of config.json than the factories write: every form that files may be stored in."""


def test_no_field_of_config_json_is_more_than_data(written: Copied, watch: poison.Watch) -> None:
    source = written("vector_classification")
    content = json.loads((source / "config.json").read_text())
    formats = list(FORMATS)
    for band_set in content["layers"]["sentinel2"]["band_sets"]:
        band_set["format"] = formats.pop()
        band_set["remap"] = {"class_path": "rslearn.dataset.remap.LinearRemapper"}
    geojson = "rslearn.utils.vector_format.GeojsonVectorFormat"
    content["layers"]["label"]["vector_format"] = {
        "class_path": geojson, "init_args": {"coordinate_mode": "pixel"},
    }  # fmt: skip
    package = "rslearn.dataset"
    content |= {
        "storage": {"class_path": f"{package}.storage.file.FileWindowStorageFactory",
                    "init_args": {}},
        "window_data_storage": {
            "class_path": f"{package}.window_data_storage.per_layer.PerLayerStorageFactory",
            "init_args": {},
        },
        "tile_store": {"class_path": "rslearn.tile_stores.default.DefaultTileStore"},
    }  # fmt: skip
    model = (source / "model.yaml").read_text()
    tried = refused = 0
    for path in [(), *_some(list(poison.places(content)))]:
        for kind, value in watch.values():
            for change in (poison.poisoned, poison.added):
                if not path and change is poison.poisoned:
                    continue
                if change is poison.added and kind != "class_path":
                    continue
                tried += 1
                text = json.dumps(change(content, path, value))
                try:
                    config = resolve(ConfigFiles(text, model), SPEC)
                except EvalIngestError:
                    refused += 1
                    continue
                for holder in poison.class_paths(rslearn_config(config)):
                    assert holder["class_path"].startswith("rslearn."), (path, holder)
                    arguments = holder.get("init_args", {})
                    assert set(arguments) <= {"format", "tile_size"}
                    assert all(isinstance(v, str | int) for v in arguments.values())
                    assert not any(word in json.dumps(holder) for word in _words(watch))
    assert tried > 300
    assert 0 < refused < tried


@pytest.mark.parametrize("storage", ["", "per_layer.PerLayerStorageFactory"])
def test_a_program_in_a_formats_arguments_never_runs_nor_is_published(
    storage: str, copied: Copied, tmp_path: Path, watch: poison.Watch
) -> None:
    source = copied("segmentation")
    content = json.loads((source / "config.json").read_text())
    value = dict(watch.values())["class_path"]
    for layer in content["layers"].values():
        for band_set in layer.get("band_sets", []):
            band_set["format"] = {
                "class_path": "rslearn.utils.raster_format.GeotiffRasterFormat",
                "init_args": {"geotiff_options": {"x": value}},
            }
    if storage:
        content["window_data_storage"] = {
            "class_path": f"rslearn.dataset.window_data_storage.{storage}"
        }
    (source / "config.json").write_text(json.dumps(content))
    root = tmp_path / "root"
    try:
        pipeline.ingest(make_job(source, root))
    except EvalIngestError:
        assert storage  # its rasters have no window_storage_meta.json
        return
    published = json.loads((root / "crops" / "config.json").read_text())
    assert "subprocess" not in json.dumps(published)
    assert len(list(rslearn_samples(root / "crops"))) == 24


# -------------------------------------------------------------------------------- a window's files

FILES = {
    "segmentation": ("metadata.json", "items.json", "layers/sentinel2/*/metadata.json"),
    "vector_classification": ("metadata.json", "items.json", "layers/label/data.geojson"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_no_field_of_a_windows_files_is_more_than_data(
    case: str, copied: Copied, watch: poison.Watch
) -> None:
    dataset = copied(case)
    job = make_job(dataset, dataset.parent / "root", max_invalid_fraction=1.0)
    source = LocalSource(str(dataset))
    group, name, _ = next(iter(source.names(source.groups())))
    window = dataset / "windows" / group / name
    # As in the copy: its own configuration has forms that rslearn has given up.
    (dataset / "config.json").write_text(json.dumps(rslearn_config(job.config)))
    outcomes = {True: 0, False: 0}
    for pattern in FILES[case]:
        for file in sorted(window.glob(pattern))[:1]:
            whole = file.read_text()
            content = json.loads(whole)
            for path in _some(list(poison.places(content))):
                for kind, value in watch.values():
                    file.write_text(json.dumps(poison.poisoned(content, path, value)))
                    files = source.window(group, name, job.config.layer_names)
                    sample = read_window(source, files, job.config)
                    assert sample is not None
                    outcomes[not sample.problems] += 1
                    if not sample.problems and kind in ("class_path", "url", "path"):
                        _read_by_rslearn(dataset, group, name)
            file.write_text(whole)
    assert min(outcomes.values()) > 20


def _some(paths: list[tuple[Any, ...]], most: int = 40) -> list[tuple[Any, ...]]:
    """At most so many: the first of those that differ in the numbers of lists alone."""
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path in paths:
        kinds.setdefault(tuple(0 if isinstance(key, int) else key for key in path), path)
    return list(kinds.values())[:most]


def _read_by_rslearn(dataset: Path, group: str, name: str) -> None:
    """As it would be read from the copy."""
    assert list(rslearn_samples(dataset, groups=[group], names=[name]))
    from rslearn.data_sources import Item
    from rslearn.dataset import Dataset
    from upath import UPath

    [window] = Dataset(UPath(dataset)).load_windows(groups=[group], names=[name])
    for data in window.load_layer_datas().values():
        for items in data.serialized_item_groups:
            for item in items:
                with contextlib.suppress(
                    LookupError, TypeError, ValueError, AttributeError, ShapelyError
                ):  # a field is lacking, or no shape
                    Item.deserialize(item)


@pytest.mark.parametrize(
    "name", ["geotiff.tif", "0_0.png", "0_0.jpg", "image.png", "data.npy", "geotiff.tif/unread"]
)
def test_text_that_is_named_like_a_raster_is_never_opened_as_one(
    name: str, copied: Copied, tmp_path: Path, watch: poison.Watch
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    vrt = dict(watch.values())["vrt"]
    name, _, unread = name.partition("/")
    [window, *_] = sorted(path.parent for path in source.glob("windows/*/*/metadata.json"))
    folder = window / "layers" / ("sentinel2.9" if unread else "sentinel2") / "B01_B02"
    folder = next(iter((window / "layers" / "sentinel2").glob("*/"))) if not unread else folder
    folder.mkdir(parents=True, exist_ok=True)
    if unread:
        (folder.parent / "completed").touch()
    (folder / name).write_text(vrt)
    index = pipeline.ingest(make_job(source, root))[0].value
    assert index.summary.n_invalid == 1
    assert sorted(index.summary.reasons) in (["raster_unreadable"], ["raster_missing"],
                                             ["raster_bands", "raster_unreadable"])  # fmt: skip
    assert b"vsicurl" not in b"".join(
        p.read_bytes() for p in (root / "crops" / "windows").rglob("*") if p.is_file()
    )


# -------------------------------------------------------------------------------------- CRS texts


def test_only_codes_wkt_and_proj_text_are_a_crs(watch: poison.Watch) -> None:
    from pyproj import CRS

    for code in (4326, 3857, 32630, 2154, 27700, 5070, 3035, 6933, 3411, 2056):
        for version in ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2019"):
            try:
                assert is_crs_text(CRS(code).to_wkt(version)), (code, version)
            except Exception as error:
                if "cannot be" not in str(error):
                    raise
    for text in ("EPSG:4326", "ESRI:54009", "OGC:CRS84", "urn:ogc:def:crs:OGC:1.3:CRS84",
                 "+proj=utm +zone=30 +datum=WGS84 +units=m +no_defs +type=crs"):  # fmt: skip
        assert is_crs_text(text)
    wkt = CRS(4326).to_wkt("WKT1_GDAL")
    grid = 'EXTENSION["PROJ4","+proj=longlat +nadgrids=/etc/passwd"]]'
    for kind, value in watch.values():
        assert not is_crs_text(value), kind
    for step in ("defmodel model=/etc/passwd", "tinshift file=/etc/passwd", "utm init=/etc/x:y",
                 "utm zone=30 catalog = /etc/passwd", 'utm model=""/etc/passwd""'):  # fmt: skip
        method = 'CONVERSION["c",METHOD["PROJ ' + step + '"]],CS[Cartesian,2]]'
        assert not is_crs_text('PROJCRS["x",BASEGEOGCRS["y"],' + method), step
        assert not is_crs_text(wkt[:-1] + ',EXTENSION["PROJ4","+proj=' + step + '"]]')
        assert not is_crs_text("+proj=" + step.replace(" ", " +"))
    clon = 'PROJCS["Sinusoidal, clon = 0",GEOGCS["x"],PROJECTION["Sinusoidal"]]'
    started = time.process_time()
    assert is_crs_text(clon)
    assert is_crs_text('GEOGCS["' + "x" * 19_000 + '"]')
    assert time.process_time() - started < 1
    for text in (
        wkt[:-1] + "," + grid,
        wkt[:-1] + ',EXTENSION["PROJ4_GRIDS","/etc/passwd"]]',
        "PROJCS[" * 100_000,
        "x" * 10**7,
        "+init=epsg:4326",
        "file:///etc/passwd",
        "EPSG:4326\n/etc/passwd",
        None,
        4326,
        ["EPSG:4326"],
    ):
        assert not is_crs_text(text)


@pytest.mark.parametrize("read", [True, False])
def test_a_rasters_own_crs_names_no_file(
    read: bool, copied: Copied, tmp_path: Path, watch: poison.Watch
) -> None:
    """As ESRI writes it: GDAL makes a CRS of the text, and PROJ opens what that names."""
    source, room = copied("segmentation"), "x" * 400
    raster = raster_of(first_window(source))
    with rasterio.open(raster) as old:
        profile, pixels = old.profile, old.read()
    wkt = profile["crs"].to_wkt().replace('"WGS 84 / UTM zone 30N"', f'"{room}"')
    profile |= {"crs": wkt[: wkt.rindex(",AUTHORITY")] + "]", "geotiff_keys_flavor": "ESRI_PE"}
    if not read:
        layer = raster.parents[1].with_name("sentinel2.9")
        raster = layer / raster.parent.name / raster.name
        raster.parent.mkdir(parents=True)
        (layer / "completed").touch()
    with rasterio.open(raster, "w", **profile) as new:
        new.write(pixels)
    data = raster.read_bytes()
    text = f'x",EXTENSION["PROJ4","+proj=tinshift +file={watch.secret}/hidden.tif"]'
    place = f'PROJCS["{room}"'.encode()
    assert place in data
    raster.write_bytes(data.replace(place, f'PROJCS["{text}'.ljust(len(place)).encode()))
    assert cites_others(raster.read_bytes())
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {"raster_unreadable": 1}


# ------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("name", ["olmoearth_run.yaml", "model.yaml", "config.json"])
def test_a_configuration_file_is_no_link_out_of_the_dataset(
    name: str, copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    private = tmp_path / "private.yaml"
    shutil.copy(source / name, private) if (source / name).exists() else private.write_text("a: 1")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(private)
    with pytest.raises(EvalIngestError, match="link"):
        pipeline.ingest(make_job(source, tmp_path / "root"))
    assert not list((tmp_path / "root").rglob(name))


def test_a_link_within_the_dataset_is_followed(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    (source / "model.yaml").rename(source / "model_v2.yaml")
    (source / "model.yaml").symlink_to("model_v2.yaml")
    pipeline.ingest(make_job(source, tmp_path / "root"))
    assert (tmp_path / "root" / "crops" / "model.original.yaml").is_file()


def test_what_is_copied_is_read_by_no_more_people_than_its_source(
    copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    private = [source / "model.yaml", *source.rglob("geotiff.tif"), *source.rglob("items.json")]
    for path in private:
        path.chmod(0o600)
    pipeline.ingest(make_job(source, tmp_path / "root"))
    copy = tmp_path / "root" / "crops"
    assert (copy / "model.original.yaml").stat().st_mode & 0o077 == 0
    for path in (*copy.rglob("geotiff.tif"), *copy.rglob("items.json")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert next(copy.rglob("windows/*/*/metadata.json")).stat().st_mode & 0o044 == 0o044
