"""What rslearn itself makes of a dataset: the reference that samples are compared with.

Inputs, task and transforms are built from model.yaml without jsonargparse, and rslearn's own
ModelDataset does the rest. Left out are transforms that are random, normalise or crop.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval_ingest.testing.datasets import quiet_rslearn

_KEPT = ("Pad", "Concatenate", "SelectBands")
_LEFT_OUT = (
    "Normalize", "OlmoEarthNormalize", "HeliosNormalize", "Crop", "Flip", "GaussianNoise",
    "Sentinel1ToDecibels",
)  # fmt: skip


@dataclass
class OracleSample:
    """A window as rslearn reads it."""

    group: str
    name: str
    inputs: dict[str, np.ndarray]
    """By input of model.yaml, or output of a transform: float32 (C, T, H, W)."""
    timestamps: dict[str, list[tuple[datetime, datetime]] | None]
    """Start and end per timestep; None where rslearn knows none."""
    bands: dict[str, tuple[str, ...]]
    """The bands of each of the inputs in their order."""
    target: dict[str, np.ndarray]
    """The task's target; of a MultiTask the only sub-task's."""


def rslearn_samples(
    dataset: Path,
    model_yaml: Path | None = None,
    tags: dict[str, str] | None = None,
    groups: list[str] | None = None,
    names: list[str] | None = None,
) -> Iterator[OracleSample]:
    """Every window of the groups, with the names and tags, in rslearn's order.

    Windows that lack a required layer are passed over, as rslearn does.
    """
    content = yaml.safe_load((model_yaml or dataset / "model.yaml").read_text())
    data = content["data"]["init_args"]
    with _quiet():
        known = _Model.build(data)
        opened = _open(dataset, known, tags, groups, names)
    for i in range(len(opened)):
        with _quiet():
            sample = known.sample(*opened[i])
        yield sample


def rslearn_crops(
    dataset: Path, model_yaml: Path, split: str, tags: dict[str, str], kind: str
) -> Iterator[OracleSample]:
    """Every crop of the windows with the tags, as the split's load_all_crops has them.

    `kind` is the class of rslearn's that takes them: `InMemory`, `Iterable` or `Map`.
    """
    stand_in_for_wandb()
    from rslearn.train import all_crops_dataset, in_memory_dataset
    from rslearn.train.dataset import SplitConfig

    data = yaml.safe_load(model_yaml.read_text())["data"]["init_args"]
    with _quiet():
        known = _Model.build(data)
        opened = _open(dataset, known, tags, None, None)
        settings = [
            {k: v for k, v in (data.get(f"{name}_config") or {}).items() if k in _CROPS}
            for name in ("default", split)
        ]
        config = SplitConfig.merge_and_validate([SplitConfig(**s) for s in settings])
        assert config.get_load_all_crops()
        name = f"{kind}AllCropsDataset"
        wrap = getattr(all_crops_dataset, name, None) or getattr(in_memory_dataset, name)
        crops = wrap(opened, config.get_crop_size(), config.get_overlap_pixels())
        found = [known.sample(*sample) for sample in crops]
    yield from found


_CROPS = (
    "crop_size", "patch_size", "load_all_crops", "load_all_patches", "overlap_pixels",
    "overlap_ratio",
)  # fmt: skip


@dataclass
class _Model:
    inputs: dict[str, Any]
    """rslearn's DataInput objects."""
    task: Any
    sub_task: str | None
    transforms: list[Any]
    bands: dict[str, tuple[str, ...]]

    @classmethod
    def build(cls, data: dict[str, Any]) -> "_Model":
        inputs = {key: _data_input(values) for key, values in data["inputs"].items()}
        task, sub_task = _task(data["task"])
        bands = {key: tuple(known.bands) for key, known in inputs.items() if known.bands}
        transforms = []
        for description in _transforms_of(data):
            name = description["class_path"].rpartition(".")[2]
            if name in _KEPT:
                transforms.append(_transform(name, description, bands))
            elif name not in _LEFT_OUT:
                raise ValueError(f"the oracle doesn't know whether {name} is deterministic")
        return cls(inputs, task, sub_task, transforms, bands)

    def sample(self, inputs: dict[str, Any], target: dict[str, Any], metadata: Any) -> OracleSample:
        from rslearn.train.model_context import RasterImage

        images = {key: value for key, value in inputs.items() if isinstance(value, RasterImage)}
        if self.sub_task is not None:
            target = target[self.sub_task]
        return OracleSample(
            group=metadata.window_group,
            name=metadata.window_name,
            inputs={k: v.image.numpy().astype(np.float32) for k, v in images.items()},
            timestamps={key: image.timestamps for key, image in images.items()},
            bands={key: self.bands[key] for key in images},
            target={
                key: (value.image if isinstance(value, RasterImage) else value).numpy()
                for key, value in target.items()
            },
        )


def _open(
    dataset: Path,
    known: _Model,
    tags: dict[str, str] | None,
    groups: list[str] | None,
    names: list[str] | None,
) -> Any:
    """rslearn's ModelDataset, on a configuration of the layers that are read and no others."""
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from rslearn.train.dataset import IndexMode, ModelDataset, SplitConfig
    from upath import UPath

    config = json.loads((dataset / "config.json").read_text())
    read = {layer.split(".")[0] for used in known.inputs.values() for layer in used.layers}
    config["layers"] = {name: config["layers"][name] for name in sorted(read)}
    opened = ModelDataset(
        dataset=Dataset(UPath(dataset), dataset_config=DatasetConfig.model_validate(config)),
        split_config=SplitConfig(
            groups=groups, names=names, tags=tags, transforms=known.transforms or None
        ),
        inputs=known.inputs,
        task=known.task,
        workers=0,
        fix_crop_pick=True,
        index_mode=IndexMode.OFF,
    )
    opened.get_dataset_examples()
    os.unlink(opened.dataset_examples_fname)  # rslearn leaves it in the temporary folder
    return opened


# ------------------------------------------------------------------------ model.yaml to objects


def stand_in_for_wandb() -> None:
    """rslearn's tasks import it to draw confusion matrices, but only its extras install it."""
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        sys.modules["wandb"] = types.ModuleType("wandb")


def _load(class_path: str) -> Any:
    stand_in_for_wandb()
    module, _, name = class_path.rpartition(".")
    if not module.startswith("rslearn."):
        raise ValueError(f"the oracle only makes objects of rslearn, not {class_path}")
    return getattr(importlib.import_module(module), name)


def _data_input(values: dict[str, Any]) -> Any:
    from rslearn.config import DType
    from rslearn.train.dataset import DataInput
    from rslearn.utils.geometry import ResolutionFactor

    args = dict(values["init_args"] if "class_path" in values else values)
    if "dtype" in args:
        args["dtype"] = DType(args["dtype"].lower())
    if "resolution_factor" in args:
        factor = Fraction(str(args["resolution_factor"]))
        args["resolution_factor"] = ResolutionFactor(factor.numerator, factor.denominator)
    return DataInput(**args)


def _task(description: dict[str, Any]) -> tuple[Any, str | None]:
    """The task, and its only sub-task's name if it is a MultiTask."""
    args = dict(description.get("init_args") or {})
    args.pop("other_metrics", None)
    if "tasks" not in args:
        return _load(description["class_path"])(**args), None
    (name,) = args["tasks"]
    args["tasks"] = {name: _task(args["tasks"][name])[0]}
    return _load(description["class_path"])(**args), name


def _transforms_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the val split, which rslearn takes instead of the default ones."""
    for config in ("val_config", "default_config"):
        transforms = (data.get(config) or {}).get("transforms")
        if transforms:
            return list(transforms)
    return []


def _transform(name: str, description: dict[str, Any], bands: dict[str, tuple[str, ...]]) -> Any:
    """The transform; `bands` learns what it puts out."""
    args = dict(description.get("init_args") or {})
    if name == "Concatenate":
        from rslearn.train.transforms.concatenate import ConcatenateDim

        dim = args.get("concatenate_dim", "TIME")
        if isinstance(dim, str):
            args["concatenate_dim"] = dim = ConcatenateDim[dim.upper()].value
        taken = [
            tuple(bands[key][i] for i in chosen) if chosen else bands[key]
            for key, chosen in args["selections"].items()
            if key in bands
        ]
        along_time = dim == ConcatenateDim.TIME.value
        bands[args["output_selector"]] = taken[0] if along_time else tuple(sum(taken, ()))
    elif name == "SelectBands":
        source = bands[args.get("input_selector", "image")]
        output = args.get("output_selector", "image")
        bands[output] = tuple(source[i] for i in args["band_indices"])
    return _load(description["class_path"])(**args)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without rslearn's log, progress bars and warnings of what it will no longer support."""
    with (
        quiet_rslearn(),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        yield
