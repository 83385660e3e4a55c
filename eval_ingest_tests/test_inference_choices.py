"""One of several tasks, labels without model.yaml, and what is expected to be missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.task import TaskKind
from eval_ingest.errors import ConfigError, InferenceError, UnsupportedError
from eval_ingest.testing.datasets import write_matching
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.configurations import (
    DROP,
    LABEL_VECTOR,
    model_yaml,
    raster,
    resolved,
    task,
)
from eval_ingest_tests.support.variations import LAYERS, SAMPLE, VECTOR, model

VESSELS = {
    "class_path": "rslp.vessel_attribute.train.VesselAttributeMultiTask",
    "init_args": {
        "length_buckets": [10, 20],
        "tasks": {
            "length": task("RegressionTask", property_name="length", scale_factor=0.01),
            "heading_x": task("RegressionTask", property_name="cog_x"),
            "ship_type": task("ClassificationTask", property_name="type", classes=["tug", "sar"]),
        },
        "input_mapping": {
            name: {"targets": "targets"} for name in ("length", "heading_x", "ship_type")
        },
    },
}


def vessels(**spec: Any) -> Any:
    return resolved(model=model_yaml(LABEL_VECTOR, VESSELS), **spec)


def test_a_subclass_of_multi_task_lists_its_tasks() -> None:
    with pytest.raises(UnsupportedError, match=r"3 tasks: length \(Reg.*ship_type.*--task length"):
        vessels()


@pytest.mark.parametrize(
    ("name", "kind", "prop"),
    [
        ("ship_type", TaskKind.CLASSIFICATION, "type"),
        ("length", TaskKind.SCALAR_REGRESSION, "length"),
    ],
)
def test_one_of_several_tasks_is_chosen(name: str, kind: TaskKind, prop: str) -> None:
    config = vessels(task=name)
    assert (config.task.kind, config.task.property_name) == (kind, prop)


def test_a_task_that_is_not_there_and_one_that_is_computed_are_told() -> None:
    with pytest.raises(ConfigError, match=r"no task 'speed'.*ship_type"):
        vessels(task="speed")
    with pytest.raises(UnsupportedError, match=r"cog_x.*VesselAttributeMultiTask computes"):
        vessels(task="heading_x")
    with pytest.raises(ConfigError, match="leave --task out"):
        resolved(task="segment")


def test_a_task_class_of_a_project_is_known_by_name() -> None:
    args = {"property_name": "new_label", "classes": ["agriculture", "river"]}
    known = {"class_path": "rslp.forest_loss_driver.train.ForestLossTask", "init_args": args}
    found = resolved(model=model_yaml(LABEL_VECTOR, known)).task
    assert found.category_mapping["coca"] == "agriculture" and found.skip_unknown_categories
    by_id = {**known, "init_args": args | {"read_class_id": True}}
    assert not resolved(model=model_yaml(LABEL_VECTOR, by_id)).task.read_class_id
    other = {**known, "class_path": "rslp.elsewhere.SegmentationTask"}
    with pytest.raises(UnsupportedError, match=r"rslp\.elsewhere\.SegmentationTask"):
        resolved(model=model_yaml(LABEL_VECTOR, other))


# ------------------------------------------------------------------------- without model.yaml

S2_ONLY = {"sentinel2": raster(["B02", "B03"], data_source={"name": "x.Y"})}


def unlabelled(**layers: Any) -> dict[str, Any]:
    return {"layers": S2_ONLY | layers}


def test_the_only_layer_that_no_data_source_fills_is_the_label() -> None:
    config = resolved(
        config=unlabelled(info={"type": "vector"}, output={"type": "vector"}), model=DROP,
        task_type="scalar_regression", property_name="length",
    )  # fmt: skip
    assert config.label.part.reads[0].layer == "info"
    config = resolved(
        config=unlabelled(truth=raster(["y"], "uint8")), model=DROP, classes=("a", "b")
    )
    assert config.label.part.reads[0].layer == "truth"


def test_of_several_the_flag_chooses() -> None:
    layers = unlabelled(info={"type": "vector"}, notes={"type": "vector"})
    given = {"config": layers, "model": DROP, "task_type": "scalar_regression",
             "property_name": "length"}  # fmt: skip
    with pytest.raises(InferenceError, match=r"info, notes.*--label-layer"):
        resolved(**given)
    assert resolved(**given, label_layer="notes").label.part.reads[0].layer == "notes"
    with pytest.raises(ConfigError, match=r"no layer 'nowhere'.*--label-layer"):
        resolved(**given, label_layer="nowhere")
    with pytest.raises(ConfigError, match="leave --label-layer out"):
        resolved(label_layer="label")


# ------------------------------------------------------------------------------ expected to lack


def test_windows_without_an_expected_label_stop_no_ingest(tmp_path: Path) -> None:
    lacking = task("ClassificationTask", property_name="kind", classes=["a", "b", "c"],
                   allow_invalid=True)  # fmt: skip
    text = json.dumps(model(SAMPLE, label=VECTOR, task=lacking))
    source = write_matching(
        tmp_path / "source", json.dumps({"layers": LAYERS}), text, windows=20, alike=True
    )
    job = make_job(source, tmp_path / "root", max_invalid_fraction=0)
    index = pipeline.ingest(job)[0].value
    assert index.summary.reasons == {"unlabelled": 4}
    assert (index.summary.n_expected, index.summary.fraction) == (4, 0)
    root = tmp_path / "root"
    counts = [len(EvalDataset("crops", split, root=root)) for split in ("train", "val", "test")]
    assert sum(counts) == len(index) - 4
