"""Configurations beside those of variations.py that need layers, storages or splits of their own.

Each is the layers that it adds or replaces, what config.json says besides, and model.yaml.
"""

from typing import Any

from eval_ingest_tests.support.configurations import data_input, image, join, raster, stacked, task
from eval_ingest_tests.support.variations import (
    BEFORE_AFTER,
    EVERY,
    FETCHED,
    MASK,
    RASTER,
    S1,
    S2,
    SAMPLE,
    SEGMENT,
    STEPS,
    STORED,
    TARGETS,
    VECTOR,
    mask,
    model,
    pad,
    select,
)

Variation = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _class(path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"rslearn.{path}", "init_args": init_args}


def _of_format(bands: list[str], name: str, dtype: str = "uint16", **more: Any) -> dict[str, Any]:
    stored = {"bands": bands, "dtype": dtype, "format": _class(f"utils.raster_format.{name}")}
    return {"type": "raster", "band_sets": [stored], **more}


def _tiled(bands: list[str], dtype: str, kind: str) -> dict[str, Any]:
    stored = _class("utils.raster_format.ImageTileRasterFormat", format=kind, tile_size=8)
    return {"type": "raster", "band_sets": [{"bands": bands, "dtype": dtype, "format": stored}]}


def _sets(*band_sets: dict[str, Any]) -> dict[str, Any]:
    return {"type": "raster", "data_source": FETCHED, "band_sets": list(band_sets)}


def _padded(size: int, mode: str = "center") -> dict[str, Any]:
    return {"transforms": [pad(size, "sentinel2_l2a", *TARGETS, mode=mode)]}


_PACKED = {
    "window_data_storage": _class("dataset.window_data_storage.per_layer.PerLayerStorageFactory")
}
_DATABASE = {"storage": _class("dataset.storage.sqlite.SQLiteWindowStorageFactory")}
_AS_IT_IS = {"transforms": [_class("train.transforms.transform.Identity")]}
_TWO_TASKS = _class(
    "train.tasks.multi_task.MultiTask",
    tasks={"seg": SEGMENT, "water": task("SegmentationTask", num_classes=2)},
    input_mapping={"seg": {"targets": "targets"}, "water": {"water": "targets"}},
)
_TWO_LABELS = RASTER | {"water": data_input(["mask"], ["mask"], is_target=True, dtype="INT32")}
_SKIPS = task(
    "ClassificationTask", property_name="kind", classes=["a", "b", "c"],
    allow_invalid=True, skip_unknown_categories=True,
)  # fmt: skip

EQUAL: dict[str, Variation] = {
    # joins
    "two of three steps joined": ({}, {}, model(STEPS, join("image", {"s2_0": [], "s2_2": []}))),
    "both orbits joined": (
        {
            "sentinel1_ascending": raster(["vv", "vh"], "float32"),
            "sentinel1_descending": raster(["vh", "vv"], "float32"),
        },
        {},
        model(
            {
                "asc": image(["sentinel1_ascending"], ["vv", "vh"]),
                "desc": image(["sentinel1_descending"], ["vv", "vh"]),
            },
            join("s1", {"desc": [], "asc": []}),
        ),
    ),
    "groups of bands side by side": (
        {},
        {},
        model(
            {"a": stacked(["sentinel2"], S2[:4]), "b": stacked(["sentinel2"], S2[4:])},
            join("image", {"b": [], "a": []}, concatenate_dim=0),
        ),
    ),
    "two modalities side by side": (
        {},
        {},
        model(
            {"s2": image(["sentinel2"], S2), "s1": image(["sentinel1"], ["vv", "vh"])},
            join("image", {"s2": [], "s1": []}, concatenate_dim=0),
        ),
    ),
    "bands selected, counted from the end, then joined": (
        {},
        {},
        model(
            BEFORE_AFTER,
            select([-1, 1], "pre", "pre"),
            select([3, 1], "post", "post"),
            join("image", {"pre": [], "post": []}, concatenate_dim="TIME"),
        ),
    ),
    # pads and crops of one split
    "each split pads otherwise": (
        {},
        {},
        model(
            SAMPLE, train_config=_padded(24), val_config=_padded(8),
            test_config=_padded(24, "topleft"),
        ),
    ),
    "val alone pads": (
        {}, {},
        model(SAMPLE, train_config=_AS_IT_IS, val_config=_padded(8), test_config=_padded(12)),
    ),
    "every crop of two splits, each padded otherwise": (
        {},
        {},
        model(
            SAMPLE,
            train_config=_padded(5),
            val_config={"load_all_crops": True, "crop_size": 7, **_padded(6)},
            test_config={"load_all_patches": True, "patch_size": 8, "overlap_ratio": 0.25},
        ),
    ),
    "every crop of a rectangle, padded or not": (
        {},
        {},
        model(
            SAMPLE,
            train_config={"load_all_crops": True, "crop_size": [7, 10], "overlap_pixels": 2},
            val_config={"load_all_crops": True, "crop_size": [10, 6], **_padded(8)},
            test_config={"load_all_crops": True, "crop_size": [9, 5], "overlap_ratio": 0.4},
        ),
    ),
    "every crop of a rectangle with a class of its own": (
        {},
        {},
        model(
            SAMPLE, label=VECTOR, task=_SKIPS,
            val_config={"load_all_crops": True, "crop_size": [5, 8], "overlap_pixels": 2},
        ),
    ),
    "every crop with a class of its own": (
        {},
        {},
        model(
            SAMPLE, label=VECTOR, task=_SKIPS,
            val_config={"load_all_crops": True, "crop_size": 8},
            test_config={"load_all_crops": True, "crop_size": 8, "overlap_pixels": 3},
        ),
    ),
    "every crop with a number of its own": (
        {},
        {},
        model(
            SAMPLE, label=VECTOR,
            task=task("RegressionTask", property_name="height", scale_factor=2.0,
                      allow_invalid=True),
            default_config={"load_all_crops": True, "crop_size": 8},
        ),
    ),
    # tasks and targets
    "a pad of another task's target": (
        {}, {},
        model(SAMPLE, pad(9, "target/seg/classes", "target/seg/valid"), label=_TWO_LABELS,
              task=_TWO_TASKS),
    ),
    "a mask of another task's target": (
        {}, {},
        model(SAMPLE | MASK, mask("target/seg/valid"), label=_TWO_LABELS, task=_TWO_TASKS),
    ),
    "numbers by the pixel, some of them nodata": (
        {"height": raster(["h"], "float32")},
        {},
        model(
            SAMPLE, pad(9, "sentinel2_l2a", "target/values", "target/valid"),
            label={"targets": data_input(["height"], ["h"], is_target=True)},
            task=task("PerPixelRegressionTask", nodata_value=-1, scale_factor=0.5),
        ),
    ),
    "a label of floats beside another band": (
        {"label_raster": raster(["other", "label"], "float32")}, {}, model(SAMPLE)
    ),
    # masks
    "a mask of decibels and of pixels": (
        {},
        {},
        model(
            SAMPLE | MASK | S1,
            _class("train.transforms.sentinel1.Sentinel1ToDecibels", selectors=["sentinel1"]),
            mask("sentinel1", "sentinel2_l2a"),
        ),
    ),
    "categories merged by a class of a project": (
        {"label": {"type": "vector", "class_names": ["coca", "flood", "river", "none", "odd"]}},
        {},
        model(
            SAMPLE, label=VECTOR,
            task={
                "class_path": "rslp.forest_loss_driver.train.ForestLossTask",
                "init_args": {"property_name": "kind", "allow_invalid": True,
                              "classes": ["agriculture", "none", "river"],
                              "filters": [["kind", "odd"]]},
            },
        ),
    ),
    "a mask of as many timesteps": (
        {"mask": raster(["mask"], "uint8", data_source=FETCHED)},
        {},
        model(
            SAMPLE | {"mask": stacked(["mask"], ["mask"], dtype="INT32")},
            mask("sentinel2_l2a", mask_value=3),
        ),
    ),
    "a mask of what is clear": (
        {},
        {},
        model(
            SAMPLE | {"cloud_mask": image(["scl"], ["SCL"], dtype="INT32")},
            _class("train.transforms.earthdaily.EarthDailyCloudMaskToMask",
                   clear_values=[*range(128)]),
            mask("sentinel2_l2a"),
        ),
    ),
    # storages
    "arrays packed by the layer, steps joined": (
        {
            "sentinel2": _of_format(STORED, "NumpyRasterFormat", data_source=FETCHED),
            "label_raster": _of_format(["label"], "NumpyRasterFormat", "uint8"),
        },
        _PACKED,
        model(STEPS, join("image", EVERY)),
    ),
    "rasters packed by the layer, windows in a database": (
        {}, _PACKED | _DATABASE, model(SAMPLE | S1, test_config={"names": ["one", "two"]})
    ),
    "labels as pictures": (
        {"label_raster": {"type": "raster", "band_sets": [{
            "bands": ["label"], "dtype": "uint8",
            "format": _class("utils.raster_format.SingleImageRasterFormat", format="png"),
        }]}},
        {},
        model(SAMPLE),
    ),
    "pictures and tiles of pictures": (
        {
            "sentinel1": _tiled(["vv", "vh"], "float32", "geotiff"),
            "label_raster": _tiled(["label"], "uint8", "png"),
        },
        {},
        model(SAMPLE | S1),
    ),
    "labels in tiles of features": (
        {"label": {"type": "vector", "class_names": ["a", "b", "c", "odd"],
                   "vector_format": _class("utils.vector_format.TileVectorFormat")}},
        {},
        model(SAMPLE, label=VECTOR, task=_SKIPS),
    ),
    "band sets of other resolutions": (
        {
            "sentinel2": _sets(
                {"bands": S2[:4], "dtype": "uint16"},
                {"bands": S2[4:10], "dtype": "uint16", "zoom_offset": -1},
                {"bands": S2[10:], "dtype": "uint16", "zoom_offset": -2},
            )
        },
        {},
        model(SAMPLE),
    ),
    "band sets of other types, one with nodata": (
        {
            "sentinel2": _sets(
                {"bands": S2[:4], "dtype": "uint8"},
                {"bands": S2[4:], "dtype": "float32", "nodata_value": -1},
            )
        },
        {},
        model(SAMPLE),
    ),
    # which windows, layers and item groups
    "options of every type": (
        {},
        {},
        model(
            SAMPLE,
            default_config={"num_samples": 3},
            train_config={"tags": {"a": True, "b": 1.5}},
            val_config={"tags": {"a": False, "b": "2"}},
            test_config={"tags": {"c": "x y"}},
        ),
    ),
    "layers stacked, item groups in another order": (
        {"sentinel2_feb": raster(STORED)},
        {},
        model(
            {
                "sentinel2_l2a": image(
                    ["sentinel2.2", "sentinel2_feb", "sentinel2"], S2, load_all_layers=True
                )
            }
        ),
    ),
    "the first of several layers, all bands of a set": (
        {"sentinel2_feb": raster(STORED), "landsat": raster([f"B{i}" for i in range(1, 12)])},
        {},
        model(
            {
                "sentinel2_l2a": image(["sentinel2_feb", "sentinel2"], S2),
                "landsat": {
                    "data_type": "raster", "layers": ["landsat"], "passthrough": True,
                    "use_all_bands_in_order_of_band_set_idx": 0,
                },
            }
        ),
    ),
    "a modality that windows may lack": (
        {}, {}, model(SAMPLE | {"sentinel1": {**S1["sentinel1"], "required": False}})
    ),
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "a pad of another task's target": {"task": "water"},
    "a mask of another task's target": {"task": "water"},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the same bands side by side": (
        model(BEFORE_AFTER, join("image", {"pre": [], "post": []}, concatenate_dim=0)),
        "B02, B03, B04, B08 of several images side by side",
    ),
    "an image stacked twice": (
        model(STEPS, join("image", {"s2_0": [], "input/s2_0": []})),
        "along time more than once",
    ),
    "a join of inputs without passthrough": (
        model({k: {**v, "passthrough": False} for k, v in STEPS.items()}, join("image", EVERY)),
        "isn't a raster input with passthrough",
    ),
    "crops with three sides": (
        model(SAMPLE, default_config={"crop_size": [8, 12, 8]}),
        "1 to 65,536 pixels, or width and height",
    ),
}
