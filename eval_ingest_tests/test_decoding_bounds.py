"""What a window, a folder or a configuration may hold is bounded, and so is what reading it takes.

Two bounded counts, such as crops and features, may have a product that keeps a worker for hours.
"""

import time

import numpy as np
import pytest
import shapely

from eval_ingest.decoding.beside import check_beside
from eval_ingest.decoding.features import Features
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.sources.base import SourceFile, WindowFiles


@pytest.mark.parametrize("kind", ["one polygon of many points", "many polygons"])
def test_crops_find_their_features_whatever_these_are(kind: str) -> None:
    angles = np.linspace(0, 2 * np.pi, 300_000)
    radii = 100 + 40 * np.sin(1_000 * angles)
    star = shapely.Polygon(np.c_[150 + radii * np.cos(angles), 150 + radii * np.sin(angles)])
    many = [shapely.box(x, y, x + 1, y + 1) for x in range(0, 300, 2) for y in range(0, 300, 2)]
    shapes = [star] if "one" in kind else many
    features = Features(shapes, [{"k": k} for k in range(len(shapes))])
    boxes = [(x, y, x + 2, y + 2) for x in range(0, 300, 7) for y in range(0, 300, 7)]
    started = time.process_time()
    found = [[properties["k"] for properties in features.within(box)] for box in boxes]
    assert time.process_time() - started < 5
    plain = np.array([shapely.from_wkb(shapely.to_wkb(found)) for found in shapes], dtype=object)
    for box, keys in list(zip(boxes, found, strict=True))[::60]:
        assert keys == np.flatnonzero(shapely.intersects(plain, shapely.box(*box))).tolist()


def test_many_empty_files_of_a_folder_take_no_time() -> None:
    names = [f"{k}_{k}.tif" for k in range(25_000)] + [f"a{k}.x.y_z.txt" for k in range(25_000)]
    files = WindowFiles("a", "b", tuple(SourceFile(f"layers/x/{n}", 0, "") for n in names))
    started = time.process_time()
    check_beside(files, lambda _: b"")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["7_7.TIF.aux", "7_7.tfw", "7_7_b.XML", "7_7.x_y.z"])
def test_a_name_that_begins_like_a_rasters_lies_beside_it(name: str) -> None:
    names = ["7_7.tif", "7_7.tif.tmp", "7_7_b.x", "7_77.tif", "17_7.tif", name]
    files = WindowFiles("a", "b", tuple(SourceFile(f"layers/x/{n}", 0, "") for n in names))
    with pytest.raises(Unreadable, match=f"layers/x/{name} lies beside a raster"):
        check_beside(files, lambda _: b"")
