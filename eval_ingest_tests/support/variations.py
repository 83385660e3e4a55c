"""Small configurations, each with one turn of rslearn's that decides what a sample is.

`variations()` gives config.json and model.yaml by name, for support/corpus.py.
"""

from typing import Any

from eval_ingest.core.modality import MODALITIES
from eval_ingest_tests.support.configurations import (
    data_input,
    image,
    join,
    raster,
    stacked,
    task,
    transform,
)

S2 = list(MODALITIES["sentinel2_l2a"].bands)
STORED = sorted(S2)
FETCHED = {"class_path": "x.Y", "query_config": {"max_matches": 2, "min_matches": 2}}

LAYERS = {
    "sentinel2": raster(STORED, data_source=FETCHED),
    "pre_sentinel2": raster(S2[:4]),
    "post_sentinel2": raster(S2[:4]),
    "sentinel1": raster(["vv", "vh"], "float32", data_source=FETCHED),
    "mask": raster(["mask"], "uint8"),
    "scl": raster(["SCL"], "uint8"),
    "srtm": raster(["dem"], "int16"),
    "label_raster": raster(["label"], "uint8"),
    "label": {"type": "vector", "class_names": ["a", "b", "c", "odd"]},
}
SEGMENT = task("SegmentationTask", num_classes=4, nodata_value=3)
CLASSIFY = task("ClassificationTask", property_name="kind", classes=["a", "b", "c"])
RASTER = {"targets": data_input(["label_raster"], ["label"], is_target=True, dtype="INT32")}
VECTOR = {"targets": data_input(["label"], is_target=True)}
SAMPLE = {"sentinel2_l2a": stacked(["sentinel2"], S2)}
BEFORE_AFTER = {"pre": image(["pre_sentinel2"], S2[:4]), "post": image(["post_sentinel2"], S2[:4])}
STEPS = {f"s2_{i}": image([f"sentinel2.{i}" if i else "sentinel2"], S2) for i in range(3)}
EVERY = {key: [] for key in STEPS}
TARGETS = ["target/classes", "target/valid"]


def model(
    inputs: dict[str, Any],
    *transforms: Any,
    label: dict[str, Any] = RASTER,
    task: dict[str, Any] = SEGMENT,
    **data: Any,
) -> dict[str, Any]:
    """A data module of three groups, train, val and test."""
    args: dict[str, Any] = {"path": "/data", "inputs": inputs | label, "task": task}
    if transforms:
        args["default_config"] = {"transforms": list(transforms)}
    for split in ("train", "val", "test"):
        args[f"{split}_config"] = {"groups": [split]}
    for key, value in data.items():
        args[key] = args.get(key, {}) | value if isinstance(value, dict) else value
    return {"data": {"class_path": "rslearn.train.data_module.RslearnDataModule",
                     "init_args": args}}  # fmt: skip


def pad(size: Any, *selectors: str, mode: str = "center") -> dict[str, Any]:
    return transform("Pad", size=size, mode=mode, image_selectors=list(selectors))


def mask(*selectors: str, **more: Any) -> dict[str, Any]:
    return transform("Mask", selectors=list(selectors), **more)


def select(indices: list[int], source: str, output: str) -> dict[str, Any]:
    return {
        "class_path": "rslearn.train.transforms.select_bands.SelectBands",
        "init_args": {"band_indices": indices, "input_selector": source, "output_selector": output},
    }


def scl_mask(**more: Any) -> dict[str, Any]:
    return {
        "class_path": "rslearn.train.transforms.sentinel2.Sentinel2SCLToMask",
        "init_args": more,
    }


MASK = {"mask": data_input(["mask"], ["mask"], passthrough=True, dtype="INT32")}
SCL = {"scl": data_input(["scl"], ["SCL"], passthrough=True, dtype="INT32")}
S1 = {"sentinel1": stacked(["sentinel1"], ["vv", "vh"])}
SEVERAL = {
    "class_path": "rslearn.train.tasks.multi_task.MultiTask",
    "init_args": {
        "tasks": {
            "kind": CLASSIFY,
            "height": task(
                "RegressionTask", property_name="height", scale_factor=0.1, allow_invalid=True
            ),
        },
        "input_mapping": {"kind": {"targets": "targets"}, "height": {"targets": "targets"}},
    },
}

EQUAL: dict[str, dict[str, Any]] = {
    # Concatenate
    "a picture of three bands": model(SAMPLE, join("image", {"sentinel2_l2a": [2, 1, 0]})),
    "a copy of all bands": model(SAMPLE, join("image", {"sentinel2_l2a": []})),
    "a copy in another order": model(
        SAMPLE, join("image", {"sentinel2_l2a": [*range(11, -1, -1)]})
    ),
    "two pictures": model(
        SAMPLE,
        join("rgb", {"sentinel2_l2a": [2, 1, 0]}),
        join("nir", {"input/sentinel2_l2a": [3]}),
    ),
    "a picture beside another modality": model(
        SAMPLE | S1, join("image", {"sentinel2_l2a": [0, 1, 2]})
    ),
    "an output that overwrites its input": model(
        SAMPLE, join("sentinel2_l2a", {"sentinel2_l2a": [3, 2, 1, 0]})
    ),
    "steps joined under the modality's name": model(STEPS, join("sentinel2_l2a", EVERY)),
    "steps joined as image": model(STEPS, join("image", EVERY)),
    "steps joined in another order, some bands": model(
        STEPS, join("image", {key: [3, 0, 5] for key in reversed(STEPS)})
    ),
    "steps joined, and a picture of one": model(
        STEPS, join("image", {"s2_1": [2, 1, 0]}), join("stack", EVERY)
    ),
    "steps joined twice, once for a picture": model(
        STEPS, join("image", {key: [2, 1, 0] for key in STEPS}), join("sentinel2_l2a", EVERY)
    ),
    "joined in two steps": model(
        STEPS,
        join("first", {"s2_0": [], "s2_1": []}),
        join("sentinel2_l2a", {"first": [], "s2_2": []}),
    ),
    "a picture of one of two inputs": model(BEFORE_AFTER, join("image", {"post": [2, 1, 0]})),
    "missing inputs skipped": model(
        STEPS, join("sentinel2_l2a", EVERY | {"nothing": []}, skip_missing=True)
    ),
    "an input named otherwise": model({"image": stacked(["sentinel2"], S2[:7])}),
    # SelectBands changes its input too
    "selected bands": model(SAMPLE, select([3, 2, 1], "sentinel2_l2a", "sentinel2_l2a")),
    "selected bands for a picture": model(SAMPLE, select([2, 1, 0], "sentinel2_l2a", "image")),
    "bands that stand in for others": model(
        {"sentinel2_l2a": stacked(["sentinel2"], S2[:4])},
        select([0, 1, 2, 3, 3, 3], "sentinel2_l2a", "sentinel2_l2a"),
    ),
    # Pad and crops
    "a pad of one pixel": model(SAMPLE, pad(1, "sentinel2_l2a", *TARGETS)),
    "a crop, then a smaller pad": model(
        SAMPLE, pad(5, "sentinel2_l2a", *TARGETS), default_config={"crop_size": 16}
    ),
    "a crop, then a larger pad": model(
        SAMPLE, pad(40, "sentinel2_l2a", *TARGETS), default_config={"patch_size": 16}
    ),
    "a pad, then a crop": model(
        SAMPLE,
        pad(24, "sentinel2_l2a", *TARGETS),
        transform("Crop", crop_size=8, image_selectors=["sentinel2_l2a", *TARGETS]),
    ),
    "a crop transform, then a smaller pad": model(
        SAMPLE,
        transform("Crop", crop_size=8, image_selectors=["sentinel2_l2a", *TARGETS]),
        pad([3, 4], "sentinel2_l2a", *TARGETS),
    ),
    "a pad at the end only": model(SAMPLE, pad(32, "sentinel2_l2a", *TARGETS, mode="topleft")),
    "a pad of a picture alone": model(
        SAMPLE, join("image", {"sentinel2_l2a": [0]}), pad(4, "image")
    ),
    "val's pad names a task that isn't there": model(
        SAMPLE,
        train_config={"transforms": [pad(7, "sentinel2_l2a", *TARGETS)]},
        val_config={"transforms": [pad(7, "sentinel2_l2a", "target/segment/classes")]},
        test_config={"transforms": [pad(7, "sentinel2_l2a", *TARGETS)]},
    ),
    # Mask
    "a mask": model(SAMPLE | MASK, mask("sentinel2_l2a")),
    "a mask with a value, then a pad": model(
        SAMPLE | MASK, mask("sentinel2_l2a", mask_value=7), pad(9, "sentinel2_l2a", *TARGETS)
    ),
    "a mask of the valid pixels": model(SAMPLE | MASK, mask("target/valid")),
    "a mask before the join": model(STEPS | MASK, mask(*STEPS), join("image", EVERY)),
    "a mask of scene classes": model(
        SAMPLE | SCL, scl_mask(exclude_scl_values=[3, 8, 9]), mask("sentinel2_l2a")
    ),
    # transforms that leave samples as they are
    "resize of what is no sample": model(
        SAMPLE | {"srtm": image(["srtm"], ["dem"])},
        transform("Resize", target_size=[4, 4], selectors=["srtm"]),
    ),
    "transforms in plain dicts and with init_args": model(
        {
            key: {"class_path": "rslearn.train.dataset.DataInput", "init_args": value}
            for key, value in SAMPLE.items()
        },
        transform("Flip", image_selectors=["sentinel2_l2a", *TARGETS]),
    ),
    # tasks
    "one of several tasks": model(SAMPLE, label=VECTOR, task=SEVERAL),
    "a target scaled, from the same layer": model(SAMPLE, label=VECTOR, task=SEVERAL),
    "labels that may be missing": model(
        SAMPLE,
        label=VECTOR,
        task=task(
            "ClassificationTask",
            property_name="kind",
            classes=["a", "b"],
            allow_invalid=True,
            skip_unknown_categories=True,
        ),
    ),
    "class ids mapped, some away": model(
        SAMPLE,
        task=task(
            "SegmentationTask",
            num_classes=2,
            nodata_value=9,
            class_id_mapping={0: 9, 1: 0, 2: 1, 3: 1},
        ),
    ),
    "zero is no class": model(
        SAMPLE, task=task("SegmentationTask", num_classes=4, zero_is_invalid=True)
    ),
    # splits
    "num_samples": model(SAMPLE, train_config={"num_samples": 2}, val_config={"num_samples": 1}),
    "dates and numbers as texts": model(
        SAMPLE,
        train_config={"groups": ["2025-12-10"], "tags": {"year": 2025, "fold": "01"}},
        val_config={"groups": ["20251210"], "tags": {"year": 2024, "checked": "yes"}},
        test_config={"groups": ["0o17"], "tags": {"ready": None}},
    ),
}
SPECS: dict[str, dict[str, Any]] = {
    "one of several tasks": {"task": "kind"},
    "a target scaled, from the same layer": {"task": "height"},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a resized sample": (
        model(SAMPLE, transform("Resize", target_size=[4, 4], selectors=["sentinel2_l2a"])),
        "Resize would change samples",
    ),
    "a pooled target": (
        model(SAMPLE, transform("Resize", target_size=[4, 4], selectors=["target/classes"])),
        "Resize would change samples",
    ),
    "a crop at a fixed place": (
        model(SAMPLE, transform("Crop", crop_size=4, offset=[1, 1], image_selectors=list(SAMPLE))),
        "Crop would change samples",
    ),
    "a transform that isn't known": (
        model(SAMPLE, {"class_path": "rslp.x.FrequentOptionSampler", "init_args": {"k": 3}}),
        "FrequentOptionSampler would change samples",
    ),
    "several tasks and no choice": (
        model(SAMPLE, label=VECTOR, task=SEVERAL),
        r"kind \(ClassificationTask\), height \(RegressionTask\).*--task kind",
    ),
    "a selector that no split has": (
        model(SAMPLE, pad(7, "sentinel2_l2a", "target/segment/classes")),
        "names the target 'segment/classes'",
    ),
    "decibels on disk": (
        model(S1, transform("Sentinel1ToDecibels", selectors=["sentinel1"], from_decibels=True)),
        "stored in decibels",
    ),
}  # fmt: skip
