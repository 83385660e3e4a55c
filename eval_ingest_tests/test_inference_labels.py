"""What a configuration says of task, classes and labels: each variation a row."""

import pytest

from eval_ingest_tests.support.configurations import (
    DROP,
    GEN1,
    INPUTS,
    LABEL_VECTOR,
    band_set,
    config_json,
    gen2,
    model_yaml,
    multi_task,
    names,
    raster,
    resolved,
    task,
    with_task,
)

# What is given, what is seen, what is expected.
ROWS = {
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
    "band set class names of fewer bands": (
        {
            "config": config_json(
                {
                    "label_raster": band_set(
                        bands=["other", "label"], dtype="uint8", class_names=[["no", "yes"]]
                    )
                }
            )
        },
        names,
        ["class_0", "class_1", "class_2"],
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
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_variation_is_understood(row):
    given, seen, expected = row
    assert seen(resolved(**given)) == expected
