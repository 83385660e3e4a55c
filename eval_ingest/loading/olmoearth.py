"""EvalDataset's samples as the masked samples of olmoearth_pretrain_minimal's models.

    dataset = EvalDataset("tolbi_crops", "val", normalize="pretrained")
    adapter = OlmoEarthAdapter(dataset)
    loader = DataLoader(dataset, batch_size=16, collate_fn=adapter.collate)
    for sample, target in loader:
        encoder(sample, patch_size=4)

All modalities of a masked sample share one list of timesteps, the slots. An image goes to a slot
by its date; a slot without an image of a modality holds zeros there, masked as missing.

In evaluation mode the package's encoders drop masked tokens but attend to what fills up a batch
(0.1.5 passes an attention mask only when training): a window's embedding depends on its neighbours
where they have differing numbers of tokens. Batch windows with equally many, as the sweep does.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.entry import imputes
from eval_ingest.core.modality import MODALITIES
from eval_ingest.errors import LoadError, optional_part
from eval_ingest.loading.collate import collate
from eval_ingest.loading.dataset import EvalDataset
from eval_ingest.loading.normalize import make_normalizer

if TYPE_CHECKING:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import (
        MaskedOlmoEarthSample,
    )

SEEN, MISSING = 0, 3
"""Mask values: a token for the encoder, and no data."""

TOLERANCE_DAYS = 15
"""Images of two modalities less than this apart share a slot."""

BandGroups = Mapping[str, Sequence[Sequence[int]]]
"""Per modality the places of the bands that a model makes one token of."""


class OlmoEarthAdapter:
    """Turns the samples of one EvalDataset into masked samples.

    Args:
        dataset: for its bands and normalisation; open it with normalize="pretrained" or "dataset".
        missing_bands: what stands for bands that the dataset lacks. "impute": the band that the
            registry names for it (v1 models). "zero": 0 after normalisation, which the models
            from v1.1 on saw for dropped bands.
        band_groups: which bands make a token; default the modalities' own band sets. Masks have
            one value per group. A group of which the dataset has no band is masked as missing,
            unless it is imputed.

    Raises:
        LoadError: the package isn't installed, or the dataset isn't normalised, or has its
            channels first.
    """

    def __init__(
        self,
        dataset: EvalDataset,
        *,
        missing_bands: Literal["impute", "zero"] = "impute",
        band_groups: BandGroups | None = None,
    ) -> None:
        if missing_bands not in ("impute", "zero"):
            raise LoadError(f"no missing_bands={missing_bands!r}; there are 'impute' and 'zero'")
        normalizers = dataset._normalizers
        if any(normalizer.scale is None for normalizer in normalizers.values()):
            raise LoadError(
                f"{dataset.name} is opened with normalize=None, which no OlmoEarth model was "
                'trained on; open it with normalize="pretrained" or normalize="dataset"'
            )
        if dataset.channels_first:
            raise LoadError(f"{dataset.name} is opened with channels_first=True; leave it out")
        self._sample_type, modalities = _package()
        self._bands = {name: BandFiller.of(dataset, name, missing_bands) for name in dataset.bands}
        groups = band_groups or {
            name: modalities.get(name).bandsets_as_indices() for name in dataset.bands
        }
        self._group_masks = {
            name: torch.tensor([filler.mask_of(group) for group in groups[name]])
            for name, filler in self._bands.items()
        }

    def collate(
        self, samples: Sequence[dict[str, Any]]
    ) -> tuple["MaskedOlmoEarthSample", torch.Tensor]:
        """Samples of the dataset as one masked sample and the targets, for a DataLoader.

        Samples that are smaller than the largest are padded at the end of height, width and
        time; padding is masked as missing, and -1 or NaN in the target.
        """
        batch = collate(samples)
        sizes = [tuple(sample[next(iter(self._bands))].shape[:2]) for sample in samples]
        return self(batch, sizes), batch["target"]

    def __call__(
        self, batch: Mapping[str, Any], sizes: Sequence[tuple[int, ...]] | None = None
    ) -> "MaskedOlmoEarthSample":
        """A batch of the dataset as a masked sample.

        Args:
            batch: as `collate` and `EvalDataset.batches` make it.
            sizes: real (height, width) of each sample; default: all of it is real.

        Returns:
            Per modality pixels float32 (B, H, W, S, C) and mask long (B, H, W, S, groups);
            timestamps long (B, S, 3). Unused slots repeat the last date.
        """
        present = {name: batch[name] for name in self._bands if name in batch}
        stamps = {name: batch["timestamps"][name].cpu().numpy() for name in present}
        steps = {name: batch["timesteps"][name].tolist() for name in present}
        size = len(next(iter(present.values())))
        aligned = [
            align({name: stamps[name][b, : steps[name][b]] for name in present})
            for b in range(size)
        ]
        slots = max(1, *(len(dates) for dates, _ in aligned))
        fields: dict[str, torch.Tensor] = {
            "timestamps": torch.from_numpy(
                np.stack([_extended(dates, slots) for dates, _ in aligned])
            )
        }
        for name, pixels in present.items():
            images = np.full((size, slots), -1)
            for row, (_, places) in zip(images, aligned, strict=True):
                row[: len(places[name])] = places[name]
            pixels = self._bands[name].fill(_gather(pixels, images))
            fields[name] = pixels
            fields[f"{name}_mask"] = self._mask(name, pixels.shape, images, sizes)
        sample: MaskedOlmoEarthSample = self._sample_type(**fields)
        return sample

    def _mask(
        self,
        name: str,
        shape: torch.Size,
        images: NDArray[np.int64],
        sizes: Sequence[tuple[int, ...]] | None,
    ) -> torch.Tensor:
        groups = self._group_masks[name]
        there = torch.from_numpy(images >= 0)[:, None, None, :, None]
        mask = torch.where(there, groups, MISSING).expand(*shape[:4], len(groups))
        if sizes is None:
            return mask.contiguous()
        mask = mask.clone()
        for place, (height, width) in zip(mask, sizes, strict=True):
            place[height:] = MISSING
            place[:, width:] = MISSING
        return mask


def align(
    stamps: Mapping[str, NDArray[np.int64]],
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Give the images of one window a common list of slots, in order of time.

    Modalities with equally many images that lie close stack one to one. Otherwise each image
    takes the nearest slot that has no image of its modality yet, if it lies less than
    TOLERANCE_DAYS away, else a new one.

    Args:
        stamps: per modality (T, 3) = day, month from 0, year; T may be 0.

    Returns:
        The slots' dates (S, 3), and per modality the image in each slot (S,), -1 for none.
    """
    # A modality's images are laid out in the order in which the field's own wrapper does it.
    order = [name for name in MODALITIES if name in stamps]
    days = {name: _days(stamps[name]) for name in order}
    slots = _one_to_one(order, days) or _greedy(order, days)
    slots.sort(key=lambda slot: slot.day)
    dates = [stamps[slot.first][slot.images[slot.first]] for slot in slots]
    places = {
        name: np.array([slot.images.get(name, -1) for slot in slots], np.int64) for name in stamps
    }
    return np.array(dates, np.int64).reshape(-1, 3), places


class _Slot:
    """One timestep: its day, and the image of each modality in it."""

    def __init__(self, day: int, name: str, image: int) -> None:
        self.day, self.first, self.images = day, name, {name: image}


def _one_to_one(order: list[str], days: dict[str, NDArray[np.int64]]) -> list[_Slot]:
    there = [name for name in order if len(days[name])]
    if not there:
        return []
    first = days[there[0]]
    for name in there[1:]:
        if len(days[name]) != len(first) or (abs(days[name] - first) >= TOLERANCE_DAYS).any():
            return []
    slots = [_Slot(int(day), there[0], i) for i, day in enumerate(first)]
    for i, slot in enumerate(slots):
        slot.images = dict.fromkeys(there, i)
    return slots


def _greedy(order: list[str], days: dict[str, NDArray[np.int64]]) -> list[_Slot]:
    slots: list[_Slot] = []
    for name in order:
        for image, day in enumerate(days[name].tolist()):
            free = [slot for slot in slots if name not in slot.images]
            nearest = min(free, key=lambda slot: abs(slot.day - day), default=None)
            if nearest is not None and abs(nearest.day - day) < TOLERANCE_DAYS:
                nearest.images[name] = image
            else:
                slots.append(_Slot(day, name, image))
    return slots


def _days(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days since 1970 of dates (T, 3)."""
    months = (stamps[:, 2] - 1970) * 12 + stamps[:, 1]
    firsts = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return np.asarray(firsts + stamps[:, 0] - 1)


def _extended(dates: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """Dates (S, 3), the last repeated up to `slots`: a date that every encoding can stand."""
    if not len(dates):
        dates = np.array([[1, 0, 2000]], np.int64)
    return np.concatenate([dates, np.repeat(dates[-1:], slots - len(dates), axis=0)])


def _gather(pixels: torch.Tensor, images: NDArray[np.int64]) -> torch.Tensor:
    """Images (B, H, W, T, C) in their slots (B, H, W, S, C); zeros where there is none."""
    if images.shape[1] == pixels.shape[3] and (images == np.arange(images.shape[1])).all():
        return pixels
    batch, height, width, _, bands = pixels.shape
    result = pixels.new_zeros(batch, height, width, images.shape[1], bands)
    for place, source, row in zip(result, pixels, images, strict=True):
        filled = np.flatnonzero(row >= 0)
        place[:, :, filled] = source[:, :, row[filled]]
    return result


class BandFiller:
    """Lays the dataset's bands out as the modality's, and fills those it lacks."""

    def __init__(
        self, sources: list[int], scale: list[float], offset: list[float], real: list[bool]
    ) -> None:
        self._sources = torch.tensor(sources)
        self._scale, self._offset = torch.tensor(scale), torch.tensor(offset)
        self._real = real
        self._as_is = all(real) and sources == list(range(len(sources)))

    @classmethod
    def of(cls, dataset: EvalDataset, name: str, missing_bands: str) -> "BandFiller":
        bands = dataset.bands[name]
        stand_ins = {target: source for source, target in imputes(dataset.metadata.config)}
        sources, scale, offset, real = [], [], [], []
        for band in MODALITIES[name].bands:
            there = band in bands
            source = band if there else stand_ins.get(band, bands[0])
            factor, shift = 1.0, 0.0
            if not there and missing_bands == "zero":
                factor = 0.0
            elif not there:
                factor, shift = _renormalised(dataset, name, source, band)
            sources.append(bands.index(source))
            scale.append(factor)
            offset.append(shift)
            real.append(there or missing_bands == "impute")
        return cls(sources, scale, offset, real)

    def fill(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (..., bands of the dataset) as (..., bands of the modality)."""
        if self._as_is:
            return pixels
        filled = pixels[..., self._sources]
        return filled.mul_(self._scale.to(pixels)).add_(self._offset.to(pixels))

    def mask_of(self, group: Sequence[int]) -> int:
        """The mask value of a token made of these bands."""
        return SEEN if any(self._real[band] for band in group) else MISSING


def _renormalised(
    dataset: EvalDataset, modality: str, source: str, target: str
) -> tuple[float, float]:
    """Scale and offset from a normalised stand-in to what its raw values are as the other band.

    Where the statistics don't know a band that the dataset lacks, as the dataset's own don't, the
    stand-in's normalised values are taken as they are.
    """
    stats = dataset.statistics(modality) or {}
    if target not in stats or dataset._normalizers[modality].then:
        return 1.0, 0.0
    made = make_normalizer(
        str(dataset._arguments["method"]), (source, target), stats, decibels=False
    )
    if made.scale is None or made.offset is None or made.scale[0] == 0:
        return 1.0, 0.0
    factor = float(made.scale[1]) / float(made.scale[0])
    return factor, float(made.offset[1]) - factor * float(made.offset[0])


def _package() -> tuple[Any, Any]:
    """MaskedOlmoEarthSample and Modality of olmoearth_pretrain_minimal, or of its trainer."""
    # Optional and slow to import: only OlmoEarth's models need it.
    with contextlib.suppress(ImportError):
        from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality
        from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import (
            MaskedOlmoEarthSample,
        )

        return MaskedOlmoEarthSample, Modality
    with optional_part("olmoearth", "a sample of OlmoEarth's"):
        from olmoearth_pretrain.data.constants import Modality as TrainerModality
        from olmoearth_pretrain.datatypes import MaskedOlmoEarthSample as TrainerSample
    return TrainerSample, TrainerModality
