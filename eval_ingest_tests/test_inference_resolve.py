"""Configurations resolved: each variation a row, each wrong input its own sentence."""

import ast
import copy
import json
import random
import sys
from pathlib import Path

import pytest
import yaml

from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.resolved import LayerRead, Pad, SplitSelector
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import ConfigError, EvalIngestError, InferenceError, UnsupportedError
from eval_ingest.inference.node import MAX_CHARACTERS
from eval_ingest.inference.resolve import ConfigFiles, dataset_config_for_copy, resolve

S2 = list(MODALITIES["sentinel2_l2a"].bands)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "configs"
DROP = object()


# --- a small configuration, and changes to it ---


def raster(bands, dtype="uint16", **more):
    return {"type": "raster", "band_sets": [{"bands": list(bands), "dtype": dtype}], **more}


def data_input(layers, bands=None, **more):
    values = {"data_type": "raster" if bands else "vector", "layers": layers, **more}
    return values | ({"bands": list(bands)} if bands else {})


def image(layers, bands=S2, **more):
    return data_input(layers, bands, passthrough=True, **more)


def stacked(layers, bands=S2, **more):
    return image(layers, bands, load_all_layers=True, load_all_item_groups=True, **more)


def task(name, **init_args):
    module = {"PerPixelRegressionTask": "per_pixel_regression"}.get(name, name[:-4].lower())
    return {"class_path": f"rslearn.train.tasks.{module}.{name}", "init_args": init_args}


def multi_task(mapping, **tasks):
    return task("MultiTask", tasks=tasks, input_mapping=mapping)


def transform(name, **init_args):
    return {"class_path": f"rslearn.train.transforms.{name.lower()}.{name}", "init_args": init_args}


def join(output, selections, **more):
    return transform("Concatenate", selections=selections, output_selector=output, **more)


def default(*transforms):
    return {"default_config": {"transforms": list(transforms)}}


def band_set(**values):
    return {"type": "raster", "band_sets": [values]}


LAYERS = {
    "sentinel2": raster(sorted(S2), data_source={"name": "rslp.Old"}),
    "pre_sentinel2": raster(S2),
    "post_sentinel2": raster(S2),
    "sentinel2_l1c": raster(S2),
    "sentinel1_ascending": raster(["vv", "vh"], "float32"),
    "sentinel1_descending": raster(["vv", "vh"], "float32"),
    "landsat": raster(["B1", "B2", "B8"], "uint16"),
    "srtm": raster(["dem"], "int16"),
    "label_raster": raster(["label"], "int32"),
    "label": {"type": "vector"},
    "output": {"type": "vector", "format": {"name": "geojson"}},
}
INPUTS = {
    "sentinel2_l2a": stacked(["sentinel2"]),
    "targets": data_input(["label_raster"], ["label"], is_target=True, dtype="INT32"),
}
LABEL_VECTOR = {"targets": data_input(["label"], is_target=True)}


def config_json(layers=None, **top):
    merged = copy.deepcopy(LAYERS) | (layers or {})
    return {"layers": {k: v for k, v in merged.items() if v is not DROP}, **top}


def model_yaml(inputs=None, task_=None, **data):
    merged = INPUTS | (inputs or {})
    init_args = {
        "path": "${DATASET_PATH}",
        "num_workers": "${NUM_WORKERS}",
        "inputs": {key: value for key, value in merged.items() if value is not DROP},
        "task": task_ or task("SegmentationTask", num_classes=3),
        **data,
    }
    return {
        "data": {"class_path": "rslearn.train.data_module.RslearnDataModule"}
        | {"init_args": init_args}
    }


def resolved(config=None, model=None, run=None, **spec):
    return resolve(
        ConfigFiles(
            config_json=json.dumps(config or config_json()),
            model_yaml=None
            if model is DROP
            else yaml.safe_dump(model or model_yaml(), sort_keys=False),
            run_yaml=None if run is None else yaml.safe_dump(run),
            where="gs://bucket/fields",
        ),
        DatasetSpec(name="fields", source="gs://bucket/fields", **spec),
    )


def names(config):
    return [c.name for c in config.task.classes]


def reads(config, modality="sentinel2_l2a"):
    return [read.specifier for part in config.modality(modality).parts for read in part.reads]


# --- variations, one row each: what is given, what is seen, what is expected ---

S2_PARTS = {f"sentinel2_{i}": image([f"sentinel2.{i}" if i else "sentinel2"]) for i in (0, 1, 2)}
JOIN = join("sentinel2_l2a", {key: [] for key in S2_PARTS})
NO_S2 = {"sentinel2_l2a": DROP}
GEN1 = {
    "window_prep": {
        "labeled_window_preparer": {"class_path": "olmoearth_run.X", "init_args": {}},
        "data_splitter": {
            "class_path": "olmoearth_run.Y",
            "init_args": {"train_prop": 75, "val_prop": 25, "test_prop": 0},
        },
        "label_layer": "label_raster",
        "group_name": "spatial_split",
        "split_property": "fold",
    },
    "inference_results_config": {
        "classification_fields": [
            {
                "property_name": "category",
                "allowed_values": [
                    {"value": 0, "label": "water", "color": [0, 0, 255]},
                    {"value": 1, "label": "land", "color": "#00ff00"},
                    {"value": 2, "label": "ice", "color": {"r": 250, "g": 251, "b": 252}},
                ],
            }
        ]
    },
}


def gen2(values, nodata=None):
    field = {"allowed_values": [{"value": v, "label": name} for v, name in values]}
    field |= {} if nodata is None else {"nodata_value": nodata}
    return {"config_version": "0.7.1", "data": {"output": {"fields": {"segment": field}}}}


def with_task(name, inputs=None, **init_args):
    return {"model": model_yaml(inputs, task(name, **init_args))}


ROWS = {
    # the task
    "task directly": (
        {},
        lambda c: (c.task.kind, c.task.num_classes, c.task.nodata_value),
        ("segmentation", 3, None),
    ),
    "multi task with one": (
        {
            "model": model_yaml(
                {"targets": DROP, "mask": INPUTS["targets"], "truth": INPUTS["targets"]},
                multi_task({"a": {"truth": "targets"}}, a=task("SegmentationTask", num_classes=2)),
            )
        },
        lambda c: (c.task.num_classes, c.label.part.key, "mask" in " ".join(c.warnings)),
        (2, "truth", True),
    ),
    "target by its flag alone": (
        {"model": model_yaml({"targets": DROP, "gt": INPUTS["targets"]})},
        lambda c: c.label.part.key,
        "gt",
    ),
    "per pixel regression": (
        with_task("PerPixelRegressionTask", nodata_value=-1.5, scale_factor=0.1),
        lambda c: (c.task.kind, c.task.num_classes, c.task.nodata_value, c.task.scale_factor),
        ("regression", 1, -1.5, 0.1),
    ),
    "scalar regression": (
        with_task("RegressionTask", LABEL_VECTOR, property_name="height", allow_invalid=True),
        lambda c: (c.task.kind, c.task.property_name, c.task.allow_invalid, c.label.band),
        ("scalar_regression", "height", True, None),
    ),
    "classification": (
        with_task(
            "ClassificationTask",
            LABEL_VECTOR,
            property_name="crop",
            classes=["tea", "rice"],
            skip_unknown_categories=True,
            read_class_id=True,
        ),
        lambda c: (names(c), c.task.skip_unknown_categories, c.task.read_class_id),
        (["tea", "rice"], True, True),
    ),
    "property name by flag": (
        with_task("RegressionTask", LABEL_VECTOR, property_name="height")
        | {"property_name": "agb"},
        lambda c: (c.task.property_name, c.provenance["property_name"]),
        ("agb", "--property-name"),
    ),
    "zero is invalid": (
        with_task("SegmentationTask", num_classes=3, zero_is_invalid=True),
        lambda c: (c.task.nodata_value, c.task.ignored_id),
        (0, 0),
    ),
    "nodata beyond the classes": (
        with_task("SegmentationTask", num_classes=3, nodata_value=255),
        lambda c: (c.task.nodata_value, c.task.ignored_id),
        (255, None),
    ),
    "class id mapping with text keys": (
        with_task("SegmentationTask", num_classes=3, class_id_mapping={"5": 0, 6: 1}),
        lambda c: c.task.class_id_mapping,
        {5: 0, 6: 1},
    ),
    # classes
    "classes unnamed": (
        {},
        lambda c: (names(c), c.provenance["classes"], "class_0" in c.warnings[0]),
        (["class_0", "class_1", "class_2"], "default", True),
    ),
    "classes by flag": (
        {"classes": ("a", "b", "c"), "run": GEN1},
        lambda c: (names(c), c.provenance["classes"]),
        (["a", "b", "c"], "--classes"),
    ),
    "classes by flag without the nodata class": (
        with_task("SegmentationTask", num_classes=3, zero_is_invalid=True)
        | {"classes": ("a", "b")},
        names,
        ["class_0", "a", "b"],
    ),
    "classes of the task": (
        with_task("SegmentationTask", num_classes=2, class_names=["x", "y"]),
        names,
        ["x", "y"],
    ),
    "classes and colours of generation 1": (
        {"run": GEN1},
        lambda c: [(k.name, k.color) for k in c.task.classes],
        [("water", (0, 0, 255)), ("land", (0, 255, 0)), ("ice", (250, 251, 252))],
    ),
    "generation 2 counted from 1 with zero invalid": (
        with_task("SegmentationTask", num_classes=3, zero_is_invalid=True)
        | {"run": gen2([(1, "a"), (2, "b")])},
        names,
        ["class_0", "a", "b"],
    ),
    "generation 2 counted from 1 without": (
        {"run": gen2([(1, "a"), (2, "b"), (3, "c")])},
        names,
        ["a", "b", "c"],
    ),
    "generation 2 with fewer values": (
        {"run": gen2([(0, "a"), (2, "c")])},
        lambda c: (names(c), "class_1" in " ".join(c.warnings)),
        (["a", "class_1", "c"], True),
    ),
    "generation 2 by stored value": (
        with_task("SegmentationTask", num_classes=2, class_id_mapping={10: 0, 20: 1, 0: 2})
        | {"run": gen2([(0, "none"), (10, "a"), (20, "b")])},
        names,
        ["a", "b"],
    ),
    "generation 2 nodata where the task has none": (
        {"run": gen2([(0, "a"), (1, "b"), (2, "c")], nodata=9)},
        lambda c: (c.task.nodata_value, "olmoearth_run.yaml" in c.provenance["nodata_value"]),
        (9, True),
    ),
    "generation 2 nodata that is a class": (
        {"run": gen2([(0, "a"), (1, "b"), (2, "c")], nodata=0)},
        lambda c: (c.task.nodata_value, "stays a class" in " ".join(c.warnings)),
        (None, True),
    ),
    "layer class names": (
        {"config": config_json({"label_raster": raster(["label"], class_names=["a", "b", "c"])})},
        lambda c: (names(c), c.provenance["classes"]),
        (["a", "b", "c"], "config.json: layers.label_raster.class_names"),
    ),
    "band set class names": (
        {
            "config": config_json(
                {
                    "label_raster": band_set(
                        bands=["other", "label"],
                        dtype="uint8",
                        class_names=[["no"], ["a", "b", "c"]],
                    )
                }
            )
        },
        names,
        ["a", "b", "c"],
    ),
    "layer class names with the nodata class, mapped": (
        with_task(
            "SegmentationTask", num_classes=2, class_id_mapping={1: 0, 2: 1, 0: 2}, nodata_value=2
        )
        | {
            "config": config_json(
                {"label_raster": raster(["label"], class_names=["nil", "a", "b"])}
            )
        },
        names,
        ["a", "b"],
    ),
    "layer class names with the nodata class last": (
        with_task("SegmentationTask", num_classes=2, nodata_value=2)
        | {
            "config": config_json(
                {"label_raster": raster(["label"], class_names=["a", "b", "nil"])}
            )
        },
        lambda c: (names(c), "beyond" in " ".join(c.warnings)),
        (["a", "b"], False),
    ),
    "layer class names without the invalid zero": (
        with_task("SegmentationTask", num_classes=3, zero_is_invalid=True)
        | {"config": config_json({"label_raster": raster(["label"], class_names=["a", "b"])})},
        names,
        ["class_0", "a", "b"],
    ),
    # inputs and modalities
    "inputs with class_path": (
        {
            "model": model_yaml(
                {
                    "sentinel2_l2a": {
                        "class_path": "rslearn.train.dataset.DataInput",
                        "init_args": stacked(["sentinel2"]),
                    }
                }
            )
        },
        reads,
        ["sentinel2.*"],
    ),
    "modality by the layer, not the key": (
        {"model": model_yaml(NO_S2 | {"image": stacked(["sentinel2"])})},
        lambda c: [m.name for m in c.modalities],
        ["sentinel2_l2a"],
    ),
    "another product under the modality's name": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2_l1c"])})},
        lambda c: (reads(c), "sentinel2_l1c" in " ".join(c.warnings)),
        (["sentinel2_l1c.*"], True),
    ),
    "item groups one by one": (
        {
            "model": model_yaml(
                {"sentinel2_l2a": image(["sentinel2", "sentinel2.1"], load_all_layers=True)}
            )
        },
        lambda c: (reads(c), c.modality("sentinel2_l2a").parts[0].stack),
        (["sentinel2", "sentinel2.1"], True),
    ),
    "one layer picked at random": (
        {"model": model_yaml({"sentinel2_l2a": image(["pre_sentinel2", "post_sentinel2"])})},
        lambda c: (
            c.modality("sentinel2_l2a").parts[0].stack,
            "first completed" in " ".join(c.warnings),
        ),
        (False, True),
    ),
    "layers before and after in one input": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["pre_sentinel2", "post_sentinel2"])})},
        reads,
        ["pre_sentinel2.*", "post_sentinel2.*"],
    ),
    "layers before and after in two inputs": (
        {
            "model": model_yaml(
                NO_S2
                | {"pre_sentinel2": stacked(["pre_sentinel2"])}
                | {"post_sentinel2": stacked(["post_sentinel2"])}
            )
        },
        lambda c: ([m.name for m in c.modalities], reads(c)),
        (["sentinel2_l2a"], ["pre_sentinel2.*", "post_sentinel2.*"]),
    ),
    "both orbits are one modality": (
        {
            "model": model_yaml(
                {
                    "sentinel1_ascending": stacked(["sentinel1_ascending"], ["vv", "vh"]),
                    "sentinel1_descending": stacked(["sentinel1_descending"], ["vh", "vv"]),
                }
            )
        },
        lambda c: (
            [m.name for m in c.modalities],
            reads(c, "sentinel1"),
            c.modality("sentinel1").bands,
            c.modality("sentinel1").decibels,
        ),
        (
            ["sentinel2_l2a", "sentinel1"],
            ["sentinel1_ascending.*", "sentinel1_descending.*"],
            ("vv", "vh"),
            True,
        ),
    ),
    "the same layer in two inputs": (
        {"model": model_yaml({"image": stacked(["sentinel2"])})},
        lambda c: (reads(c), "taken once" in " ".join(c.warnings)),
        (["sentinel2.*"], True),
    ),
    "an unsupported input": (
        {"model": model_yaml({"srtm": image(["srtm"], ["dem"])})},
        lambda c: (c.unsupported_inputs, [layer.name for layer in c.layers]),
        (("srtm (layer srtm)",), ["sentinel2", "label_raster"]),
    ),
    "an input that doesn't reach the model": (
        {"model": model_yaml({"landsat": data_input(["landsat"], ["B1"])})},
        lambda c: ([m.name for m in c.modalities], "landsat" in " ".join(c.warnings)),
        (["sentinel2_l2a"], True),
    ),
    "an optional modality": (
        {
            "model": model_yaml(
                {"sentinel1": stacked(["sentinel1_ascending"], ["vv"], required=False)}
            )
        },
        lambda c: (c.modality("sentinel1").required, c.modality("sentinel1").missing_bands),
        (False, ("vh",)),
    ),
    "a modality chosen by flag": (
        {
            "model": model_yaml({"sentinel1": stacked(["sentinel1_ascending"], ["vv", "vh"])}),
            "modalities": ("sentinel1",),
        },
        lambda c: ([m.name for m in c.modalities], [x.name for x in c.layers]),
        (["sentinel1"], ["sentinel1_ascending", "label_raster"]),
    ),
    # bands
    "bands come in the modality's order": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], ["B12", "B02", "B08"])})},
        lambda c: (
            c.modality("sentinel2_l2a").bands,
            len(c.modality("sentinel2_l2a").missing_bands),
        ),
        (("B02", "B08", "B12"), 9),
    ),
    "bands that the modality doesn't know": (
        {
            "config": config_json({"sentinel2": raster(["B02", "SCL"])}),
            "model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], ["SCL", "B02"])}),
        },
        lambda c: (c.modality("sentinel2_l2a").bands, "SCL" in " ".join(c.warnings)),
        (("B02",), True),
    ),
    "all bands of a band set": (
        {
            "model": model_yaml(
                {
                    "landsat": {
                        "data_type": "raster",
                        "layers": ["landsat"],
                        "passthrough": True,
                        "use_all_bands_in_order_of_band_set_idx": 0,
                    }
                }
            )
        },
        lambda c: c.modality("landsat").bands,
        ("B8", "B1", "B2"),
    ),
    "bands common to the parts": (
        {
            "model": model_yaml(
                NO_S2
                | {"pre_sentinel2": stacked(["pre_sentinel2"], ["B02", "B03"])}
                | {"post_sentinel2": stacked(["post_sentinel2"], ["B03", "B04"])}
            )
        },
        lambda c: (c.modality("sentinel2_l2a").bands, "B02, B04" in " ".join(c.warnings)),
        (("B03",), True),
    ),
    "numbered bands": (
        {
            "config": config_json({"label_raster": band_set(num_bands=1, dtype="UINT8")}),
            "model": model_yaml({"targets": data_input(["label_raster"], ["B0"], is_target=True)}),
        },
        lambda c: (c.label.band, c.layer("label_raster").band_sets[0].dtype, c.label.dtype),
        ("B0", "uint8", "float32"),
    ),
    # Concatenate and the other transforms
    "an input per timestep, joined": (
        {"model": model_yaml(NO_S2 | S2_PARTS, **default(JOIN))},
        lambda c: ([m.name for m in c.modalities], reads(c)),
        (["sentinel2_l2a"], ["sentinel2", "sentinel2.1", "sentinel2.2"]),
    ),
    "joined in the order of the selections": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(join("image", {f"input/sentinel2_{i}": [] for i in (2, 0, 1)})),
            )
        },
        reads,
        ["sentinel2.2", "sentinel2", "sentinel2.1"],
    ),
    "joined in two steps with chosen bands": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(
                    join("first", {"sentinel2_0": [1, 0], "sentinel2_1": [1, 0]}),
                    join("sentinel2_l2a", {"first": [], "sentinel2_2": [1, 0]}),
                ),
            )
        },
        lambda c: (reads(c), c.modality("sentinel2_l2a").bands),
        (["sentinel2", "sentinel2.1", "sentinel2.2"], ("B02", "B03")),
    ),
    "bands of one layer side by side in the channels": (
        {
            "model": model_yaml(
                NO_S2
                | {
                    "ten": stacked(["sentinel2"], ["B02"]),
                    "twenty": stacked(["sentinel2"], ["B05"]),
                },
                **default(
                    join("image", {"ten": [], "twenty": []}, concatenate_dim=0),
                    transform("Pad", size=32, image_selectors=["image"]),
                ),
            )
        },
        lambda c: (c.modality("sentinel2_l2a").bands, reads(c), c.modalities[0].pad),
        (("B02", "B05"), ["sentinel2.*"], Pad(size=32)),
    ),
    "select bands": (
        {
            "model": model_yaml(
                **default(
                    transform(
                        "SelectBands",
                        band_indices=[3, 0],
                        input_selector="sentinel2_l2a",
                        output_selector="sentinel2_l2a",
                    )
                )
            )
        },
        lambda c: c.modality("sentinel2_l2a").bands,
        ("B02", "B08"),
    ),
    "a fixed pad on image and label": (
        {
            "model": model_yaml(
                **default(
                    transform(
                        "Pad",
                        size=[64, 65],
                        mode="center",
                        image_selectors=["sentinel2_l2a", "target/classes", "target/valid"],
                    )
                )
            )
        },
        lambda c: (c.modalities[0].pad, c.label.pad),
        (Pad(size=64, center=True), Pad(size=64, center=True)),
    ),
    "a pad of the joined image": (
        {
            "model": model_yaml(
                NO_S2 | S2_PARTS,
                **default(transform("Pad", size=8, image_selectors=list(S2_PARTS)), JOIN),
            )
        },
        lambda c: c.modalities[0].pad,
        Pad(size=8),
    ),
    "transforms left out": (
        {
            "model": model_yaml(
                **default(
                    transform("Pad", size=[32, 64], image_selectors=["sentinel2_l2a"]),
                    transform("Sentinel1ToDecibels", selectors=["sentinel1"]),
                    transform("Resize", target_size=[8, 8]),
                ),
                train_config={
                    "transforms": [
                        transform("Crop", crop_size=16),
                        transform("Flip"),
                        transform("Normalize", mean=0, std=1),
                    ]
                },
            )
        },
        lambda c: ([text.split(" (")[0] for text in c.dropped_transforms], c.modalities[0].pad),
        (["Pad", "Sentinel1ToDecibels", "Resize", "Crop", "Flip", "Normalize"], None),
    ),
    # packed types
    "mixed whole numbers": (
        {
            "config": config_json({"pre_sentinel2": raster(S2, "int16")}),
            "model": model_yaml({"sentinel2_l2a": stacked(["sentinel2", "pre_sentinel2"])}),
        },
        lambda c: c.modality("sentinel2_l2a").dtype,
        "int32",
    ),
    "wide whole numbers": (
        {"config": config_json({"sentinel2": raster(S2, "uint32")})},
        lambda c: (c.modality("sentinel2_l2a").dtype, "uint32" in " ".join(c.warnings)),
        ("float32", True),
    ),
    "small signed numbers": (
        {"config": config_json({"sentinel2": raster(S2, "int8")})},
        lambda c: c.modality("sentinel2_l2a").dtype,
        "int16",
    ),
    "the type of the bands that are read": (
        {
            "config": config_json(
                {
                    "sentinel2": {
                        "type": "raster",
                        "band_sets": [
                            {"bands": S2, "dtype": "uint8"},
                            {"bands": ["B02", "mask"], "dtype": "float32"},
                        ],
                    }
                }
            )
        },
        lambda c: c.modality("sentinel2_l2a").dtype,
        "uint8",
    ),
    # crop
    "crop by flag": ({"crop_size": 24}, lambda c: c.crop_size, 24),
    "crop in default_config": (
        {"model": model_yaml(default_config={"crop_size": 32})},
        lambda c: c.crop_size,
        32,
    ),
    "crop in train_config": (
        {"model": model_yaml(default_config={"crop_size": 64}, train_config={"crop_size": 32})},
        lambda c: c.crop_size,
        32,
    ),
    "crop in val_config": (
        {"model": model_yaml(val_config={"crop_size": [16, 16]})},
        lambda c: c.crop_size,
        16,
    ),
    "deprecated patch_size": (
        {
            "model": model_yaml(
                train_config={"patch_size": 63, "load_all_patches": True, "overlap_ratio": 0.1}
            )
        },
        lambda c: (c.crop_size, c.provenance["crop_size"]),
        (63, "model.yaml: data.init_args.train_config.patch_size"),
    ),
    "crop transform with a range": (
        {"model": model_yaml(train_config={"transforms": [transform("Crop", crop_size=[16, 33])]})},
        lambda c: (c.crop_size, "16 to 32" in " ".join(c.warnings)),
        (32, True),
    ),
    "crop that is an unset placeholder": (
        {"model": model_yaml(default_config={"crop_size": "${CROP}"})},
        lambda c: (c.crop_size, "--crop-size" in " ".join(c.warnings)),
        (None, True),
    ),
    "crop placeholder with default": (
        {"model": model_yaml(default_config={"crop_size": "${CROP:-48}"})},
        lambda c: c.crop_size,
        48,
    ),
    "crop in olmoearth_run.yaml": (
        {"run": {"input_preprocessing": {"default": {"input_size": 32}}}},
        lambda c: c.crop_size,
        32,
    ),
    # splits
    "groups and tags merged": (
        {
            "model": model_yaml(
                default_config={"groups": ["a", 20251210], "tags": {"oep_eval": None}},
                val_config={"tags": {"split": "val"}},
                test_config={"groups": ["t"], "names": ["w1"]},
            )
        },
        lambda c: c.selectors,
        {
            "train": SplitSelector(groups=("a", "20251210"), tags={"oep_eval": ""}),
            "val": SplitSelector(groups=("a", "20251210"), tags={"split": "val"}),
            "test": SplitSelector(groups=("t",), names=("w1",), tags={"oep_eval": ""}),
        },
    ),
    "a split that is never mentioned": (
        {
            "model": model_yaml(
                default_config={"groups": ["a"]},
                train_config={"tags": {"split": "train"}},
                val_config={"tags": {"split": "val"}},
            )
        },
        lambda c: sorted(c.selectors),
        ["train", "val"],
    ),
    "no selection at all": ({}, lambda c: c.selectors, {}),
    "a placeholder for a group": (
        {"model": model_yaml(train_config={"groups": ["${GROUP}", "a"]})},
        lambda c: (c.selectors["train"].groups, "${GROUP}" in " ".join(c.warnings)),
        (("a",), True),
    ),
    "selection and ratios of generation 1": (
        {"run": GEN1},
        lambda c: (c.selectors["val"], c.declared_ratios),
        (SplitSelector(groups=("spatial_split",), tags={"fold": "val"}), (0.75, 0.25, 0.0)),
    ),
    # config.json
    "deprecated formats on layers that are read": (
        with_task(
            "RegressionTask", {"targets": data_input(["output"], is_target=True)}, property_name="x"
        )
        | {
            "config": config_json(
                {"sentinel2": band_set(bands=S2, dtype="uint16", format={"name": "geotiff"})}
            )
        },
        lambda c: (c.layer("output").geojson, c.layer("sentinel2").band_sets[0].geotiff),
        (True, True),
    ),
    "geotiff options that only matter for writing": (
        {
            "config": config_json(
                {
                    "sentinel2": band_set(
                        bands=S2,
                        dtype="uint16",
                        format={
                            "class_path": "rslearn.utils.raster_format.GeotiffRasterFormat",
                            "init_args": {"block_size": 64},
                        },
                    )
                }
            )
        },
        lambda c: c.layer("sentinel2").band_sets[0].geotiff,
        True,
    ),
    "another raster format": (
        {
            "config": config_json(
                {"sentinel2": band_set(bands=S2, dtype="uint8", format={"name": "single_image"})}
            )
        },
        lambda c: c.layer("sentinel2").band_sets[0].geotiff,
        False,
    ),
    "other storages": (
        {
            "config": config_json(
                storage={"class_path": "rslearn.dataset.storage.sqlite.SQLiteWindowStorageFactory"},
                window_data_storage={
                    "class_path": "rslearn.dataset.window_data_storage.x.PerLayerStorageFactory"
                },
            )
        },
        lambda c: (c.window_storage.split(".")[-1], c.data_storage.split(".")[-1]),
        ("SQLiteWindowStorageFactory", "PerLayerStorageFactory"),
    ),
    # without model.yaml
    "no model.yaml, raster label with names": (
        {
            "model": DROP,
            "config": config_json(
                {
                    "label_raster": raster(["label"], class_names=["no data", "a", "b"]),
                    "sentinel2_l1c": DROP,
                    "landsat": DROP,
                }
            ),
        },
        lambda c: (
            c.task.kind,
            names(c),
            c.task.nodata_value,
            [m.name for m in c.modalities],
            reads(c),
            "no model.yaml" in c.warnings[0],
        ),
        (
            "segmentation",
            ["no data", "a", "b"],
            0,
            ["sentinel2_l2a", "sentinel1"],
            ["pre_sentinel2.*", "sentinel2.*", "post_sentinel2.*"],
            True,
        ),
    ),
    "no model.yaml, vector label with names": (
        {
            "model": DROP,
            "task_type": "classification",
            "config": config_json(
                {"label": {"type": "vector", "class_names": ["a", "b"], "class_property_name": "k"}}
            ),
        },
        lambda c: (c.task.kind, c.task.property_name, names(c)),
        ("classification", "k", ["a", "b"]),
    ),
    "no model.yaml, vector label by flags": (
        {"model": DROP, "task_type": "scalar_regression", "property_name": "height"},
        lambda c: (c.task.kind, c.task.property_name, c.label.part.reads[0].layer),
        ("scalar_regression", "height", "label"),
    ),
    "no model.yaml, float label": (
        {"model": DROP, "config": config_json({"label_raster": raster(["agb"], "float32")})},
        lambda c: (c.task.kind, c.label.band, c.label.dtype),
        ("regression", "agb", "float32"),
    ),
    "no model.yaml, label layer of generation 1": (
        {
            "model": DROP,
            "run": GEN1,
            "config": config_json({"label_2": raster(["label"], "uint8")}),
        },
        lambda c: (c.label.part.reads[0].layer, names(c), c.selectors["train"].groups),
        ("label_raster", ["water", "land", "ice"], ("spatial_split",)),
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_variation_is_understood(row):
    given, seen, expected = row
    assert seen(resolved(**given)) == expected


# --- wrong input, each with its own sentence ---

TWO = {"a": task("SegmentationTask", num_classes=2), "b": task("RegressionTask", property_name="x")}
WRONG = {
    "two tasks": (
        {"model": model_yaml(task_=multi_task({}, **TWO))},
        UnsupportedError,
        ["model.yaml: data.init_args.task", "2 tasks (a, b)", "--olmoearth-run-config-path"],
    ),
    "unknown task": (
        {"model": model_yaml(task_=task("DetectionTask"))},
        UnsupportedError,
        ["DetectionTask", "SegmentationTask"],
    ),
    "no task": (
        {"model": model_yaml(task_={"init_args": {}})},
        ConfigError,
        ["data.init_args.task", "no class_path"],
    ),
    "no data section": ({"model": {"model": {}}}, ConfigError, ["no `data` section"]),
    "code from elsewhere in a task": (
        {"model": model_yaml(task_={"class_path": "os.SegmentationTask"})},
        ConfigError,
        ["'os.SegmentationTask'", "a class_path is code"],
    ),
    "code from elsewhere in a transform": (
        {"model": model_yaml(**default({"class_path": "evil.Flip"}))},
        ConfigError,
        ["default_config.transforms[0]", "'evil.Flip'"],
    ),
    "code with a name like an allowed package's": (
        {"model": model_yaml(**default({"class_path": "torchevil.Flip"}))},
        ConfigError,
        ["'torchevil.Flip'"],
    ),
    "code from elsewhere in config.json": (
        {"config": config_json(storage={"class_path": "evil.Storage"})},
        ConfigError,
        ["config.json: storage", "'evil.Storage'"],
    ),
    "band that doesn't exist": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], ["B02", "B10"])})},
        ConfigError,
        ["inputs.sentinel2_l2a.bands", "'B10'", "'sentinel2'", "B01, B02"],
    ),
    "label layer missing": (
        {"config": config_json({"label_raster": DROP})},
        ConfigError,
        ["inputs.targets.layers", "'label_raster'", "config.json doesn't have"],
    ),
    "no label": (
        {"model": model_yaml({"targets": DROP})},
        ConfigError,
        ["has no label", "is_target: true"],
    ),
    "several labels": (
        {"model": model_yaml({"targets": DROP, "a": INPUTS["targets"], "b": INPUTS["targets"]})},
        UnsupportedError,
        ["several targets (a, b)", "input_mapping"],
    ),
    "label of several bands": (
        {
            "config": config_json({"label_raster": raster(["a", "b"])}),
            "model": model_yaml({"targets": data_input(["label_raster"], ["a", "b"])}),
        },
        UnsupportedError,
        ["2 bands (a, b)"],
    ),
    "vector label for segmentation": (
        {"model": model_yaml(LABEL_VECTOR)},
        ConfigError,
        ["'targets' is a vector", "segmentation needs a raster"],
    ),
    "vector layer read as raster": (
        {"model": model_yaml({"targets": data_input(["label"], ["label"], is_target=True)})},
        ConfigError,
        ["vector layer 'label' as a raster"],
    ),
    "unknown modality asked for": (
        {"modalities": ("sentinel3",)},
        ConfigError,
        ["--modalities", "'sentinel3'", "sentinel2_l2a"],
    ),
    "no modality": (
        {"model": model_yaml(NO_S2 | {"dem": image(["srtm"], ["dem"])})},
        InferenceError,
        ["no input stands for", "dem (layer srtm)"],
    ),
    "another task type by flag": (
        {"task_type": "regression"},
        ConfigError,
        ["segmentation task", "--task-type says regression"],
    ),
    "too few classes by flag": (
        {"classes": ("a",)},
        ConfigError,
        ["has 3 classes", "--classes names 1"],
    ),
    "property name for a raster label": ({"property_name": "x"}, ConfigError, ["--property-name"]),
    "both kinds of nodata": (
        with_task("SegmentationTask", num_classes=3, zero_is_invalid=True, nodata_value=1),
        ConfigError,
        ["zero_is_invalid"],
    ),
    "crop that isn't square": (
        {"model": model_yaml(default_config={"crop_size": [16, 32]})},
        UnsupportedError,
        ["default_config.crop_size", "[16, 32]", "--crop-size"],
    ),
    "another resolution": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], resolution_factor="1/2")})},
        UnsupportedError,
        ["resolution_factor", "'1/2'"],
    ),
    "another resampling": (
        {"model": model_yaml({"sentinel2_l2a": stacked(["sentinel2"], resampling="bilinear")})},
        UnsupportedError,
        ["resampling", "nearest"],
    ),
    "images of differing bands stacked along time": (
        {
            "model": model_yaml(
                NO_S2
                | {"a": stacked(["pre_sentinel2"], ["B02", "B03"])}
                | {"b": stacked(["post_sentinel2"], ["B03", "B02"])},
                **default(join("sentinel2_l2a", {"a": [], "b": []})),
            )
        },
        UnsupportedError,
        ["differ in number or order", "a: B02 B03; b: B03 B02"],
    ),
    "band index beyond the bands": (
        {"model": model_yaml(**default(join("sentinel2_l2a", {"sentinel2_l2a": [12]})))},
        ConfigError,
        ["selections.sentinel2_l2a", "12 bands"],
    ),
    "parts of a modality padded differently": (
        {
            "model": model_yaml(
                NO_S2 | {"pre": stacked(["pre_sentinel2"])} | {"post": stacked(["post_sentinel2"])},
                **default(transform("Pad", size=8, image_selectors=["pre"])),
            )
        },
        UnsupportedError,
        ["pre, post", "padded alike"],
    ),
    "no model.yaml and no class": (
        {"model": DROP},
        InferenceError,
        ["layers.label_raster", "--task-type", "--classes"],
    ),
    "no model.yaml and a plain vector label": (
        {"model": DROP, "config": config_json({"label_raster": DROP})},
        InferenceError,
        ["layers.label", "--task-type", "--property-name"],
    ),
    "no model.yaml and no label": (
        {"model": DROP, "config": config_json({"label_raster": DROP, "label": DROP})},
        InferenceError,
        ["no layer that looks like a label"],
    ),
}


@pytest.mark.parametrize("row", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_told_in_a_sentence(row):
    given, kind, parts = row
    with pytest.raises(kind) as caught:
        resolved(**given)
    message = str(caught.value)
    assert message.startswith("gs://bucket/fields")
    assert "\n" not in message
    for part in parts:
        assert part in message


def broken(config=None, model=None):
    files = ConfigFiles(
        config_json=json.dumps(config_json()) if config is None else config,
        model_yaml=yaml.safe_dump(model_yaml()) if model is None else model,
        where="/data",
    )
    with pytest.raises(ConfigError) as caught:
        resolve(files, DatasetSpec(name="fields", source="/data"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data:\n  inputs: [a\n  task: b", ["model.yaml", "line 3", "not valid YAML"]),
        ("data: {a: b", ["not valid YAML", "line 1"]),
        ("x: !!python/object/apply:os.system [ls]", ["not valid YAML", "constructor"]),
        ("x: !!int ''", ["not valid YAML"]),
        ("x: 2024-13-45", ["not valid YAML"]),
        ("", ["is empty"]),
        ("- a", ["is a list"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("a: " + "x" * MAX_CHARACTERS, ["5,000,000"]),
        (
            "a0: &a0 {"
            + ", ".join(f"k{i}: 1" for i in range(20))
            + "}\n"
            + "".join(
                f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
            ),
            ["too many merged entries"],
        ),
    ],
    ids=range(10),
)
def test_broken_yaml_names_file_and_problem(text, parts):
    message = broken(model=text)
    assert message.startswith("/data/model.yaml: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"layers": {\n"a": }}', ["not valid JSON", "line 2"]),
        ("", ["not valid JSON"]),
        ("[]", ["must be a JSON object"]),
        ("{}", ["has no layers"]),
        ("[" * 100_000, ["nested too deeply"]),
    ],
)
def test_broken_json_names_file_and_problem(text, parts):
    message = broken(config=text)
    assert message.startswith("/data/config.json: ")
    for part in parts:
        assert part in message


def test_aliases_that_expand_or_loop_are_harmless():
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    text = bomb + yaml.safe_dump(model_yaml(extra=1)).replace("extra: 1", "extra: *a29")
    files = ConfigFiles(json.dumps(config_json()), text + "loop: &l [*l]\n")
    assert resolve(files, DatasetSpec(name="a", source="x")).task.num_classes == 3
    bad = text.replace("num_classes: 3", "num_classes: *a29")
    with pytest.raises(ConfigError, match="must be a number") as caught:
        resolve(ConfigFiles(json.dumps(config_json()), bad), DatasetSpec(name="a", source="x"))
    assert len(str(caught.value)) < 1000


def test_templates_and_unset_variables_dont_break_parsing():
    text = yaml.safe_dump(model_yaml()).replace("${NUM_WORKERS}", "${NUM_WORKERS:-8}")
    text += "\nmodel:\n  patch_size: {PATCH_SIZE}\n  path: {CHECKPOINT_PATH}/last.ckpt\n"
    text += "  lists: [${A}, {{ b }}, {C}]\n  text: '{CHECKPOINT_PATH}'\n"
    config = json.dumps(config_json(extra="@")).replace('"@"', "${COUNT}")
    files = ConfigFiles(config, text)
    assert resolve(files, DatasetSpec(name="a", source="x")).task.num_classes == 3


def test_every_value_has_an_origin():
    config = resolved(run=GEN1, classes=("a", "b", "c"))
    assert config.provenance == {
        "task": "model.yaml: data.init_args.task",
        "num_classes": "model.yaml: data.init_args.task.init_args.num_classes",
        "classes": "--classes",
        "nodata_value": "default",
        "label": "model.yaml: data.init_args.inputs.targets",
        "modalities": "model.yaml: data.init_args.inputs",
        "bands.sentinel2_l2a": "model.yaml: data.init_args.inputs.sentinel2_l2a.bands",
        "crop_size": "default",
        "selectors": "olmoearth_run.yaml: window_prep",
        "declared_ratios": "olmoearth_run.yaml: window_prep.data_splitter.init_args",
    }


def test_resolving_imports_no_heavy_library():
    """Beside the standard library and eval_ingest.core, only numpy is imported."""
    folder = Path(__file__).resolve().parents[1] / "eval_ingest" / "inference"
    waiting, seen, roots = ["resolve"], set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.append(node.module)
            for module in modules:
                roots.add(module.split(".")[0])
                if module.startswith("eval_ingest.inference."):
                    waiting.append(module.removeprefix("eval_ingest.inference."))
    assert roots - set(sys.stdlib_module_names) == {"eval_ingest", "numpy"}


# --- the copy's config.json ---


def test_the_copy_keeps_only_what_is_read_in_forms_that_rslearn_takes():
    rslearn_config = pytest.importorskip("rslearn.config")
    config = config_json(
        {
            "sentinel2": {
                "type": "raster",
                "data_source": {"name": "rslp.Gone", "cache_dir": "x"},
                "band_sets": [
                    {
                        "bands": S2,
                        "dtype": "uint16",
                        "zoom_offset": -1,
                        "format": {"name": "geotiff"},
                    }
                ],
                "format": {"name": "geotiff"},
            },
            "label": {"type": "vector", "format": {"name": "geojson", "coordinate_mode": "crs"}},
        }
    )
    model = model_yaml(LABEL_VECTOR, task("RegressionTask", property_name="x"))
    files = ConfigFiles(json.dumps(config), yaml.safe_dump(model))
    reduced = dataset_config_for_copy(files, resolved(config, model))
    assert set(reduced["layers"]) == {"sentinel2", "label"}
    parsed = rslearn_config.DatasetConfig.model_validate(reduced)
    assert parsed.layers["sentinel2"].band_sets[0].zoom_offset == -1
    assert parsed.layers["sentinel2"].data_source is None
    parsed.layers["sentinel2"].band_sets[0].instantiate_raster_format()
    parsed.layers["label"].instantiate_vector_format()


# --- the shared configurations ---


def shared_files(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")

    def text(file):
        return (folder / file).read_text() if (folder / file).exists() else None

    return ConfigFiles(
        text("config.json") or "", text("model.yaml"), text("olmoearth_run.yaml"), where=str(folder)
    )


def shared(name):
    return resolve(shared_files(name), DatasetSpec(name=name, source="x"))


def test_tolbi():
    config = shared("tolbi")
    assert config.task.kind == "segmentation"
    assert (config.task.num_classes, config.task.nodata_value, config.crop_size) == (7, 0, 16)
    assert names(config) == [f"class_{i}" for i in range(7)]
    (modality,) = config.modalities
    assert (modality.name, modality.bands, modality.missing_bands) == (
        "sentinel2_l2a",
        tuple(S2),
        (),
    )
    assert (reads(config), modality.dtype) == (["sentinel2.*"], "uint16")
    assert (config.label.band, config.label.dtype) == ("label", "int32")
    assert config.selectors["val"] == config.selectors["test"]
    assert config.selectors["train"].selects("20251210", "w", {"split": "train"})
    assert [text.split()[0] for text in config.dropped_transforms] == [
        "Crop",
        "OlmoEarthNormalize",
        "Flip",
    ]


def test_nandi():
    config = shared("nandi")
    assert (config.task.kind, config.task.property_name) == ("classification", "category")
    assert names(config)[0] == "Coffee" and len(names(config)) == 8
    assert [m.name for m in config.modalities] == ["sentinel2_l2a", "sentinel1"]
    assert reads(config, "sentinel1") == ["sentinel1_ascending.*"]
    assert {m.pad for m in config.modalities} == {Pad(size=8, center=True)}
    assert config.crop_size is None
    assert [b.zoom_offset for b in config.layer("sentinel2").band_sets] == [0, -1, -2]
    assert len(config.selectors["train"].groups) == 2


def test_worldcover():
    config = shared("worldcover")
    assert (config.task.num_classes, config.task.nodata_value, config.crop_size) == (12, 12, 16)
    assert config.task.class_id_mapping == {i: i - 1 for i in range(1, 13)} | {0: 12}
    assert config.task.ignored_id is None
    assert (names(config)[0], names(config)[11]) == ("bare", "wetland (herbaceous)")


def test_worldcover_names_come_from_the_layer_if_the_task_has_none():
    files = shared_files("worldcover")
    model = yaml.safe_load(files.model_yaml)
    del model["data"]["init_args"]["task"]["init_args"]["class_names"]
    files = ConfigFiles(files.config_json, yaml.safe_dump(model))
    config = resolve(files, DatasetSpec(name="worldcover", source="x"))
    assert names(config) == names(shared("worldcover"))
    assert config.provenance["classes"] == "config.json: layers.label_raster.class_names"


def test_lfmc():
    config = shared("lfmc")
    assert (config.task.kind, config.task.property_name) == ("scalar_regression", "lfmc_value")
    assert config.task.allow_invalid
    (modality,) = config.modalities
    assert [part.reads for part in modality.parts] == [
        (LayerRead(layer="sentinel2", item_group=i),) for i in range(12)
    ]
    assert config.warnings == ()


def test_landslide():
    config = shared("landslide")
    assert [(c.name, c.color) for c in config.task.classes] == [
        ("no_landslide", (124, 67, 18)),
        ("landslide", (169, 214, 146)),
    ]
    assert (config.task.nodata_value, config.task.ignored_id) == (2, None)
    assert reads(config) == ["pre_sentinel2.*", "post_sentinel2.*"]
    assert config.modalities[0].parts[0].stack
    assert (config.crop_size, config.declared_ratios) == (32, (0.7, 0.2, 0.1))
    assert config.warnings == ()


def test_landslide_without_model_yaml():
    files = shared_files("landslide")
    files = ConfigFiles(files.config_json, None, files.run_yaml)
    config = resolve(files, DatasetSpec(name="landslide", source="x"))
    assert (config.task.kind, names(config)) == ("segmentation", ["no_landslide", "landslide"])
    assert config.label.part.reads[0].layer == "label_raster"
    assert reads(config) == ["pre_sentinel2.*", "post_sentinel2.*"]


# --- whatever else a file may hold ---

ODD = [None, 0, -3, 2.5, "", "x", [], {}, [1], {"a": 1}, True, "${X}", [[1]], 10**30, float("nan")]


def _places(value, at=()):
    yield at
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(child, (*at, key))


def _mutated(value, rng):
    value = copy.deepcopy(value)
    *path, last = rng.choice([place for place in _places(value) if place])
    target = value
    for key in path:
        target = target[key]
    if rng.random() < 0.3:
        del target[last]
    else:
        target[last] = rng.choice(ODD)
    return value


@pytest.mark.parametrize("seed", range(8))
def test_odd_values_give_an_error_of_ours_or_none(seed):
    rng = random.Random(seed)
    model = model_yaml(
        NO_S2 | S2_PARTS,
        task("SegmentationTask", num_classes=2, class_id_mapping={1: 0, 2: 1}, nodata_value=3),
        default_config={
            "crop_size": [8, 8],
            "tags": {"split": ""},
            "transforms": [transform("Pad", size=8, image_selectors=["sentinel2_0"]), JOIN],
        },
    )
    for _ in range(40):
        given = {"config": config_json(), "model": model, "run": GEN1}
        which = rng.choice(list(given))
        given[which] = _mutated(given[which], rng)
        try:
            resolved(**given)
        except EvalIngestError as error:
            assert "gs://bucket/fields" in str(error)
