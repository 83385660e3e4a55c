"""What samples are made of: the outcome of reading a dataset's own configuration.

A `ResolvedConfig` is everything that index, pack and loader need to know about a dataset.
It is inferred by inference/resolve.py and kept in metadata.json with the origin of each value.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from eval_ingest.core.bounds import Count, Finite, Pixels, Record, Split
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.task import Task

SPLITS = ("train", "val", "test")


FormatName = Literal["geotiff", "image_tile", "single_image", "numpy", "geojson", "tile"]


class StoredFormat(Record):
    """How rasters or features are stored, by the names that we know."""

    name: FormatName
    arguments: tuple[tuple[str, str | int], ...] = ()
    """Names and values of what reading needs beside it, such as the side of tiles in pixels."""


GEOTIFF = StoredFormat(name="geotiff")
GEOJSON = StoredFormat(name="geojson")


class _Stored(Record):
    """What has a format."""

    was_geotiff: Literal[True] = Field(default=True, alias="geotiff", exclude=True, repr=False)
    was_geojson: Literal[True] = Field(default=True, alias="geojson", exclude=True, repr=False)
    """As it was kept when only one format had a name; of others, it isn't known which they are."""


PixelType = Annotated[str, Field(pattern=r"\A(u?int(8|16|32|64)|float(32|64))\z")]
"""numpy name of a type of plain numbers. What is read back is laid over bytes of a file, and of
other types numpy would take these for addresses of objects."""


class BandSet(_Stored):
    """One raster file per item group: the bands that are stored together."""

    bands: tuple[str, ...]
    dtype: PixelType
    """As stored."""
    zoom_offset: Annotated[int, Field(ge=-30, le=30)] = 0
    """Stored at the window's resolution divided by 2 ** zoom_offset."""
    spatial_size: tuple[Pixels, Pixels] | None = None
    """Fixed (height, width), whatever the window's size."""
    nodata_value: float | None = None
    class_names: tuple[tuple[str, ...], ...] = ()
    """Of each band by stored value; empty if there are none."""
    format: StoredFormat = GEOTIFF

    @property
    def geotiff(self) -> bool:
        """Stored as rslearn's GeotiffRasterFormat."""
        return self.format.name == "geotiff"

    @property
    def numpy(self) -> bool:
        """Stored as rslearn's NumpyRasterFormat."""
        return self.format.name == "numpy"

    @property
    def decoded(self) -> bool:
        """False: in a format that is read through rslearn."""
        return self.geotiff or self.numpy


class Layer(_Stored):
    """A layer of config.json that some input reads."""

    name: str
    vector: bool = False
    band_sets: tuple[BandSet, ...] = ()
    """Empty for vector layers."""
    format: StoredFormat = GEOJSON
    """Of vector layers."""
    class_property: str = ""
    """The property that holds a feature's class, where config.json names one."""
    class_names: tuple[str, ...] = ()
    """By stored value, where config.json names them."""

    @property
    def geojson(self) -> bool:
        """Stored as rslearn's GeojsonVectorFormat."""
        return self.format.name == "geojson"


class LayerRead(Record):
    """A layer to read, and which of its item groups."""

    layer: str
    item_group: Count | None
    """One item group, or None for all completed ones in order."""

    @property
    def specifier(self) -> str:
        """rslearn's name for it: `sentinel2`, `sentinel2.3`, or `sentinel2.*` for all."""
        if self.item_group is None:
            return f"{self.layer}.*"
        return f"{self.layer}.{self.item_group}" if self.item_group else self.layer


class InputPart(Record):
    """One rslearn DataInput: its reads are alternatives or are stacked along time."""

    key: str
    """The input's name in model.yaml."""
    reads: tuple[LayerRead, ...]
    stack: bool
    """True: all reads are stacked (load_all_layers). False: the first completed one is read."""
    required: bool = True


class MaskInput(Record):
    """rslearn's Mask transform: pixels that a raster hides are set to a value."""

    part: InputPart
    """The raster, of one timestep or of as many as the image has."""
    band: str
    dtype: PixelType = "float32"
    """The type that rslearn reads the mask as: int32 or float32."""
    value: float = 0.0
    hides: tuple[float, ...] = (0.0,)
    """The mask's values that hide a pixel."""
    shows: tuple[float, ...] = ()
    """Instead of `hides`: any other value hides it."""


class Pad(Record):
    """rslearn's Pad transform: zeros around, or a crop where the image is larger."""

    size: Pixels
    center: bool = False
    """Equal on all sides; otherwise at the bottom and right only."""


class _Padded(Record):
    pad: Pad | None = None
    pads: dict[Split, Pad | None] = Field(default_factory=dict)
    """By split, where it is another than `pad`."""

    def pad_of(self, split: str) -> Pad | None:
        """The Pad of a split's samples."""
        return self.pads.get(split, self.pad)


class ModalityInput(_Padded):
    """A modality of the samples: its parts are stacked along time in this order."""

    name: str
    bands: tuple[str, ...]
    """The bands that the dataset has, in the modality's order."""
    missing_bands: tuple[str, ...] = ()
    """The modality's bands that no layer holds."""
    parts: tuple[InputPart, ...]
    dtype: PixelType
    """Type of packed pixels: the narrowest that holds the stored ones (`uint16`, `float32`)."""
    mask: MaskInput | None = None
    """Comes before the pad."""
    decibels: bool = False
    """Linear on disk and in packs, decibels for statistics and models."""

    @property
    def required(self) -> bool:
        """False if a window without this modality is still valid."""
        return any(part.required for part in self.parts)


class LabelInput(_Padded):
    """Where the label is read from."""

    part: InputPart
    band: str | None = None
    """Raster labels: the band of the label layer. None for vector labels."""
    dtype: PixelType = "int32"
    """The type that rslearn reads the label as: int32 or float32."""
    mask: MaskInput | None = None
    """What it hides has no label."""


class SplitSelector(Record):
    """Which windows model.yaml gives to a split: in one of the groups, with all of the tags."""

    groups: tuple[str, ...] = ()
    """Empty: any group."""
    names: tuple[str, ...] = ()
    """Empty: any window name."""
    tags: Annotated[dict[str, JsonValue], Finite] = Field(default_factory=dict)
    """Window options that must be present and, if the value isn't empty, equal, type included."""
    num_samples: Count | None = None
    """Only so many windows, the first by the SHA-256 of their names."""

    def selects(self, group: str, name: str, options: dict[str, object]) -> bool:
        """True if a window of this group, name and options is selected."""
        return (
            (not self.groups or group in self.groups)
            and (not self.names or name in self.names)
            and all(k in options and (not v or options[k] == v) for k, v in self.tags.items())
        )


CropSize = Pixels | tuple[Pixels, Pixels]
"""Side of a square in pixels, or height and width."""


def sides_of(size: CropSize) -> tuple[int, int]:
    """Height and width."""
    return size if isinstance(size, tuple) else (size, size)


def size_text(size: CropSize | None) -> str:
    """For people: `16`, or `16 x 24`, height first; `none`."""
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size or "none")


class CropGrid(Record):
    """Every crop of a window is a sample: rslearn's load_all_crops."""

    size: CropSize
    overlap: Count = 0
    """Pixels that neighbours share; the last crop of a side, shifted inward, may share more."""

    @model_validator(mode="after")
    def _moves_on(self) -> Self:
        if self.overlap >= min(self.sides):
            raise ValueError(
                f"crops of {size_text(self.size)} pixels can't overlap by {self.overlap}"
            )
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides_of(self.size)


_Storage = Annotated[str, Field(pattern=r"\A(per_item_group|per_layer)\z")]


class ResolvedConfig(Record):
    """A dataset's configuration, resolved: what is predicted from what, and who said so."""

    task: Task
    label: LabelInput
    modalities: tuple[ModalityInput, ...]
    layers: tuple[Layer, ...]
    """The layers that modalities and label read, and no others."""
    crop_size: CropSize | None = None
    """The crop that the dataset's own training takes."""
    all_crops: dict[Split, CropGrid] = Field(default_factory=dict)
    """By split, where every crop of a window is a sample; other splits have a sample a window."""
    selectors: dict[Split, SplitSelector] = Field(default_factory=dict)
    """train, val, test as model.yaml declares them; empty if it doesn't."""
    declared_ratios: tuple[float, float, float] | None = None
    """train, val, test proportions from olmoearth_run.yaml's data splitter."""
    window_storage: Annotated[str, Field(pattern=r"\A(file|sqlite)\z")] = "file"
    """`file`, or `sqlite`: described in a database."""
    data_storage: _Storage = "per_item_group"
    """`per_item_group`, or `per_layer`: all item groups of a layer in one raster."""
    unsupported_inputs: tuple[str, ...] = ()
    """Inputs that no modality stands for (srtm, era5, ...): listed, not loaded."""
    dropped_transforms: tuple[str, ...] = ()
    """Transforms left out because they are random, normalise, or are replaced by ours."""
    provenance: dict[str, str] = Field(default_factory=dict)
    """Field name to the place it was inferred from, such as `model.yaml: data.init_args.task`."""
    warnings: tuple[str, ...] = ()

    @property
    def wrong_field(self) -> str:
        names, task = [modality.name for modality in self.modalities], self.task
        for modality in self.modalities:
            known = MODALITIES[modality.name].bands if modality.name in MODALITIES else ()
            found = sorted((*modality.bands, *modality.missing_bands))
            if not modality.bands or found != sorted(known) or names.count(modality.name) > 1:
                return "config.modalities"
        if task.kind.has_classes and len(task.classes) != task.num_classes:
            return "config.task.classes"
        if task.kind.per_pixel != (self.label.band is not None):
            return "config.label.band"
        return "" if names else "config.modalities"

    @property
    def cuts(self) -> tuple[str, ...]:
        """A split for each of the ways in which splits cut samples from windows, train first."""
        if not self.all_crops and not any(part.pads for part in (*self.modalities, self.label)):
            return SPLITS[:1]
        return tuple({self._cutting(split): split for split in reversed(SPLITS)}.values())[::-1]

    def cut_of(self, split: str) -> int:
        """Which of `cuts` a split's samples are; that of train for windows in no split."""
        found = [self._cutting(other) for other in self.cuts]
        return found.index(self._cutting(split)) if split in SPLITS else 0

    def _cutting(self, split: str) -> tuple[CropGrid | Pad | None, ...]:
        padded = (*self.modalities, self.label)
        return self.all_crops.get(split), *(part.pad_of(split) for part in padded)

    @property
    def grids(self) -> tuple[CropGrid, ...]:
        """Of `cuts`, those in which every crop is a sample."""
        return tuple(self.all_crops[split] for split in self.cuts if split in self.all_crops)

    @property
    def statistics_pads(self) -> bool:
        """True if statistics are of what Pad leaves of a window: where all splits cut alike."""
        return not self.all_crops and len(self.cuts) == 1

    @property
    def packs_layers(self) -> bool:
        """True if one raster holds all item groups of a layer: rslearn's PerLayerStorage."""
        return self.data_storage == "per_layer"

    @property
    def layer_names(self) -> frozenset[str]:
        """Names of the layers that are read."""
        return frozenset(layer.name for layer in self.layers)

    def layer(self, name: str) -> Layer:
        """The layer of that name; KeyError if no input reads it."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def modality(self, name: str) -> ModalityInput:
        """The modality of that name; KeyError if the dataset doesn't have it."""
        return {modality.name: modality for modality in self.modalities}[name]
