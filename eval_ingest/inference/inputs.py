"""Inputs to modalities: which layers, bands and types each modality of the samples is made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from eval_ingest.core.modality import MODALITIES, Modality, modality_of_layer
from eval_ingest.core.resolved import BandSet, InputPart, Layer, MaskInput, ModalityInput
from eval_ingest.errors import ConfigError, InferenceError, UnsupportedError
from eval_ingest.inference.dataset_json import DatasetJson
from eval_ingest.inference.model_yaml import DataInput
from eval_ingest.inference.notes import Notes
from eval_ingest.inference.transforms import Masking, Stream

_PACKED_TYPES = ("uint8", "uint16", "int16", "int32", "float32")


@dataclass(frozen=True)
class _Source:
    """One part of a modality, and what of it the merge needs."""

    part: InputPart
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


def build_modalities(
    streams: Iterable[Stream],
    inputs: Mapping[str, DataInput],
    dataset: DatasetJson,
    notes: Notes,
    wanted: tuple[str, ...] = (),
) -> tuple[tuple[ModalityInput, ...], tuple[str, ...]]:
    """The modalities that the streams stand for, and the inputs that no modality stands for.

    Streams of one modality become parts of it, so that none is published twice.
    """
    by_modality: dict[str, list[Stream]] = {}
    unknown: list[Stream] = []
    for stream in streams:
        modality = _modality_of(stream, inputs, notes)
        if modality is None:
            unknown.append(stream)
        else:
            by_modality.setdefault(modality.name, []).append(stream)
    samples = {name: _samples(name, found, notes) for name, found in by_modality.items()}
    used = {piece.key for found in by_modality.values() for s in found for piece in s.pieces}
    used |= {s.mask.key for found in samples.values() for s in found if s.mask}
    unsupported = dict.fromkeys(
        _described(inputs[piece.key])
        for stream in unknown
        for piece in stream.pieces
        if piece.key not in used
    )
    _check_wanted(wanted, tuple(samples), list(unsupported), dataset)
    chosen = {name: found for name, found in samples.items() if name in (wanted or [name])}
    modalities = tuple(
        _modality_input(MODALITIES[name], found, inputs, dataset, notes)
        for name, found in chosen.items()
    )
    for made in modalities:
        first = inputs[made.parts[0].key]
        notes.origin(f"bands.{made.name}", first.node.get("bands").place)
    return modalities, tuple(unsupported)


def _samples(modality: str, streams: list[Stream], notes: Notes) -> list[Stream]:
    """Which of the images of a modality are its sample.

    The one under its name, whatever is joined or copied under others such as `image`. Else what
    joins several inputs, and inputs that nothing joins. A copy of one input stands for it if it
    has all of its bands; one of some bands, often a picture, only where the input itself doesn't
    reach the model.
    """
    images: dict[str, list[Stream]] = {}
    for stream in streams:
        images.setdefault(stream.name, []).append(stream)
    if modality in images:
        keys = _keys(images[modality])
        others = [name for name, image in images.items() if not _keys(image) <= keys]
        if others:
            notes.warn(
                f"the model reads the image named {modality}; {', '.join(others)}, of the same "
                "modality, is not loaded"
            )
        return images[modality]
    joins = {n: s for n, s in images.items() if s[0].made and len(_keys(s)) > 1}
    joins = {n: s for n, s in joins.items() if not any(_outdoes(o, s) for o in joins.values())}
    chosen = dict(joins)
    by_bands = sorted(images, key=lambda n: (-_bands(images[n]), not images[n][0].made))
    for name in by_bands:
        if not _keys(images[name]) & _keys(s for kept in chosen.values() for s in kept):
            chosen[name] = images[name]
    return [stream for name in images if name in chosen for stream in chosen[name]]


def _keys(streams: Iterable[Stream]) -> set[str]:
    return {piece.key for stream in streams for piece in stream.pieces}


def _bands(image: list[Stream]) -> int:
    """How many channels an image has."""
    return sum(len(stream.pieces[0].bands) for stream in image)


def _outdoes(other: list[Stream], image: list[Stream]) -> bool:
    """True if another join holds all of a join's inputs and more, or more bands of the same."""
    theirs, its = _keys(other), _keys(image)
    return its < theirs or (its == theirs and _bands(other) > _bands(image))


def _check_wanted(
    wanted: tuple[str, ...], found: tuple[str, ...], unsupported: list[str], dataset: DatasetJson
) -> None:
    root = dataset.root
    for name in wanted:
        if name not in found:
            raise ConfigError(
                f"{root.where or 'the dataset'}: --modalities asks for {name!r}, but the dataset "
                f"has {', '.join(found) or 'none'}; choose among these"
            )
    if not found:
        listed = f" (found: {', '.join(unsupported)})" if unsupported else ""
        raise InferenceError(
            f"{root.where or 'the dataset'}: no input stands for one of the modalities "
            f"{', '.join(MODALITIES)}{listed}; name an input of model.yaml after the modality "
            "that it holds"
        )


def _described(data_input: DataInput) -> str:
    layers = data_input.layers
    return f"{data_input.key} (layer{'s' if len(layers) > 1 else ''} {', '.join(layers)})"


def _modality_of(stream: Stream, inputs: Mapping[str, DataInput], notes: Notes) -> Modality | None:
    """The modality that a stream is named after, or that all its layers mean."""
    layers = tuple(
        dict.fromkeys(layer for piece in stream.pieces for layer in inputs[piece.key].layers)
    )
    meant = {modality_of_layer(layer) for layer in layers}
    named = MODALITIES.get(stream.name)
    if named is None:
        return meant.pop() if len(meant) == 1 else None
    if meant != {named}:
        others = [layer for layer in layers if modality_of_layer(layer) != named]
        notes.warn(
            f"input {stream.name!r} reads layer {', '.join(others)}, whose name doesn't mean "
            f"{named.name}; it is taken for {named.name} because the input is named so"
        )
    return named


def _modality_input(
    modality: Modality,
    streams: list[Stream],
    inputs: Mapping[str, DataInput],
    dataset: DatasetJson,
    notes: Notes,
) -> ModalityInput:
    for stream in streams:
        if stream.problem is not None:
            raise stream.problem
    sources = _merged_sources(_sources(streams, inputs, dataset), modality, notes)
    bands = _common_bands(sources, modality, notes)
    if len({(stream.pad, stream.mask) for stream in streams}) > 1:
        raise UnsupportedError(
            f"{dataset.root.where or 'model.yaml'}: of the inputs of {modality.name} "
            f"({', '.join(stream.name for stream in streams)}) only some are padded or masked "
            "alike; name them all in the transform's selectors"
        )
    mask = mask_input(streams[0].mask, inputs, dataset)
    return ModalityInput(
        name=modality.name,
        bands=bands,
        missing_bands=tuple(band for band in modality.bands if band not in bands),
        parts=tuple(source.part for source in sources),
        dtype=_packed_type(modality.name, sources, bands, dataset, notes, mask),
        mask=mask,
        pad=streams[0].pad,
        decibels=modality.decibels,
    )


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


def _sources(
    streams: list[Stream], inputs: Mapping[str, DataInput], dataset: DatasetJson
) -> list[_Source]:
    sources = []
    for stream in streams:
        for piece in stream.pieces:
            data_input = inputs[piece.key]
            data_input.check_supported()
            check_bands(data_input, piece.bands, dataset)
            sources.append(_Source(data_input.part, data_input, piece.bands))
    return sources


def _merged_sources(sources: list[_Source], modality: Modality, notes: Notes) -> list[_Source]:
    """Sources of the same rasters become one, with the bands of both."""
    merged: dict[tuple[object, ...], _Source] = {}
    for source in sources:
        part = source.part
        key = (part.reads, part.stack)
        if key not in merged:
            merged[key] = source
            _warn_of_choice(part, notes)
            continue
        first = merged[key]
        if set(first.bands) & set(source.bands):
            notes.warn(
                f"inputs {first.part.key!r} and {part.key!r} read the same layers for "
                f"{modality.name}; they are taken once"
            )
        merged[key] = replace(
            first,
            bands=tuple(dict.fromkeys(first.bands + source.bands)),
            part=first.part.model_copy(update={"required": first.part.required or part.required}),
        )
    return list(merged.values())


def _warn_of_choice(part: InputPart, notes: Notes) -> None:
    several = len(part.reads) > 1 or any(read.item_group is None for read in part.reads)
    if several and not part.stack:
        reads = ", ".join(read.specifier for read in part.reads)
        notes.warn(
            f"input {part.key!r} reads one of {reads}: rslearn picks one at random, here it is "
            "the first completed one"
        )


def _common_bands(sources: list[_Source], modality: Modality, notes: Notes) -> tuple[str, ...]:
    """The modality's bands that all sources have, in the modality's order."""
    all_bands = dict.fromkeys(band for source in sources for band in source.bands)
    unknown = [band for band in all_bands if band not in modality.bands]
    if unknown:
        notes.warn(
            f"{modality.name} has no band {', '.join(unknown)}; it is left out "
            f"(input {sources[0].part.key!r})"
        )
    common = set.intersection(*(set(source.bands) for source in sources))
    uncommon = [band for band in all_bands if band in modality.bands and band not in common]
    bands = tuple(band for band in modality.bands if band in common)
    keys = ", ".join(source.part.key for source in sources)
    if not bands:
        raise (
            sources[0]
            .data_input.node.get("bands")
            .error(
                f"{modality.name} (inputs {keys}) would be without bands: its inputs share none of "
                f"{' '.join(modality.bands)}",
                "give each of its inputs the same bands, or leave it out with --modalities",
                UnsupportedError,
            )
        )
    if uncommon:
        notes.warn(
            f"the inputs of {modality.name} ({keys}) have different bands; only those common to "
            f"all are used, without {', '.join(uncommon)}"
        )
    return bands


def _packed_type(
    name: str,
    sources: list[_Source],
    bands: tuple[str, ...],
    dataset: DatasetJson,
    notes: Notes,
    mask: MaskInput | None,
) -> str:
    """The narrowest type that holds what rslearn reads, and what a mask puts in, exactly."""
    stored = [
        band_set.dtype
        for source in sources
        for layer in source.data_input.layers
        for band_set in _band_sets_of(bands, read_layer(source.data_input, layer, dataset))
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
    if joint != "float64" or any(dtype.endswith(("32", "64")) for dtype in stored):
        wide = [dtype for dtype in dict.fromkeys(stored) if dtype not in (*_PACKED_TYPES, "int8")]
        if wide:
            notes.warn(
                f"{name} is stored as {', '.join(wide)} and packed as float32, which holds whole "
                "numbers up to 16,777,216 only (as rslearn's FLOAT32 does)"
            )
    return "float32"


def _band_sets_of(bands: Iterable[str], layer: Layer) -> list[BandSet]:
    """The band sets that the bands are read from: the first that holds each."""
    found = []
    for band in bands:
        found.append(next(band_set for band_set in layer.band_sets if band in band_set.bands))
    return found
