"""Outlines: overlap and distance on the ground, at any latitude and across the 180th meridian."""

import numpy as np
import pyarrow as pa
import pytest
import shapely

from eval_ingest.core import footprints as module
from eval_ingest.core.footprints import Footprints, connected

DEGREE_M = 111_319.5


def footprints(*boxes: tuple[float, float, float, float] | None) -> Footprints:
    """Of boxes (west, south, east, north) in degrees."""
    shapes = [None if box is None else shapely.to_wkb(shapely.box(*box)) for box in boxes]
    return Footprints.of(pa.array(shapes, pa.binary()))


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def overlapping(outlines: Footprints) -> set[tuple[int, int]]:
    places = np.arange(len(outlines.centres))
    pairs = [pair for part in outlines.overlaps(places, places) for pair in zip(*part, strict=True)]
    return {(int(one), int(other)) for one, other in pairs if one < other}


def test_equal_outlines_are_kept_once_and_unknown_ones_not_at_all() -> None:
    found = footprints((0, 0, 1, 1), None, (5, 5, 6, 6), (0, 0, 1, 1))
    assert found.place.tolist() == [0, -1, 1, 0]
    assert found.centres.tolist() == [[0.5, 0.5], [5.5, 5.5]]


def test_what_is_no_polygon_has_no_outline() -> None:
    column = pa.array([b"nonsense", shapely.to_wkb(shapely.box(0, 0, 1, 1))], pa.binary())
    assert Footprints.of(column).place.tolist() == [-1, 0]
    assert Footprints.of(pa.array([], pa.binary())).place.tolist() == []


@pytest.mark.parametrize("latitude", [0.0, 45.0, 62.0, 78.0, -55.0])
@pytest.mark.parametrize("direction", ["north", "east"])
def test_distances_are_those_on_the_ground_at_any_latitude(latitude: float, direction: str) -> None:
    side = 0.002
    for gap_m, near in ((950, True), (1050, False)):
        gap = gap_m / DEGREE_M
        x = y = 0.0
        if direction == "north":
            y = side + gap
        else:
            x = side + gap / np.cos(np.radians(latitude + side / 2))
        outlines = footprints(
            (0, latitude, side, latitude + side), (x, latitude + y, x + side, latitude + y + side)
        )
        assert (len(outlines.nearest(rows(1), rows(0), 1000)[0]) == 1) is near


def test_the_nearest_is_named_and_rows_without_outline_are_near_nothing() -> None:
    outlines = footprints((0, 0, 1, 1), (1.002, 0, 2, 1), (1.001, 0.2, 1.5, 0.3), None)
    of, against = outlines.nearest(rows(0, 3), rows(1, 2, 3), 1000)
    assert (of.tolist(), against.tolist()) == ([0], [2])
    assert outlines.nearest(rows(3), rows(0), 1000)[0].tolist() == []


def test_slivers_between_neighbours_are_no_overlap() -> None:
    assert overlapping(footprints((0, 0, 1, 1), (0.9999, 0, 2, 1))) == set()
    assert overlapping(footprints((0, 0, 1, 1), (0.99, 0, 2, 1))) == {(0, 1)}


def test_windows_on_both_sides_of_the_180th_meridian_are_near() -> None:
    outlines = footprints((179.99, 0, 179.995, 1), (-179.999, 0, -179.99, 1), (10, 0, 11, 1))
    assert outlines.nearest(rows(0, 2), rows(1), 1000)[0].tolist() == [0]
    apart = footprints((170, 0, 171, 1), (-171, 0, -170, 1))  # nothing that needs a cut elsewhere
    assert apart.centres[1, 0] == pytest.approx(-170.5)


def test_a_window_across_the_180th_meridian_is_small() -> None:
    # As longitudes it reaches from -179.99 to 179.99: around the whole earth.
    across = (-179.99, -17, 179.99, -16.99)
    fiji, africa, samoa = (
        (-179.995, -17, -179.98, -16.99),
        (20, -17, 21, -16),
        (-172, -14, -171, -13),
    )
    outlines = footprints(across, fiji, africa, samoa, (179.985, -17, 179.995, -16.99))
    assert overlapping(outlines) == {(0, 1), (0, 4)}
    assert outlines.centres[0, 0] == pytest.approx(180)


def test_connected_groups_are_those_of_a_graph() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 40, (2, 25))
        groups = connected(40, first, second)
        label = np.arange(40)
        for _ in range(40):
            for a, b in zip(first, second, strict=True):
                label[[a, b]] = min(label[a], label[b])
        expected = {tuple(np.flatnonzero(label == k)) for k in label if (label == k).sum() > 1}
        assert {tuple(group) for group in groups if len(group) > 1} == expected


def test_many_outlines_are_compared_in_strips_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corners = np.random.default_rng(3).uniform([0, 40], [0.5, 40.5], (120, 2))
    outlines = footprints(*((x, y, x + 0.02, y + 0.02) for x, y in corners))
    every = np.arange(60), np.arange(60, 120)

    def compared() -> tuple[set[tuple[int, int]], dict[int, float]]:
        near = zip(*outlines.nearest(*every, 3000), strict=True)
        apart = {int(a): shapely.distance(*outlines.shapes(rows(a, of))) for a, of in near}
        return overlapping(outlines), apart

    whole = compared()
    assert len(whole[0]) > 10 and len(whole[1]) > 10
    monkeypatch.setattr(module, "_STRIP", 7)
    monkeypatch.setattr(module._portions, "__defaults__", (5,))
    strips = compared()
    assert strips[0] == whole[0]
    assert strips[1] == pytest.approx(whole[1])
