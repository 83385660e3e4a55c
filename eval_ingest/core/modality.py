"""Modalities: their bands in order, and which rslearn layers mean which of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Modality:
    """A sensor product that OlmoEarth models know."""

    name: str
    """The name in registries and samples, such as `sentinel2_l2a`."""
    bands: tuple[str, ...]
    """All bands in the order in which samples hold them."""
    layers: tuple[str, ...]
    """rslearn layer names that mean this modality."""
    decibels: bool = False
    """True: linear power on disk, decibels for statistics and models."""
    wavelengths_nm: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Middle of each band in nanometres; empty for radar."""


# The MSI of Sentinel-2A, from its spectral responses (ESA).
_SENTINEL2_NM: dict[str, float] = {
    "B01": 443, "B02": 492, "B03": 560, "B04": 665, "B05": 704, "B06": 741,
    "B07": 783, "B08": 833, "B8A": 865, "B09": 945, "B11": 1614, "B12": 2202,
}  # fmt: skip

# OLI and TIRS of Landsat 8 (USGS).
_LANDSAT_NM: dict[str, float] = {
    "B1": 443, "B2": 482, "B3": 561, "B4": 655, "B5": 865, "B6": 1609,
    "B7": 2201, "B8": 590, "B9": 1373, "B10": 10895, "B11": 12005,
}  # fmt: skip

MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            "sentinel2_l2a",
            ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"),
            ("sentinel2", "sentinel2_l2a"),
            wavelengths_nm=_SENTINEL2_NM,
        ),
        Modality(
            "sentinel1",
            ("vv", "vh"),
            ("sentinel1", "sentinel1_ascending", "sentinel1_descending", "sentinel1_rtc"),
            decibels=True,
        ),
        Modality(
            "landsat",
            ("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"),
            ("landsat",),
            wavelengths_nm=_LANDSAT_NM,
        ),
    )
}

# Other products whose names begin like a modality's: they must not be taken for it.
_OTHER_PRODUCTS = frozenset({"sentinel2_l1c", "sentinel1_slc", "sentinel1_grd_raw"})

_BY_LAYER = {layer: modality for modality in MODALITIES.values() for layer in modality.layers}
_LONGEST = 255
"""Characters: no folder has a longer name, and so no layer that is there."""
_ITEM_GROUP = re.compile(r"\.\d+$")


def modality_of_layer(layer: str) -> Modality | None:
    """The modality that a layer holds, or None if it is none we know.

    Tried in turn: the exact name; without a leading `pre_` or `post_`; dropping trailing
    `_parts` until a name matches. An item group suffix (`sentinel2.3`) is ignored.

    >>> modality_of_layer("pre_sentinel2").name
    'sentinel2_l2a'
    >>> modality_of_layer("sentinel2_feb.3").name
    'sentinel2_l2a'
    >>> modality_of_layer("sentinel2_l1c") is None
    True
    """
    if len(layer) > _LONGEST:
        return None
    name = _ITEM_GROUP.sub("", layer)
    for candidate in (name, re.sub(r"^(pre|post)_", "", name)):
        parts = candidate.split("_")
        while parts:
            key = "_".join(parts)
            if key in _OTHER_PRODUCTS:
                return None
            if key in _BY_LAYER:
                return _BY_LAYER[key]
            parts.pop()
    return None
