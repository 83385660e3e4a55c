"""What rslearn makes of a model.yaml and a dataset: its own data module, made by jsonargparse.

Left out is what is random or normalises, and the random crop of `crop_size`; every crop is kept
where a split asks for all of them. Layers in forms that rslearn has given up are mended first, as
its authors' release notes say.
"""

import copy
import json
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval_ingest.testing.datasets import quiet_rslearn, readable_config
from eval_ingest_tests.support.oracle import stand_in_for_wandb

_STAGES = {"train": "fit", "val": "validate", "test": "test"}
_CONFIGS = ("default_config", "train_config", "val_config", "test_config")
_LEFT_OUT = re.compile(
    r"\w*Normalize|\w*Flip|GaussianNoise|Sentinel1ToDecibels|Random\w+|Crop(?!\w)"
)
_FOREIGN = {
    "ForestLossTask": "eval_ingest_tests.support.foreign.ForestLossTask",
    "VesselAttributeMultiTask": "rslearn.train.tasks.multi_task.MultiTask",
    "Mask": "rslearn.train.transforms.mask.Mask",
}
"""By class name, what stands for the classes of rslp, which is not to be had."""


@dataclass
class Reference:
    """A sample of rslearn's."""

    group: str
    name: str
    crop: tuple[int, int, int, int]
    """Bounds of the crop, or of the window, in the window's pixels from its upper left corner."""
    images: dict[str, np.ndarray]
    """All images that reach the model, by name: float32 (C, T, H, W)."""
    timestamps: dict[str, list[tuple[datetime, datetime]] | None]
    targets: dict[str, dict[str, np.ndarray]]
    """By task; "" for the only one."""

    @property
    def window(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass
class ReferenceDataset:
    """A dataset and a model.yaml as rslearn reads them."""

    module: Any
    """rslearn's RslearnDataModule."""
    dataset: Path
    mentions_test: bool
    """model.yaml has a test_config, empty or not."""

    @classmethod
    def open(cls, dataset: Path, model_yaml: str) -> "ReferenceDataset":
        """Build the data module; raises what jsonargparse and rslearn raise."""
        stand_in_for_wandb()
        from jsonargparse import ArgumentParser
        from rslearn.train.data_module import RslearnDataModule
        from rslearn.utils.jsonargparse import init_jsonargparse

        init_jsonargparse()
        data = _loaded(model_yaml)["data"]
        mirror = _mirror(dataset)
        with _quiet():
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--data", type=RslearnDataModule)
            # Without its defaults, which Python has too: jsonargparse looks for them at length.
            given = {"data": _prepared(data, str(mirror))}
            parsed = parser.parse_object(given, defaults=False)
            module = parser.instantiate_classes(parsed).data
        for config in module.split_configs.values():
            if not config.get_load_all_crops():
                config._crop_size = config._patch_size = None  # the crop's place is chance
        return cls(module, dataset, "test_config" in data["init_args"])

    def samples(self, split: str) -> Iterator[Reference]:
        """The samples of a split, in rslearn's order."""
        with _quiet():
            self.module.setup(_STAGES[split])
            opened = self.module.datasets[split]
        # An iterable dataset of all crops has no length; both kinds give their samples in turn.
        whole = iter(opened) if hasattr(opened, "__iter__") else None
        places = whole or map(opened.__getitem__, range(len(opened)))
        while True:
            with _quiet():
                try:
                    found = next(places)
                except StopIteration:
                    return
            yield self._sample(*found)

    def take_transforms_of_train(self, split: str) -> None:
        """Read a split with train's transforms."""
        configs = self.module.split_configs
        configs[split].transforms = configs["train"].transforms

    def decibels(self, split: str) -> set[str]:
        """The images that are in decibels."""
        transforms = self.module.split_configs[split].transforms or []
        converted = [t for t in transforms if type(t).__name__ == "Sentinel1ToDecibels"]
        return {selector for transform in converted for selector in transform.selectors}

    def bands(self, split: str) -> dict[str, list[tuple[str, str]]]:
        """By image that reaches the model: input and band of each of its channels.

        Found out by sending images through the transforms whose pixels say where they are from.
        """
        from rslearn.train.model_context import RasterImage

        known, coded = [], {}
        for key, data_input in self.module.inputs.items():
            if data_input.data_type != "raster" or not data_input.passthrough:
                continue
            bands = self._input_bands(data_input)
            codes = torch.arange(len(bands)) + len(known) + 1.0
            known += [(key, band) for band in bands]
            coded[key] = RasterImage(codes[:, None, None, None].expand(-1, 1, 8, 8).clone(), None)
        transforms = self.module.split_configs[split].transforms or []
        targets = _AnyTarget()
        for transform in transforms:
            if type(transform).__name__ not in ("Mask", "Sentinel1ToDecibels"):
                coded, _ = transform(coded, targets)
        return {
            key: [known[int(code) - 1] for code in image.image.amax(dim=(1, 2, 3))]
            for key, image in coded.items()
        }

    def _input_bands(self, data_input: Any) -> list[str]:
        if data_input.bands is not None:
            return list(data_input.bands)
        layers = json.loads((self.dataset / "config.json").read_text())["layers"]
        layer = data_input.layers[0].partition(".")[0]
        band_sets = layers[layer]["band_sets"]
        return list(band_sets[data_input.use_all_bands_in_order_of_band_set_idx]["bands"])

    def _sample(self, inputs: dict[str, Any], targets: dict[str, Any], metadata: Any) -> Reference:
        from rslearn.train.model_context import RasterImage

        images = {key: value for key, value in inputs.items() if isinstance(value, RasterImage)}
        x, y = metadata.window_bounds[:2]
        left, top, right, bottom = metadata.crop_bounds
        several = all(isinstance(value, dict) for value in targets.values())
        return Reference(
            group=metadata.window_group,
            name=metadata.window_name,
            crop=(left - x, top - y, right - x, bottom - y),
            images={key: value.image.numpy().astype(np.float32) for key, value in images.items()},
            timestamps={key: value.timestamps for key, value in images.items()},
            targets={
                name: {
                    key: (value.image if isinstance(value, RasterImage) else value).numpy()
                    for key, value in target.items()
                }
                for name, target in (targets if several else {"": targets}).items()
            },
        )


class _AnyTarget(dict[str, Any]):
    """Targets under whatever name they are asked for."""

    def __missing__(self, key: str) -> Any:
        from rslearn.train.model_context import RasterImage

        if key in ("classes", "values", "valid"):
            return RasterImage(torch.ones(1, 1, 8, 8), None)
        return self

    def __contains__(self, key: object) -> bool:
        return True


def _loaded(model_yaml: str) -> Any:
    """The text as rslearn loads it; templates such as {PATCH_SIZE} are filled in by their users."""
    from jsonargparse._loaders_dumpers import yaml_load
    from rslearn.template_params import substitute_env_vars_in_string

    text = substitute_env_vars_in_string(model_yaml)
    return yaml_load(re.sub(r"\{[A-Z][A-Z0-9_]*\}", "1", text))


def _prepared(data: dict[str, Any], path: str) -> dict[str, Any]:
    data = copy.deepcopy(data)
    args = data.setdefault("init_args", {})
    args["path"] = path
    for key in ("num_workers", "init_workers", "batch_size", "use_in_memory_dataset", "index_mode"):
        args.pop(key, None)
    for name in _CONFIGS:
        config = args.get(name)
        if config:
            _without_chance(config.get("init_args", config) if "class_path" in config else config)
    args.pop("predict_config", None)
    return _known(data)


def _without_chance(config: dict[str, Any]) -> None:
    config.pop("sampler", None)
    transforms = config.get("transforms")
    if transforms:
        names = [t["class_path"].rpartition(".")[2] for t in transforms]
        last = max((k for k, name in enumerate(names) if name == "Mask"), default=-1)
        # What is masked in decibels stays in decibels: see `decibels`.
        kept = [t for k, t in enumerate(transforms)
                if not _chance(t) or (k < last and names[k] == "Sentinel1ToDecibels")]  # fmt: skip
        # An empty list would bring back the default's.
        config["transforms"] = kept or [
            {"class_path": "rslearn.train.transforms.transform.Identity"}
        ]


def _chance(transform: dict[str, Any]) -> bool:
    name = transform["class_path"].rpartition(".")[2]
    if name == "Crop" and (transform.get("init_args") or {}).get("offset") is not None:
        return False
    return _LEFT_OUT.fullmatch(name) is not None


def _known(value: Any) -> Any:
    """The value with classes that are installed nowhere replaced, and without metrics."""
    if isinstance(value, list):
        return [_known(item) for item in value]
    if not isinstance(value, dict):
        return value
    known = {k: _known(v) for k, v in value.items() if k not in ("other_metrics", "metric_kwargs")}
    path = known.get("class_path")
    if isinstance(path, str) and path.startswith("rslp."):
        known["class_path"] = _FOREIGN[path.rpartition(".")[2]]
        if known["class_path"].endswith(".MultiTask"):
            args = known["init_args"]
            known["init_args"] = {key: args[key] for key in ("tasks", "input_mapping")}
    return known


def _mirror(dataset: Path) -> Path:
    """A folder with the dataset's windows and a config.json that today's rslearn takes."""
    folder = Path(tempfile.mkdtemp(prefix="mirror_", dir=dataset.parent))
    content = json.loads((dataset / "config.json").read_text())
    with _quiet():
        config = readable_config(content).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(config))
    for path in dataset.iterdir():
        if path.name.startswith("windows"):
            (folder / path.name).symlink_to(path)
    return folder


class _First(random.Random):
    """Where rslearn picks one of several at random, the first."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def randint(self, a: int, b: int) -> int:
        """Where a crop begins: a window that is smaller lies in its upper left corner."""
        return b


class _quiet:
    """Without rslearn's log, progress bars, warnings, and chance."""

    def __enter__(self) -> None:
        import contextlib
        import io
        from unittest import mock

        self._stack = contextlib.ExitStack()
        self._stack.enter_context(quiet_rslearn())
        self._stack.enter_context(warnings.catch_warnings())
        self._stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self._stack.enter_context(mock.patch("rslearn.train.dataset.random.Random", _First))
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._stack.close()
