"""model.yaml of the rslearn copy: what rslearn must do to read a sample as EvalDataset gives it.

Written from the resolved configuration, so that it says the same as metadata.json, flags of the
spec included. Against the dataset's own model.yaml: inputs are named after their modality, with
the bands in its order; layers that no modality stands for are gone; nothing random is left, and
nothing that normalises; splits go by the option `eval_split`; no environment variable is needed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from eval_ingest.core.entry import imputes
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.resolved import (
    InputPart,
    MaskInput,
    ModalityInput,
    Pad,
    ResolvedConfig,
    sides_of,
)
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS
from eval_ingest.core.task import TaskKind

TARGETS = "targets"
"""The input that rslearn's tasks read the label from."""

_TASKS = {
    TaskKind.SEGMENTATION: (
        "segmentation.SegmentationTask",
        {"num_classes", "class_id_mapping", "nodata_value"},
    ),
    TaskKind.CLASSIFICATION: (
        "classification.ClassificationTask",
        {"property_name", "allow_invalid", "read_class_id", "skip_unknown_categories"},
    ),
    TaskKind.REGRESSION: (
        "per_pixel_regression.PerPixelRegressionTask",
        {"scale_factor", "nodata_value"},
    ),
    TaskKind.SCALAR_REGRESSION: (
        "regression.RegressionTask",
        {"property_name", "allow_invalid", "scale_factor"},
    ),
}
"""rslearn's class of each kind of task, and the fields of ours that are its arguments."""

_TARGET_IMAGES = {
    TaskKind.SEGMENTATION: ("target/classes", "target/valid"),
    TaskKind.REGRESSION: ("target/values", "target/valid"),
}


def copy_model(
    config: ResolvedConfig, modalities: Iterable[str], crop: Pad | None, crops_fit: bool = True
) -> dict[str, Any]:
    """The content of model.yaml, of which `data` is all there is.

    Args:
        config: the dataset.
        modalities: names of those that are read; each window must have them.
        crop: what makes all samples equally large; None: they are. In splits of which every
            crop is a sample, these are read.
        crops_fit: no window is smaller than the crops of its split.
    """
    chosen = [config.modality(name) for name in modalities]
    inputs = copy_inputs(config, modalities)
    data: dict[str, Any] = {"path": ".", "inputs": inputs, "task": _task(config)}
    if config.all_crops:
        # Read crop by crop, unless what lies beyond a window or the label of a part is asked for:
        # only windows that are held in memory give these as rslearn's training has them.
        by_crop = crops_fit and config.task.kind.per_pixel
        data["use_map_all_crops_dataset" if by_crop else "use_in_memory_dataset"] = True
    joined = [step for modality in chosen for step in _modality_steps(config, modality)]
    if config.label.mask is not None:
        joined += _mask_steps(config.label.mask, TARGETS, ["target/valid"])
    steps = {split: joined + _pads(config, chosen, crop, split) for split in SPLITS}
    alike = all(found == steps["train"] for found in steps.values())
    if alike and steps["train"]:
        data["default_config"] = {"transforms": steps["train"]}
    for split in SPLITS:
        data[f"{split}_config"] = {"tags": split_tags(split), **_crops(config, split)}
        if not alike:
            data[f"{split}_config"]["transforms"] = steps[split]
    return {"data": _class("rslearn.train.data_module.RslearnDataModule", **data)}


def _crops(config: ResolvedConfig, split: str) -> dict[str, Any]:
    grid = config.all_crops.get(split)
    if grid is None:
        return {}
    crop = grid.size if isinstance(grid.size, int) else list(reversed(grid.size))  # width, height
    return {"load_all_crops": True, "crop_size": crop, "overlap_pixels": grid.overlap}


def split_tags(split: str) -> dict[str, str]:
    """The tags that select a split's windows."""
    return {SPLIT_OPTION: split}


def copy_inputs(config: ResolvedConfig, modalities: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The inputs by name, as arguments of rslearn's DataInput: one per part, and the label."""
    inputs = {}
    for modality in map(config.modality, modalities):
        # rslearn cuts fractions off where the dataset's own model.yaml says INT32.
        dtype = "INT32" if modality.dtype == "int32" else "FLOAT32"
        for name, part in _parts(modality):
            inputs[name] = _raster(part, modality.bands, dtype, passthrough=True)
        if modality.mask is not None:
            inputs[_mask_key(modality.name)] = _mask_input(modality.mask)
    label = config.label
    if label.mask is not None:
        inputs[_mask_key(TARGETS)] = _mask_input(label.mask)
    if label.band is None:
        inputs[TARGETS] = {**_reads(label.part), "data_type": "vector"}
    else:
        inputs[TARGETS] = _raster(label.part, [label.band], label.dtype)
    inputs[TARGETS] |= {"required": True, "is_target": True}
    return inputs


def _mask_key(masked: str) -> str:
    """The input that masks a modality, or the targets."""
    return f"{masked}_mask"


def _mask_input(mask: MaskInput) -> dict[str, Any]:
    return _raster(mask.part, [mask.band], mask.dtype, passthrough=True)


def _mask_steps(mask: MaskInput, masked: str, selectors: list[str]) -> list[dict[str, Any]]:
    """Make a mask of zeros where it hides, if it is none yet, and apply it."""
    key = _mask_key(masked)
    steps: list[dict[str, Any]] = []
    made: dict[str, Any] = {"output_selector": key}
    if mask.shows:
        made |= {"cloud_mask_selector": key, "clear_values": _whole(mask.shows)}
        steps.append(_transform("earthdaily.EarthDailyCloudMaskToMask", **made))
    elif mask.hides != (0.0,):
        made |= {"scl_selector": key, "exclude_scl_values": _whole(mask.hides)}
        steps.append(_transform("sentinel2.Sentinel2SCLToMask", **made))
    masking = {"selectors": selectors, "mask_selector": key, "mask_value": int(mask.value)}
    return [*steps, _transform("mask.Mask", **masking)]


def _whole(values: Iterable[float]) -> list[int]:
    return [int(value) for value in values]


def _parts(modality: ModalityInput) -> list[tuple[str, InputPart]]:
    """A modality's parts and the names of their inputs: the modality's own if there is one."""
    if len(modality.parts) == 1:
        # Without it there is no such modality, and then the window isn't read at all.
        return [(modality.name, modality.parts[0].model_copy(update={"required": True}))]
    return [(f"{modality.name}_{k}", part) for k, part in enumerate(modality.parts)]


def _reads(part: InputPart) -> dict[str, Any]:
    whole = any(read.item_group is None for read in part.reads)
    return {
        "layers": [read.layer if whole else read.specifier for read in part.reads],
        "required": part.required,
        "load_all_layers": part.stack,
        "load_all_item_groups": whole,
    }


def _raster(part: InputPart, bands: Iterable[str], dtype: str, **more: Any) -> dict[str, Any]:
    pixels = {"data_type": "raster", "bands": list(bands), "dtype": dtype.upper()}
    return _reads(part) | pixels | more


def _task(config: ResolvedConfig) -> dict[str, Any]:
    task = config.task
    path, fields = _TASKS[task.kind]
    args = task.model_dump(include=fields, exclude_none=True)
    if task.kind is TaskKind.CLASSIFICATION:
        args["classes"] = [known.name for known in task.classes]
    if task.kind is TaskKind.SEGMENTATION and "nodata_value" in args:
        args["nodata_value"] = int(args["nodata_value"])
    return _class(f"rslearn.train.tasks.{path}", **args)


def _modality_steps(config: ResolvedConfig, modality: ModalityInput) -> list[dict[str, Any]]:
    """Join a modality's parts along time, and let other bands stand for those that it lacks."""
    name, parts, steps = modality.name, _parts(modality), []
    if len(parts) > 1:
        joined = {
            "selections": {key: [] for key, _ in parts},
            "output_selector": name,
            "skip_missing": not all(part.required for _, part in parts),
        }
        steps.append(_transform("concatenate.Concatenate", **joined))
    if modality.missing_bands:
        indices = _with_stand_ins(modality, stand_ins(config))
        chosen = {"band_indices": indices, "input_selector": name, "output_selector": name}
        steps.append(_transform("select_bands.SelectBands", **chosen))
    if modality.mask is not None:
        steps += _mask_steps(modality.mask, name, [name])
    return steps


def stand_ins(config: ResolvedConfig) -> dict[str, str]:
    """Missing band to the band that the registry names in its place."""
    return {missing: present for present, missing in imputes(config)}


def _with_stand_ins(modality: ModalityInput, sources: Mapping[str, str]) -> list[int]:
    """Places in the dataset's bands, for each of the modality's bands in order."""
    return [
        modality.bands.index(band if band in modality.bands else sources[band])
        for band in MODALITIES[modality.name].bands
    ]


def _pads(
    config: ResolvedConfig, modalities: list[ModalityInput], crop: Pad | None, split: str
) -> list[dict[str, Any]]:
    """The dataset's own Pad, and the crop: rslearn's Pad cuts what is larger than its size.

    In the order in which `core.crops.Cut` takes them; without the crop where all of them are read.
    """
    by_pad: dict[Pad, list[str]] = {}
    targets = _TARGET_IMAGES.get(config.task.kind, ())
    padded = [(modality.pad_of(split), [modality.name]) for modality in modalities]
    for pad, selectors in [*padded, (config.label.pad_of(split), list(targets))]:
        if pad is not None:
            by_pad.setdefault(pad, []).extend(selectors)
    steps = [_pad(pad, selectors) for pad, selectors in by_pad.items()]
    if split in config.all_crops:
        return steps
    images = [*(modality.name for modality in modalities), *targets]
    side = min(sides_of(config.crop_size or 1))
    if by_pad and max(pad.size for pad in by_pad) < side:
        return [_pad(Pad(size=side, center=True), images), *steps]
    if crop is not None:
        steps.append(_pad(crop, images))
    return steps


def _pad(pad: Pad, selectors: list[str]) -> dict[str, Any]:
    mode = "center" if pad.center else "topleft"
    return _transform("pad.Pad", size=pad.size, mode=mode, image_selectors=selectors)


def _transform(name: str, **args: Any) -> dict[str, Any]:
    return _class(f"rslearn.train.transforms.{name}", **args)


def _class(path: str, /, **args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": args}
