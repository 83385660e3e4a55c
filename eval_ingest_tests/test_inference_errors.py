"""Wrong configurations: each has a sentence of its own that names file, place and cure."""

import json
import time

import pytest
import yaml

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import ConfigError, InferenceError, UnsupportedError
from eval_ingest.inference.node import MAX_CHARACTERS
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest_tests.support.configurations import (
    DROP,
    INPUTS,
    LABEL_VECTOR,
    NO_S2,
    config_json,
    data_input,
    default,
    image,
    join,
    model_yaml,
    multi_task,
    raster,
    resolved,
    stacked,
    task,
    transform,
    with_task,
)

TWO = {"a": task("SegmentationTask", num_classes=2), "b": task("RegressionTask", property_name="x")}
WRONG = {
    "several data modules": (
        {
            "model": {
                "data": {
                    "class_path": "rslearn.train.data_module.MultiDatasetDataModule",
                    "init_args": {"data_modules": {"near": {}, "far": {}}},
                }
            }
        },
        UnsupportedError,
        ["MultiDatasetDataModule of several datasets: near, far", "--olmoearth-run-config-path"],
    ),
    "two tasks": (
        {"model": model_yaml(task_=multi_task({}, **TWO))},
        UnsupportedError,
        ["model.yaml: data.init_args.task", "2 tasks: a (Segmentation", "--task a"],
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
    **{
        f"{field} of {value}": (
            {
                "config": config_json(
                    {
                        "label_raster": {
                            **raster(["label"]),
                            "band_sets": [
                                {
                                    "dtype": "uint8",
                                    **({} if field == "num_bands" else {"bands": ["label"]}),
                                    field: value,
                                }
                            ],
                        }
                    }
                )
            },
            ConfigError,
            [f"band_sets[0].{field}", said],
        )
        for field, value, said in (
            ("num_bands", 10**10, "1 to 65535"),
            ("num_bands", 0, "1 to 65535"),
            ("zoom_offset", 10**9, "-30 to 30"),
            ("spatial_size", [10**9, 10], "1 to 65536"),
            ("nodata_value", float("inf"), "finite"),
        )
    },
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
    "crop without height": (
        {"model": model_yaml(default_config={"crop_size": [16, 0]})},
        ConfigError,
        ["default_config.crop_size", "[16, 0]", "width and height"],
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
        ["pre, post", "padded or masked alike"],
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
        {
            "model": DROP,
            "config": config_json({"label_raster": DROP, "label": DROP, "srtm": DROP}),
        },
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
        ("", ["is empty"]),
        ("- a", ["is a list"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("a: " + "x" * MAX_CHARACTERS, ["500,003"]),
    ],
    ids=range(8),
)
def test_broken_yaml_names_file_and_problem(text, parts):
    message = broken(model=text)
    assert message.startswith("/data/model.yaml: ")
    for part in parts:
        assert part in message


def test_merges_that_multiply_take_no_time():
    first = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(20)) + "}\n"
    merges = (f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
    began = time.process_time()
    message = broken(model=first + "".join(merges))
    assert time.process_time() - began < 5
    # From 6.0.4 on PyYAML merges an entry once; earlier ones are stopped.
    assert "too many merged entries" in message or "no `data` section" in message


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
    for tag in ("*a29", "*l"):
        tagged = "loop: &l [*l]\n" + bomb + model_with_tag(tag)
        with pytest.raises(ConfigError, match=r"train_config.tags.key: its aliases repeat"):
            resolve(
                ConfigFiles(json.dumps(config_json()), tagged), DatasetSpec(name="a", source="x")
            )


def model_with_tag(tag):
    content = model_yaml()
    content["data"]["init_args"]["train_config"] = {"tags": {"key": "TAG"}}
    return yaml.safe_dump(content).replace("TAG", tag)


def test_templates_and_unset_variables_dont_break_parsing():
    text = yaml.safe_dump(model_yaml()).replace("${NUM_WORKERS}", "${NUM_WORKERS:-8}")
    text += "\nmodel:\n  patch_size: {PATCH_SIZE}\n  path: {CHECKPOINT_PATH}/last.ckpt\n"
    text += "  lists: [${A}, {{ b }}, {C}]\n  text: '{CHECKPOINT_PATH}'\n"
    config = json.dumps(config_json(extra="@")).replace('"@"', "${COUNT}")
    files = ConfigFiles(config, text)
    assert resolve(files, DatasetSpec(name="a", source="x")).task.num_classes == 3
