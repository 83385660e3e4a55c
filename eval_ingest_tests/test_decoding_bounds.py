"""What a window, a folder or a configuration may hold is bounded, and so is what reading it takes.

Two bounded counts, such as crops and features, may have a product that keeps a worker for hours.
"""

import time
from typing import Any

import numpy as np
import pytest
import shapely

from eval_ingest.core.crops import corners
from eval_ingest.core.resolved import CropGrid, InputPart, LayerRead
from eval_ingest.core.task import LabelClass, Task, TaskKind
from eval_ingest.decoding.beside import check_beside
from eval_ingest.decoding.features import Features, first_of_crops
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.decoding.rasters import choose_reads
from eval_ingest.decoding.targets import feature_target, raster_target
from eval_ingest.sources.base import SourceFile, WindowFiles

GRID = Grid("EPSG:32630", 10.0, -10.0, (1000, -2000, 1300, -1700))
ANGLES = np.linspace(0, 2 * np.pi, 300_000)
RADII = 100 + 40 * np.sin(1_000 * ANGLES)
SHAPES: dict[str, list[shapely.Geometry]] = {
    "one polygon of many points": [
        shapely.Polygon(np.c_[1150 + RADII * np.cos(ANGLES), RADII * np.sin(ANGLES) - 1850])
    ],
    "many polygons": [
        shapely.box(x, y, x + 1, y + 1)
        for x in range(1000, 1300, 2)
        for y in range(-2000, -1700, 2)
    ],
    "everything, many times": [shapely.box(1000, -2000, 1300, -1700)] * 2_000,
    "edges and beyond": [
        shapely.box(900, -2100, 1000, -2000),
        shapely.Point(1300, -1700),
        shapely.Polygon(),
        shapely.LineString([(1010, -1990), (1010, -1500)]),
        shapely.box(1400, -1600, 1401, -1599),
    ],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_crops_find_their_features_whatever_these_are(kind: str) -> None:
    plain = np.array([shapely.from_wkb(shapely.to_wkb(found)) for found in SHAPES[kind]])
    properties: list[dict[str, Any]] = [{"k": k} if k % 5 else {} for k in range(1, len(plain) + 1)]
    cut, says = CropGrid(size=(2, 9), overlap=1), lambda found: found.get("k")
    started = time.process_time()
    targets = first_of_crops(Features(SHAPES[kind], properties), GRID, cut, says, -1)
    assert time.process_time() - started < 5
    places = corners(GRID.height, GRID.width, cut)
    assert len(targets) == len(places) > 10_000
    for (row, column), target in [*zip(places, targets, strict=True)][::97]:
        box = shapely.box(1000 + column, row - 2000, 1009 + column, row - 1998)
        hits = np.flatnonzero(shapely.intersects(plain, box)).tolist()
        assert target == next((k for hit in hits if (k := says(properties[hit]))), -1)


def test_what_says_nothing_or_something_wrong_counts_where_it_comes_first() -> None:
    everywhere, nowhere = shapely.box(1000, -2000, 1300, -1700), shapely.Point(0, 0)
    wrong = Unreadable("label_out_of_range", "no class")

    def says(found: dict[str, Any]) -> float | None:
        if found["k"] == 7:
            raise wrong
        return found["k"] or None

    def targets(*features: tuple[shapely.Geometry, int]) -> list[float]:
        return first_of_crops(
            [(s, {"k": k}) for s, k in features], GRID, CropGrid(size=150), says, -1
        )

    assert targets((nowhere, 7), (everywhere, 0), (everywhere, 3), (everywhere, 7)) == [3] * 4
    assert targets() == [-1] * 4
    with pytest.raises(Unreadable, match="no class"):
        targets((nowhere, 3), (everywhere, 7))


@pytest.mark.parametrize("kind", ["many lines", "one line, there and back"])
def test_a_window_whose_crops_take_too_long_is_too_large(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is near every crop and meets few: the boxes around them tell nothing."""
    monkeypatch.setattr("eval_ingest.decoding.features._MOST_TESTS", 200_000)
    monkeypatch.setattr("eval_ingest.decoding.features._MOST_S", 0.5)
    monkeypatch.setattr("eval_ingest.decoding.features._POINTS_AT_ONCE", 100_000)
    ends = [(1000.0, -2000.0), (1300.0, -1700.0)]
    line = shapely.LineString(ends * (10_000 if "one" in kind else 1))
    features = ((line, {"k": 1}) for _ in range(10))
    started = time.process_time()
    with pytest.raises(Unreadable, match=r"90,000 crops, and too many features") as stopped:
        first_of_crops(features, GRID, CropGrid(size=1), lambda found: found["k"], -1)
    assert stopped.value.code == "window_too_large"
    assert time.process_time() - started < 5


def test_many_item_groups_are_chosen_from_many_in_no_time() -> None:
    groups = range(1, 40_001)
    marked = [SourceFile(f"layers/s2.{k}/completed", 0, "") for k in groups]
    reads = tuple(LayerRead(layer="s2", item_group=k) for k in reversed(groups))
    part = InputPart(key="s2", reads=reads, stack=True)
    started = time.process_time()
    found = choose_reads(WindowFiles("a", "b", tuple(marked)), part, "s2")
    assert time.process_time() - started < 2
    assert found == [("s2", k) for k in reversed(groups)]


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


def test_labels_are_mapped_at_once_however_many_classes_are() -> None:
    mapping = {k: (k * 7 + 1) % 50_000 for k in range(-20_000, 30_000, 3)}
    task = Task(kind=TaskKind.SEGMENTATION, num_classes=9, class_id_mapping=mapping)
    stored = np.random.default_rng(1).integers(-30_000, 40_000, (1_000, 1_000)).astype(np.int32)
    started = time.process_time()
    found = raster_target(stored, task)
    assert time.process_time() - started < 3
    assert found.dtype == np.int64
    for value, target in zip(stored.ravel()[:2_000].tolist(), found.ravel().tolist(), strict=False):
        assert target == mapping.get(value, value)


def test_a_category_is_looked_up_at_once_however_many_classes_are() -> None:
    classes = tuple(LabelClass(name=str(k // 2)) for k in range(10_000))
    task = Task(
        kind=TaskKind.CLASSIFICATION,
        num_classes=len(classes),
        classes=classes,
        property_name="kind",
        category_mapping={"last": "4999"},
    )
    started = time.process_time()
    targets = [feature_target({"kind": name}, task) for name in ["7", "last"] * 5_000]
    assert time.process_time() - started < 3
    assert targets == [14, 9_998] * 5_000
    assert task.model_copy(update={"classes": classes[2:]}).class_ids["7"] == 12
    for value in ("x", 7, None, [7]):
        with pytest.raises(Unreadable, match="none of the classes"):
            feature_target({"kind": value}, task)
