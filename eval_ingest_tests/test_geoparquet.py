"""window_index.parquet as other tools read it, also where maps are cut open and at the poles."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely

from eval_ingest.core.footprints import Footprints, outlines
from eval_ingest.core.index import INDEX_FORM, index_schema
from eval_ingest.indexing.rows import add_geometry
from eval_ingest.store.tables import open_table, write_table
from eval_ingest_tests.support.indexes import make_config
from eval_ingest_tests.support.sealed import saying

SIDE_M = 640
PLACES: dict[str, tuple[str, float, float]] = {
    "across_the_180th_meridian_in_utm": ("EPSG:32701", 180.0, -17.0),
    "across_it_in_utm_of_the_other_side": ("EPSG:32760", 180.0, -17.0),
    "across_it_in_mercator": ("EPSG:3857", 180.0, 0.5),
    "across_it_near_the_north_pole": ("EPSG:3413", 180.0, 89.9),
    "the_north_pole": ("EPSG:3413", 0.0, 90.0),
    "the_south_pole": ("EPSG:3031", 0.0, -90.0),
    "greenwich": ("EPSG:32631", 0.0, 51.5),
    "longitude_0_near_the_pole": ("EPSG:3413", 0.0, 89.99),
    "anywhere": ("EPSG:32630", -4.9, 6.5),
}
WIDE = {"the_north_pole", "the_south_pole"}


def box_of(name: str) -> list[float]:
    crs, lon, lat = PLACES[name]
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return [x - SIDE_M / 2, y - SIDE_M / 2, x + SIDE_M / 2, y + SIDE_M / 2]


def ground_area(shape: Any) -> float:
    """Square metres on the ellipsoid."""
    geod = pyproj.Geod(ellps="WGS84")
    return sum(abs(geod.geometry_area_perimeter(part)[0]) for part in shapely.get_parts(shape))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The places as rows of an index."""
    rows = [
        {"name": name, "crs": PLACES[name][0], "x_resolution": 1.0, "y_resolution": 1.0,
         "bounds": [round(v) for v in box_of(name)], "geometry": None}
        for name in PLACES
    ]  # fmt: skip
    schema = pa.schema(
        [("name", pa.string()), ("crs", pa.string()), ("x_resolution", pa.float64()),
         ("y_resolution", pa.float64()), ("bounds", pa.list_(pa.int64())),
         ("geometry", pa.binary())]
    )  # fmt: skip
    table = add_geometry(pa.Table.from_pylist(rows, schema=schema))
    path = tmp_path_factory.mktemp("geo") / "window_index.parquet"
    write_table(path, table, saying({"kind": "window_index"}, geo=True))
    return path


@pytest.mark.parametrize("name", PLACES)
def test_a_window_lies_where_it_is_and_is_no_larger_than_it_is(name: str) -> None:
    [shape] = outlines(PLACES[name][0], np.array([box_of(name)]))
    assert shapely.is_valid(shape)
    west, south, east, north = shapely.bounds(shape)
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    _, lon, lat = PLACES[name]
    assert shapely.distance(shape, shapely.Point(lon, lat)) < 1e-9
    for part in shapely.get_parts(shape):
        west, _, east, _ = shapely.bounds(part)
        assert east - west < 60 or name in WIDE or abs(lat) > 89.98
    x0, _, x1, _ = box_of(name)
    scale = pyproj.Proj(PLACES[name][0]).get_factors(lon, np.clip(lat, -89.99, 89.99)).areal_scale
    assert ground_area(shape) == pytest.approx((x1 - x0) ** 2 / scale, rel=0.02)


def test_a_pole_on_the_edge_or_in_the_corner_of_a_window_adds_nothing_to_it() -> None:
    boxes = np.array([[0, 0, 640, 640], [-640, 0, 640, 640], [0, -640, 640, 640]], float)
    corner, edge, side = outlines("EPSG:3413", boxes)
    assert shapely.bounds(corner)[[0, 2]] == pytest.approx([45, 135])
    assert shapely.is_valid([corner, edge, side]).all()
    assert ground_area(edge) == pytest.approx(2 * ground_area(corner), rel=0.02)
    assert ground_area(side) == pytest.approx(2 * ground_area(corner), rel=0.02)


def test_degrees_beyond_180_are_brought_back() -> None:
    [shape] = outlines("EPSG:4326", np.array([[179.9, 10, 180.1, 10.2]]))
    parts = sorted(tuple(np.round(part.bounds, 6).tolist()) for part in shapely.get_parts(shape))
    assert parts == [(-180.0, 10.0, -179.9, 10.2), (179.9, 10.0, 180.0, 10.2)]
    assert shape.area == pytest.approx(0.04)


def test_lists_of_a_window_without_bounds_are_such_as_older_readers_take(tmp_path: Path) -> None:
    kinds = {field.name: field.type for field in index_schema(make_config())}
    assert not [name for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)]
    rows = [[0, 1, 2, 3], None]
    then = pa.table({"bounds": pa.array(rows, pa.list_(pa.int64(), 4))})  # as it was written once
    path = tmp_path / "window_index.parquet"
    bounds = INDEX_FORM.columns["bounds"]
    facts = {"fingerprint": "f", "row_key": "r", "source": "s", "extra": {}}
    form = replace(INDEX_FORM, columns={"bounds": bounds}, geo=False)
    write_table(path, then, form, **facts)
    found = open_table(path, form, "crops")
    assert found is not None and found[0]["bounds"].to_pylist() == rows
    assert found[0].schema.field("bounds").type == kinds["bounds"]
    assert found[0].whole().schema.field("bounds").type == kinds["bounds"]


def test_what_is_cut_in_two_is_one_window_to_leakage() -> None:
    name = "across_the_180th_meridian_in_utm"
    left, bottom, right, top = box_of(name)
    boxes = np.array([[left, bottom, right, top], [left + 320, bottom, right + 320, top],
                      [left + 2000, bottom, right + 2000, top]])  # fmt: skip
    shapes = outlines(PLACES[name][0], boxes)
    found = Footprints.of(pa.array(shapely.to_wkb(shapes).tolist()))
    pairs = {
        (int(a), int(b))
        for one, other in found.overlaps(np.arange(3), np.arange(3))
        for a, b in zip(one, other, strict=True)
    }
    assert pairs == {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}
    assert found.sides_degrees.max() < 0.01


def test_the_file_says_what_the_standard_wants(file: Path) -> None:
    geo = json.loads(pq.read_schema(file).metadata[b"geo"])
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    shapes = shapely.from_wkb(pq.read_table(file)["geometry"].to_pylist())
    kinds = {shape.geom_type for shape in shapes}
    assert kinds == set(geo["columns"]["geometry"]["geometry_types"])


def test_geopandas_opens_it(file: Path) -> None:
    frame = geopandas.read_parquet(file).set_index("name")
    assert frame.crs == "OGC:CRS84" and frame.is_valid.all()
    areas = frame.to_crs("EPSG:6933").area
    assert areas["anywhere"] == pytest.approx(SIDE_M**2, rel=0.02)
    assert areas["across_the_180th_meridian_in_utm"] == pytest.approx(SIDE_M**2, rel=0.02)


def test_duckdb_opens_it(file: Path) -> None:
    found = duckdb.connect().sql(f"select name, geometry from '{file}' order by name")
    assert str(found.types[1]).startswith("GEOMETRY")
    assert len(found.fetchall()) == len(PLACES)


def test_gdal_takes_it_on_as_qgis_does(file: Path, tmp_path: Path) -> None:
    path = file
    if "Parquet" not in pyogrio.list_drivers():  # wheels have no driver for it
        path = tmp_path / "windows.gpkg"
        geopandas.read_parquet(file).drop(columns="bounds").to_file(path, engine="pyogrio")
    back = pyogrio.read_dataframe(path)
    assert back.is_valid.all() and len(back) == len(PLACES)
    assert pyogrio.read_info(path)["total_bounds"] == pytest.approx((-180, -90, 180, 90))
    fiji = pyogrio.read_dataframe(path, bbox=(179.0, -18.0, 180.0, -16.0))
    assert set(fiji["name"]) == {n for n in PLACES if n.startswith("across") and "utm" in n}
