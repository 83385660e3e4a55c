"""Moments, statistics and the normalisation methods, against plain numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval_ingest.core.norm import (
    METHODS,
    BandStats,
    BandSums,
    affine,
    combine,
    count_nodata,
    measure,
    to_decibels,
)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.int32]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=9),
        elements=st.integers(0, 127),
    )
)
def test_moments_of_integers_are_exact(pixels: np.ndarray) -> None:
    rows = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
    expected = [np.full(rows.shape[1], len(rows)), rows.sum(0), (rows**2).sum(0), rows.min(0),
                rows.max(0)]  # fmt: skip
    assert np.array_equal(measure(pixels), expected)


def test_moments_of_a_window_keep_large_sums() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (64, 64, 12, 12), dtype=np.uint16)
    rows = pixels.reshape(-1, 12).astype(np.float64)
    found = measure(pixels)
    assert np.array_equal(found[1], rows.sum(0))
    assert np.allclose(found[2], (rows**2).sum(0), rtol=1e-14)
    assert np.array_equal(found[3:], [rows.min(0), rows.max(0)])


def test_only_finite_pixels_count() -> None:
    pixels = np.array([[1.0, np.nan], [3.0, 5.0], [np.inf, 7.0]], np.float32)
    assert measure(pixels).tolist() == [[2, 2], [4, 12], [10, 74], [1, 5], [3, 7]]


def test_zero_power_is_no_measurement_in_decibels() -> None:
    found = measure(np.array([[0.0], [0.1], [0.001]], np.float32), decibels=True)
    assert found[0, 0] == 2
    assert found[3:, 0] == pytest.approx([-30, -10], abs=1e-4)


def test_decibels_are_floored_at_minus_100() -> None:
    assert to_decibels(np.array([0.0, 1.0, 100.0], np.float32)) == pytest.approx([-100, 0, 20])


@given(st.lists(hnp.arrays(np.float64, (7, 2), elements=st.floats(-1e3, 1e3)), min_size=1))
def test_statistics_from_moments_equal_those_of_all_pixels(windows: list[np.ndarray]) -> None:
    pixels = np.concatenate(windows)
    moments = np.stack([measure(window) for window in windows])
    pieces = BandSums(2)
    for start in range(0, len(moments), 2):
        pieces.add(moments[start : start + 2])
    for band, found in (*enumerate(combine(moments)), *enumerate(pieces.stats)):
        assert found.mean == pytest.approx(pixels[:, band].mean(), abs=1e-9)
        assert found.std == pytest.approx(pixels[:, band].std(), abs=1e-6)
        assert (found.min, found.max) == (pixels[:, band].min(), pixels[:, band].max())


def test_variance_survives_a_large_mean() -> None:
    pixels = np.random.default_rng(1).normal(1e7, 1, (20, 500, 1))
    (band,) = combine(np.stack([measure(window) for window in pixels]))
    assert band.std == pytest.approx(pixels.std(), rel=1e-2)


def test_a_band_without_pixels_has_no_statistics() -> None:
    (band,) = combine(measure(np.full((4, 1), np.nan, np.float32))[None])
    assert np.isnan([band.mean, band.std, band.min, band.max]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_band_is_zero_after_normalisation_never_nan(method: str) -> None:
    scale, offset = affine(method, [BandStats(5.0, 0.0, 5.0, 5.0)])
    expected = 5.0 if method == "no_norm" else 0.0
    assert (np.float32(5) * scale + offset).tolist() == [expected]


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("norm_no_clip", 8, 12),
        ("norm_no_clip_2_std", 6, 14),
        ("norm_yes_clip_3_std", 4, 16),
        ("norm_yes_clip_min_max_int", 1, 30),
    ],
)
def test_methods_map_their_range_to_0_1(method: str, low: float, high: float) -> None:
    scale, offset = affine(method, [BandStats(10.0, 2.0, 1.0, 30.0)])
    assert np.array([low, high]) * scale + offset == pytest.approx([0, 1], abs=1e-6)


def test_standardize_is_the_z_score() -> None:
    scale, offset = affine("standardize", [BandStats(10.0, 2.0, 1.0, 30.0)])
    assert np.array([10.0, 12.0]) * scale + offset == pytest.approx([0, 1])


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("decibels", [False, True])
def test_nodata_is_counted_where_no_band_holds_a_measurement(dtype: str, decibels: bool) -> None:
    pixels = np.full((4, 4, 2, 3), 5, dtype)
    assert count_nodata(pixels, measure(pixels, decibels=decibels), decibels=decibels) == 0
    pixels[0, :, 0] = 0  # 4 places
    pixels[1, :, 0, :2] = 0  # but the third band
    if dtype == "float32":
        pixels[2, 0, 1] = np.nan  # 1 place
        pixels[2, 1, 1, 0] = np.nan
        pixels[3, 0, 1] = -1.0  # a measurement, but no power
    expected = 4 + (dtype == "float32") * (1 + decibels)
    found = count_nodata(pixels, measure(pixels, decibels=decibels), decibels=decibels)
    assert found == expected
