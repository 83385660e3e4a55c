"""Which layer names mean which modality."""

import pytest

from eval_ingest.core.modality import MODALITIES, modality_of_layer


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
