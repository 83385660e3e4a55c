"""Inputs to modalities: which layers, bands and types each modality of the samples is made of."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from eval_ingest.core.modality import MODALITIES, Modality, modality_of_layer
from eval_ingest.core.resolved import Layer, MaskInput, ModalityInput
from eval_ingest.errors import ConfigError, InferenceError, UnsupportedError
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.model_yaml import DataInput
from eval_ingest.inference.node import Notes
from eval_ingest.inference.transforms import Masking, Replay, Stream

_PACKED_TYPES = ("uint8", "uint16", "int16", "int32", "float32")

_L1C = re.compile(r"L1C|MSI1C|gcp_public_data\.Sentinel2\b", re.IGNORECASE)
"""What a data source of Sentinel-2's top of atmosphere reflectance names; not L2A."""
_MOST = 10_000
"""Characters of a data source's description that are looked at."""


class _Source(NamedTuple):
    """What a part of a modality is read from, and its bands."""

    data_input: DataInput
    bands: tuple[str, ...]


def raster_bands(data_input: DataInput, dataset: DatasetJson) -> tuple[str, ...]:
    """The bands that rslearn would read for an input, in that order."""
    if data_input.bands:
        return data_input.bands
    index_node = data_input.node.get("use_all_bands_in_order_of_band_set_idx")
    if not index_node.given:
        raise data_input.node.error(
            f"input {data_input.key!r} names no bands",
            "give `bands` or `use_all_bands_in_order_of_band_set_idx`",
        )
    layer = read_layer(data_input, data_input.layers[0], dataset)
    if not 0 <= data_input.band_set_index < len(layer.band_sets):
        raise index_node.error(
            f"is {data_input.band_set_index}, but layer {layer.name!r} has "
            f"{len(layer.band_sets)} band sets (counted from 0)"
        )
    return layer.band_sets[data_input.band_set_index].bands


def read_layer(data_input: DataInput, name: str, dataset: DatasetJson) -> Layer:
    """A layer that an input reads; an error if it isn't of the input's type."""
    layer = dataset.layer(name, data_input.node.get("layers"))
    if layer.vector != data_input.vector:
        kinds = ("vector", "raster") if layer.vector else ("raster", "vector")
        raise data_input.node.error(
            f"input {data_input.key!r} reads the {kinds[0]} layer {name!r} as a {kinds[1]}",
            "correct data_type or layers",
        )
    return layer


def check_bands(data_input: DataInput, bands: Iterable[str], dataset: DatasetJson) -> None:
    """Refuse a band that one of the input's layers doesn't have."""
    for name in data_input.layers:
        layer = read_layer(data_input, name, dataset)
        known = [band for band_set in layer.band_sets for band in band_set.bands]
        for band in bands:
            if band not in known:
                raise data_input.node.get("bands").error(
                    f"band {band!r} isn't in layer {name!r}, which has {', '.join(known)}",
                    "correct the bands in model.yaml or config.json",
                )


@dataclass(frozen=True)
class ModalityReader:
    """Everything that decides the modalities: the images that reach the model, and their inputs."""

    replayed: Replay
    others: Mapping[str, Replay]
    """Of splits whose images differ in their Pad at most."""
    inputs: Mapping[str, DataInput]
    dataset: DatasetJson
    notes: Notes

    def modalities(
        self, wanted: tuple[str, ...] = ()
    ) -> tuple[tuple[ModalityInput, ...], tuple[str, ...]]:
        """The modalities that the images stand for, and the inputs that no modality stands for.

        Images of one modality become parts of it, so that none is published twice.
        """
        by_modality: dict[str, list[Stream]] = {}
        unknown: list[Stream] = []
        for stream in self.replayed.outcome():
            modality = self._modality_of(stream)
            named = unknown if modality is None else by_modality.setdefault(modality.name, [])
            named.append(stream)
        samples = {name: self._samples(name, found) for name, found in by_modality.items()}
        used = {key for found in by_modality.values() for key in _keys(found)}
        used |= {s.image.mask.key for found in samples.values() for s in found if s.image.mask}
        unsupported = tuple(
            _described(self.inputs[key]) for key in _keys(unknown) if key not in used
        )
        self._check_wanted(wanted, samples, unsupported)
        chosen = [name for name in samples if name in (wanted or [name])]
        return tuple(self._modality(MODALITIES[n], samples[n]) for n in chosen), unsupported

    def _modality_of(self, stream: Stream) -> Modality | None:
        """The modality that a stream is named after, or that all its layers mean."""
        layers = dict.fromkeys(
            layer for piece in stream.pieces for layer in self.inputs[piece.key].layers
        )
        meant = {modality_of_layer(layer) for layer in layers}
        named = MODALITIES.get(stream.name)
        if named is None:
            return meant.pop() if len(meant) == 1 else None
        if meant != {named}:
            others = [layer for layer in layers if modality_of_layer(layer) != named]
            self.notes.warn(
                f"input {stream.name!r} reads layer {', '.join(others)}, whose name doesn't mean "
                f"{named.name}; it is taken for {named.name} because the input is named so"
            )
        return named

    def _samples(self, modality: str, streams: list[Stream]) -> list[Stream]:
        """Which of the images of a modality are its sample.

        The one under its name, whatever is joined or copied under others such as `image`. Else what
        joins several inputs; where nothing does, the inputs in turn. A copy of one input stands for
        it if it has all of its bands; one of some bands, often a picture, only where the input
        itself doesn't reach the model.
        """
        images: dict[str, list[Stream]] = {}
        for stream in streams:
            images.setdefault(stream.name, []).append(stream)
        joins = {n: s for n, s in images.items() if s[0].image.made and len(_keys(s)) > 1}
        chosen = {n: s for n, s in joins.items() if not any(_outdoes(o, s) for o in joins.values())}
        if modality in images:
            chosen = {modality: images[modality]}
        if chosen:
            read = _keys(itertools.chain(*chosen.values()))
            spare = [name for name, image in images.items() if not set(_keys(image)) <= set(read)]
            if spare:
                self.notes.warn(
                    f"the model reads the image {' and '.join(chosen)} as {modality}; "
                    f"{', '.join(spare)}, of the same modality, is not loaded"
                )
        for name in () if chosen else sorted(images, key=lambda n: _worth(images[n]), reverse=True):
            if not set(_keys(images[name])) & set(_keys(itertools.chain(*chosen.values()))):
                chosen[name] = images[name]
        return [stream for name in images if name in chosen for stream in chosen[name]]

    def _check_wanted(
        self, wanted: Iterable[str], found: Iterable[str], unsupported: Iterable[str]
    ) -> None:
        where, there = self.dataset.root.where or "the dataset", ", ".join(found)
        for name in wanted:
            if name not in found:
                raise ConfigError(
                    f"{where}: --modalities asks for {name!r}, but the dataset has "
                    f"{there or 'none'}; choose among these"
                )
        if not there:
            listed = ", ".join(unsupported)
            raise InferenceError(
                f"{where}: no input stands for one of the modalities {', '.join(MODALITIES)}"
                f"{f' (found: {listed})' if listed else ''}; name an input of model.yaml after the "
                "modality that it holds"
            )

    def _modality(self, modality: Modality, streams: list[Stream]) -> ModalityInput:
        first = streams[0]
        for stream in streams:
            if stream.image.problem is not None:
                raise stream.image.problem
            if (stream.image.pad, stream.image.mask) != (first.image.pad, first.image.mask):
                raise UnsupportedError(
                    f"{self.dataset.root.where or 'model.yaml'}: of the inputs of {modality.name} "
                    f"({', '.join(stream.name for stream in streams)}) only some are padded or "
                    "masked alike; name them all in the transform's selectors"
                )
        sources = self._sources(streams, modality)
        bands = self._common_bands(sources, modality)
        mask = mask_input(first.image.mask, self.inputs, self.dataset)
        place = self.inputs[sources[0].data_input.key].node.get("bands").place
        self.notes.origin(f"bands.{modality.name}", place)
        self._note_product(sources, modality)
        return ModalityInput(
            name=modality.name,
            bands=bands,
            missing_bands=tuple(band for band in modality.bands if band not in bands),
            parts=tuple(source.data_input.part for source in sources),
            dtype=self._packed_type(modality.name, sources, bands, mask),
            mask=mask,
            pad=first.image.pad,
            pads=self.replayed.pads_beside(self.others, first.name),
            decibels=modality.decibels,
        )

    def _sources(self, streams: list[Stream], modality: Modality) -> list[_Source]:
        """What the streams' pieces are read from; of the same rasters once, with all the bands."""
        merged: dict[tuple[object, ...], _Source] = {}
        for piece in (piece for stream in streams for piece in stream.pieces):
            data_input = self.inputs[piece.key]
            data_input.check_supported()
            check_bands(data_input, piece.bands, self.dataset)
            if len(set(piece.bands)) < len(piece.bands):
                self.notes.warn(
                    f"{piece.key} has bands that stand in for others; samples hold each once"
                )
            key = (data_input.reads, data_input.stack)
            if key not in merged:
                merged[key] = _Source(data_input, piece.bands)
                self._warn_of_choice(data_input)
                continue
            first, bands = merged[key]
            if set(bands) & set(piece.bands):
                self.notes.warn(
                    f"inputs {first.key!r} and {piece.key!r} read the same layers for "
                    f"{modality.name}; they are taken once"
                )
            required = first.required or data_input.required
            merged[key] = _Source(
                replace(first, required=required), tuple(dict.fromkeys(bands + piece.bands))
            )
        return list(merged.values())

    def _warn_of_choice(self, data_input: DataInput) -> None:
        several = len(data_input.reads) > 1 or data_input.reads[0].item_group is None
        if several and not data_input.stack:
            reads = ", ".join(read.specifier for read in data_input.reads)
            self.notes.warn(
                f"input {data_input.key!r} reads one of {reads}: rslearn picks one at random, here "
                "it is the first completed one"
            )

    def _note_product(self, sources: Iterable[_Source], modality: Modality) -> None:
        """Tell of a layer that is filled with another product than its name means."""
        for layer in dict.fromkeys(layer for s in sources for layer in s.data_input.layers):
            filled = self.dataset.node(layer).get("data_source")
            if modality.name.endswith("_l2a") and _L1C.search(json.dumps(filled.value)[:_MOST]):
                self.notes.warn(
                    f"{filled.place} fetches Sentinel-2 L1C, and layer {layer} is taken for "
                    f"{modality.name}: another product; leave it out with --modalities"
                )

    def _common_bands(self, sources: list[_Source], modality: Modality) -> tuple[str, ...]:
        """The modality's bands that all sources have, in the modality's order."""
        all_bands = dict.fromkeys(band for source in sources for band in source.bands)
        unknown = [band for band in all_bands if band not in modality.bands]
        keys = ", ".join(source.data_input.key for source in sources)
        if unknown:
            self.notes.warn(
                f"{modality.name} has no band {', '.join(unknown)}; it is left out (input {keys})"
            )
        common = set.intersection(*(set(source.bands) for source in sources))
        bands = tuple(band for band in modality.bands if band in common)
        if not bands:
            named = sources[0].data_input.node.get("bands")
            raise named.unsupported(
                f"{modality.name} (inputs {keys}) would be without bands: its inputs share none of "
                f"{' '.join(modality.bands)}",
                "give each of its inputs the same bands, or leave it out with --modalities",
            )
        uncommon = [band for band in all_bands if band in modality.bands and band not in common]
        if uncommon:
            self.notes.warn(
                f"the inputs of {modality.name} ({keys}) have different bands; only those common "
                f"to all are used, without {', '.join(uncommon)}"
            )
        return bands

    def _packed_type(
        self, modality: str, sources: list[_Source], bands: tuple[str, ...], mask: MaskInput | None
    ) -> str:
        """The narrowest type that holds what rslearn reads, and what a mask puts in, exactly."""
        stored = [
            next(band_set.dtype for band_set in layer.band_sets if band in band_set.bands)
            for source in sources
            for name in source.data_input.layers
            for layer in [read_layer(source.data_input, name, self.dataset)]
            for band in bands
        ]
        if mask is not None and mask.value:
            stored.append(np.min_scalar_type(int(mask.value)).name)
        joint = np.result_type(*stored).name
        if joint in _PACKED_TYPES:
            # rslearn cuts fractions off where model.yaml says INT32.
            whole = all(source.data_input.dtype == "int32" for source in sources)
            return "int32" if joint == "float32" and whole else joint
        if joint == "int8":
            return "int16"
        wide = [dtype for dtype in dict.fromkeys(stored) if dtype not in (*_PACKED_TYPES, "int8")]
        if wide and (joint != "float64" or any(d.endswith(("32", "64")) for d in stored)):
            self.notes.warn(
                f"{modality} is stored as {', '.join(wide)} and packed as float32, which holds "
                "whole numbers up to 16,777,216 only (as rslearn's FLOAT32 does)"
            )
        return "float32"


def _keys(streams: Iterable[Stream]) -> list[str]:
    """The inputs of streams, each once."""
    return list(dict.fromkeys(piece.key for stream in streams for piece in stream.pieces))


def _worth(image: list[Stream]) -> tuple[int, bool]:
    """How many channels an image has; of equals, those that a transform made go first."""
    return sum(len(stream.pieces[0].bands) for stream in image), image[0].image.made


def _outdoes(other: list[Stream], image: list[Stream]) -> bool:
    """True if another join holds all of a join's inputs and more, or more bands of the same."""
    theirs, its = set(_keys(other)), set(_keys(image))
    return its < theirs or (its == theirs and _worth(other) > _worth(image))


def _described(data_input: DataInput) -> str:
    layers = data_input.layers
    return f"{data_input.key} (layer{'s' if len(layers) > 1 else ''} {', '.join(layers)})"


def mask_input(
    masking: Masking | None, inputs: Mapping[str, DataInput], dataset: DatasetJson
) -> MaskInput | None:
    """The raster that a Mask goes by, if there is one."""
    if masking is None:
        return None
    data_input = inputs[masking.key]
    (band,) = raster_bands(data_input, dataset)
    data_input.check_supported()
    check_bands(data_input, (band,), dataset)
    return MaskInput(
        part=data_input.part,
        band=band,
        dtype=data_input.dtype,
        value=masking.value,
        hides=masking.hides,
        shows=masking.shows,
    )
