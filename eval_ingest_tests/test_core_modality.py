"""Which layer names mean which modality, and which bands are alike."""

import pytest

from eval_ingest.core.entry import imputes
from eval_ingest.core.modality import MODALITIES, modality_of_layer
from eval_ingest.core.resolved import ModalityInput
from eval_ingest_tests.support.indexes import make_config


@pytest.mark.parametrize(
    ("layer", "modality"),
    [
        ("sentinel2", "sentinel2_l2a"),
        ("sentinel2_l2a", "sentinel2_l2a"),
        ("sentinel2.11", "sentinel2_l2a"),
        ("sentinel2_feb", "sentinel2_l2a"),
        ("sentinel2_feb.3", "sentinel2_l2a"),
        ("sentinel2_l2a_2024_05", "sentinel2_l2a"),
        ("pre_sentinel2", "sentinel2_l2a"),
        ("post_sentinel2", "sentinel2_l2a"),
        ("pre_sentinel2_l2a.1", "sentinel2_l2a"),
        ("sentinel1", "sentinel1"),
        ("sentinel1_ascending", "sentinel1"),
        ("sentinel1_descending.2", "sentinel1"),
        ("sentinel1_rtc", "sentinel1"),
        ("post_sentinel1", "sentinel1"),
        ("landsat", "landsat"),
        ("landsat_may", "landsat"),
        # another product of the same satellite isn't the modality
        ("sentinel2_l1c", None),
        ("pre_sentinel2_l1c", None),
        ("sentinel2_l1c.2", None),
        ("sentinel1_slc", None),
        # names that only resemble one
        ("sentinel", None),
        ("sentinel22", None),
        ("my_sentinel2", None),
        ("srtm", None),
        ("era5", None),
        ("planet", None),
        ("label_raster", None),
        ("", None),
    ],
)
def test_a_layer_means_a_modality(layer, modality):
    found = modality_of_layer(layer)
    assert (found.name if found else None) == modality


def test_every_layer_of_a_modality_means_it():
    for modality in MODALITIES.values():
        for layer in modality.layers:
            assert modality_of_layer(layer) is modality


def test_no_band_is_listed_twice():
    for modality in MODALITIES.values():
        assert len(set(modality.bands)) == len(modality.bands)


def test_every_optical_band_has_a_wavelength() -> None:
    for modality in MODALITIES.values():
        bands = set() if modality.decibels else set(modality.bands)
        assert modality.wavelengths_nm.keys() == bands


@pytest.mark.parametrize(
    ("modality", "missing", "stand_in"),
    [
        ("sentinel2_l2a", "B01", "B02"),
        ("sentinel2_l2a", "B8A", "B08"),
        ("sentinel2_l2a", "B09", "B8A"),
        ("sentinel2_l2a", "B12", "B11"),
        ("landsat", "B8", "B3"),
        ("landsat", "B9", "B6"),
        ("landsat", "B10", "B11"),
        ("sentinel1", "vh", "vv"),
    ],
)
def test_the_band_nearest_in_wavelength_stands_in_for_a_missing_one(
    modality: str, missing: str, stand_in: str
) -> None:
    bands = tuple(band for band in MODALITIES[modality].bands if band != missing)
    given = ModalityInput(
        name=modality, bands=bands, missing_bands=(missing,), parts=(), dtype="uint16"
    )
    assert imputes(make_config(modalities=(given,))) == [[stand_in, missing]]
