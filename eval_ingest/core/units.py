"""In which units are a modality's bands? Their means beside those that pretraining saw.

What belongs here: the likely causes of means that are somewhere else. What doesn't: that it is
told, and how loudly (core/quality.py), and the numbers of pretraining (core/pretraining.py).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.band_facts import BandFacts
from eval_ingest.core.pretraining import PRETRAINING
from eval_ingest.core.resolved import ModalityInput

PLAUSIBLE_SIGMAS = 2.0
"""Band means may be this many pretraining standard deviations from the pretraining mean."""

_SCALES = (
    (1e-4, "it seems to be stored as reflectance from 0 to 1; multiply by 10,000"),
    (0.0255, "it seems to be stored in 8 bits (0 to 255); take the calibrated product"),
    (0.1, "it seems to be too small by a factor of 10"),
    (10.0, "it seems to be too large by a factor of 10"),
    (100.0, "it seems to be too large by a factor of 100"),
    (1e4, "it seems to be too large by a factor of 10,000"),
)


@dataclass(frozen=True)
class OddUnits:
    """Bands that don't seem to be in pretraining's units."""

    cause: str
    """The most likely one, and its cure."""
    bands: list[str]
    """Each with its mean and pretraining's."""
    of: int
    """Bands that pretraining knows."""


def odd_units(
    modality: ModalityInput, facts: BandFacts, places: NDArray[np.float64]
) -> OddUnits | None:
    """Band means where pretraining's are not: most often another unit. None: they are plausible.

    Args:
        modality: whose bands they are.
        facts: of windows.
        places: pixels of each window, (N,), whether or not they hold data.
    """
    bands = _Bands.of(modality, facts)
    if bands is None:
        return None
    with np.errstate(invalid="ignore"):
        far = np.abs(bands.mean - bands.expected) > PLAUSIBLE_SIGMAS * bands.sigma
    cause = _stored_decibels(bands, places.sum())
    if cause is None and far.any():
        cause = _scale(bands) or "check the unit and the source"
    else:
        cause = cause or _too_dark(bands) or _offset(bands)
        far[:] = cause is not None
    if cause is None:
        return None
    unit = " dB" if modality.decibels else ""
    told = [
        f"{bands.names[k]}: mean {bands.mean[k]:.4g}{unit}, in pretraining "
        f"{bands.expected[k]:.4g} with standard deviation {bands.sigma[k]:.4g}"
        for k in np.flatnonzero(far)
    ]
    return OddUnits(cause, told, len(bands.names))


@dataclass(frozen=True)
class _Bands:
    """A modality's bands beside those of pretraining."""

    modality: ModalityInput
    facts: BandFacts
    """Of all of the modality's bands."""
    names: list[str]
    """Those that pretraining knows; so the three that follow."""
    mean: NDArray[np.float64]
    expected: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @classmethod
    def of(cls, modality: ModalityInput, facts: BandFacts) -> "_Bands | None":
        known = PRETRAINING.get(modality.name, {})
        if not known.keys() & set(modality.bands):
            return None
        stats = dict(zip(modality.bands, facts.stats, strict=True))
        names = [band for band in modality.bands if band in known]
        mean = np.array([stats[band].mean for band in names])
        expected, sigma = np.array([known[band] for band in names]).T
        return cls(modality, facts, names, mean, expected, sigma)


def _stored_decibels(bands: _Bands, total: float) -> str | None:
    """Power can't be negative, decibels mostly are: then hardly a pixel counts as measured."""
    if not bands.modality.decibels or not total:
        return None
    share = bands.facts.fewest.sum() / total
    if share > 0.2:
        return None
    return (
        f"only {share:.1%} of its pixels are positive: it seems to be stored in "
        "decibels, where linear power is expected; store 10 ** (dB / 10)"
    )


def _scale(bands: _Bands) -> str | None:
    """The factor that explains the difference best."""
    with np.errstate(invalid="ignore"):
        if bands.modality.decibels:
            difference = float(np.nanmedian(bands.mean - bands.expected))
            if difference > 0:
                return (
                    f"it is {difference:.0f} dB too bright: digital numbers that were never "
                    "calibrated, or power times 10,000 (40 dB)"
                )
            return f"it is {-difference:.0f} dB too dark, as power divided by 10,000 would be"
        ratio = float(np.nanmedian(bands.mean / bands.expected))
    if not ratio > 0:
        return None
    factor, cause = min(_SCALES, key=lambda scale: abs(np.log10(ratio / scale[0])))
    return cause if abs(np.log10(ratio / factor)) < 0.75 else None


def _too_dark(bands: _Bands) -> str | None:
    """Small units stay within two sigmas of pretraining, whose sigmas are as large as its means.

    But no landscape is under a fifth of pretraining's mean in all of four bands or more.
    """
    if bands.modality.decibels or len(bands.names) < 4:
        return None
    dark = np.isfinite(bands.mean) & (bands.mean < bands.expected / 5)
    return _scale(bands) if dark.all() else None


def _offset(bands: _Bands) -> str | None:
    """Since baseline 04.00 (2022) Sentinel-2 products carry 1000 on every pixel.

    With it no pixel is below about 1000; without it every window has some dark pixel in some band.
    """
    if bands.modality.name != "sentinel2_l2a":
        return None
    lowest = bands.facts.lowest_positive
    lowest = lowest[np.isfinite(lowest)]
    if len(lowest) < 10 or np.quantile(lowest, 0.05) < 950 or not (bands.mean > 1000).all():
        return None
    return (
        f"no pixel of any band is below {lowest.min():.0f}: the offset of 1000 that Sentinel-2 "
        "products carry since processing baseline 04.00 seems to be left in; subtract 1000"
    )
