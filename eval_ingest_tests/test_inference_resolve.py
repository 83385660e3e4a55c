"""Configurations resolved as a whole: crop, splits, files that are missing, origins, real ones."""

import ast
import copy
import random
import sys
from pathlib import Path

import pytest
import yaml

from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.resolved import CropGrid, LayerRead, Pad, SplitSelector
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import EvalIngestError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest_tests.support.configurations import (
    DROP,
    GEN1,
    JOIN,
    LABEL_VECTOR,
    NO_S2,
    S2,
    S2_PARTS,
    band_set,
    config_json,
    data_input,
    model_yaml,
    names,
    raster,
    reads,
    resolved,
    task,
    transform,
    with_task,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "configs"


# What is given, what is seen, what is expected.
ROWS = {
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
    "crop of width and height": (
        {"model": model_yaml(default_config={"crop_size": [16, 32]})},
        lambda c: c.crop_size,
        (32, 16),
    ),
    "crop of width and height, of which Pad leaves less": (
        {
            "model": model_yaml(
                default_config={
                    "crop_size": [16, 40],
                    "transforms": [
                        transform("Pad", size=24, mode="center", image_selectors=["sentinel2_l2a"])
                    ],
                }
            )
        },
        lambda c: (c.crop_size, "24 x 16 pixels" in " ".join(c.warnings)),
        ((24, 16), True),
    ),
    "deprecated patch_size": (
        {
            "model": model_yaml(
                train_config={"patch_size": 63, "load_all_patches": True, "overlap_ratio": 0.1}
            )
        },
        lambda c: (c.crop_size, c.all_crops, c.provenance["all_crops.train"]),
        (
            None,
            {"train": CropGrid(size=63, overlap=6)},
            "model.yaml: data.init_args.train_config.load_all_patches",
        ),
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
        lambda c: (c.window_storage, c.data_storage),
        ("sqlite", "per_layer"),
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
    reduced = rslearn_config(resolved(config, model))
    assert set(reduced["layers"]) == {"sentinel2", "label"}
    from rslearn.config import DatasetConfig

    parsed = DatasetConfig.model_validate(reduced)
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
