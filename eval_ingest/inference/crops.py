"""What of a window is a sample: all of it, a crop of it, or every crop of it.

As the splits of model.yaml say, by rslearn's names for it: crop_size (formerly patch_size),
load_all_crops (load_all_patches), overlap_pixels (overlap_ratio).
"""

from collections.abc import Iterable

from eval_ingest.core.bounds import MOST_PIXELS
from eval_ingest.core.resolved import CropGrid, CropSize, ModalityInput, sides_of, size_text
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.errors import ConfigError
from eval_ingest.inference.model_yaml import Declaration, SplitConfigs, elements
from eval_ingest.inference.node import Node, Notes
from eval_ingest.inference.run_yaml import RunYaml
from eval_ingest.inference.transforms import size_range

_SIZES = ("crop_size", "patch_size")
_FLAGS = ("load_all_crops", "load_all_patches")


def crop_size(
    declared: Declaration, run: RunYaml, spec: DatasetSpec, notes: Notes
) -> CropSize | None:
    """The crop that training takes: by the spec, the split configs, Crop, or the run file."""
    if spec.crop_size is not None:
        notes.origin("crop_size", "--crop-size")
        return spec.crop_size
    for node in (*_split_crops(declared), *_transform_crops(declared), run.input_size):
        if node.unset:
            notes.warn(
                f"{node.place} is the unset placeholder {node.value}; it is ignored, and "
                "--crop-size sets it"
            )
        elif node.given:
            size = _size(node, notes)
            notes.origin("crop_size", node.place)
            return size
    notes.origin("crop_size", "default")
    return None


def fitting_crop(
    crop: CropSize | None,
    declared: Declaration,
    modalities: Iterable[ModalityInput],
    notes: Notes,
) -> CropSize | None:
    """The crop, or none where Pad makes samples smaller than it.

    rslearn crops first: a Pad then cuts the crop to its size, or fills it up with zeros.
    """
    pads = [pad.size for m in modalities for pad in (m.pad, *m.pads.values()) if pad is not None]
    if crop is None or not pads or sides_of(crop) == (min(pads),) * 2:
        return crop
    size, shown = min(pads), size_text(crop)
    if size <= min(sides_of(crop)):
        notes.origin("crop_size", "default")
        notes.warn(
            f"crops of {shown} pixels are cut to {size} by Pad; samples are the {size} x {size} "
            "pixels that Pad leaves of a whole window"
        )
        return None
    height, width = (min(side, size) for side in sides_of(crop))
    crop = height if height == width else (height, width)
    names = [node.class_name for node in declared.transforms if node.class_name in ("Crop", "Pad")]
    if names[:1] == ["Pad"] and "Crop" in names:
        return crop
    notes.warn(
        f"crops of {shown} pixels are filled up to {size} with zeros by Pad; samples are the "
        f"{size_text(crop)} pixels of the crops, without zeros around them"
    )
    return crop


def _split_crops(declared: Declaration) -> list[Node]:
    """crop_size, as train and val have it where it isn't that of every crop."""
    splits = declared.splits or SplitConfigs(Node(None, ""))
    single = [split for split in ("train", "val") if not splits.first(split, *_FLAGS).flag()]
    return [splits.merged(split, key) for split in single for key in _SIZES]


def _transform_crops(declared: Declaration) -> list[Node]:
    transforms = (*declared.train_transforms, *declared.transforms)
    return [node.args.get("crop_size") for node in transforms if node.class_name == "Crop"]


def _size(node: Node, notes: Notes) -> CropSize:
    """From a number, rslearn's [width, height], or its Crop's [smallest, beyond largest]."""
    if isinstance(node.value, list) and ".transforms" in node.path:
        low, high = size_range(node)
        sides = [high - 1 if high is not None else None]
        if low is not None and high is not None and high - 1 > low:
            notes.warn(f"{node.place}: crops of {low} to {high - 1} pixels; {high - 1} is taken")
    else:
        sides = [item.integer() for item in elements(node)]
    if len(sides) not in (1, 2) or not all(0 < (side or 0) <= MOST_PIXELS for side in sides):
        raise node.error(
            f"is {node.shown}, but must be 1 to {MOST_PIXELS:,} pixels, or width and height"
        )
    width, height = sides[0] or 0, sides[-1] or 0
    return width if width == height else (height, width)


def all_crops(declared: Declaration, spec: DatasetSpec, notes: Notes) -> dict[str, CropGrid]:
    """The splits in which every crop of a window is a sample, and their crops.

    A test split that model.yaml doesn't have is made of val's windows, and so are its samples.
    """
    splits, found = declared.splits or SplitConfigs(Node(None, "")), {}
    for split in SPLITS:
        alone = split == "test" and not splits.node.get("test_config").given
        config = "val" if alone else split
        flag = splits.first(config, *_FLAGS)
        if flag.flag() if spec.all_crops is None else split in spec.all_crops:
            found[split] = _grid(splits, config, spec, notes)
            origin = "--all-crops" if spec.all_crops is not None else flag.place
            notes.origin(f"all_crops.{split}", origin)
    return found


def _grid(splits: SplitConfigs, config: str, spec: DatasetSpec, notes: Notes) -> CropGrid:
    """Size and overlap of a split's crops; the spec's crop size goes first."""
    node = splits.first(config, *_SIZES)
    size: CropSize | None = spec.crop_size or (_size(node, notes) if node.given else None)
    if size is None:
        raise ConfigError(
            f"{spec.name}: every crop of the {config} windows is to be a sample, but nothing says "
            "how large they are; give --crop-size"
        )
    overlap = splits.first(config, "overlap_pixels")
    pixels = overlap.integer() or 0
    if not overlap.given:
        overlap = splits.first(config, "overlap_ratio")
        pixels = round(sides_of(size)[1] * (overlap.number() or 0))  # of the width
    most = min(sides_of(size)) - 1
    if not 0 <= pixels <= most:
        raise overlap.error(
            f"is {overlap.shown}, but crops of {size_text(size)} pixels can share 0 to {most}",
            "correct it, or give a larger --crop-size",
        )
    return CropGrid(size=size, overlap=pixels)
