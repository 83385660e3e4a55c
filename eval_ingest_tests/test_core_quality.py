"""Quality: planted faults are found, with counts and names; a clean dataset is good."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval_ingest.core.digest import pixel_digest
from eval_ingest.core.index import WindowIndex, index_schema
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.norm import MOMENTS
from eval_ingest.core.pretraining import PRETRAINING
from eval_ingest.core.quality import quality_report
from eval_ingest.core.resolved import InputPart, ModalityInput, ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.splits import SplitAssignment, assign_splits, split_report
from eval_ingest.core.task import Task, TaskKind
from eval_ingest_tests.support.indexes import (
    Window,
    clean,
    given_splits,
    make_config,
    make_index,
    moments,
    report,
    window,
    with_means,
)

RADAR = make_config(
    modalities=(
        ModalityInput(
            name="sentinel1",
            bands=("vv", "vh"),
            parts=(InputPart(key="s1", reads=(), stack=True),),
            dtype="float32",
            decibels=True,
        ),
    )
)


def findings(windows: list[Window], config: ResolvedConfig | None = None) -> dict[str, Any]:
    return {found["code"]: found for found in report(windows, config)["findings"]}


# --------------------------------------------------------------------------------------- verdict


def test_a_clean_dataset_is_good() -> None:
    found = report(clean())
    assert found["verdict"] == "good"
    assert found["reasons"] == []
    assert found["findings"] == []
    assert found["standard_error"] == {"train": 0.0161, "val": 0.0456, "test": 0.0456}


def test_a_clean_dataset_that_is_split_here_is_good_too() -> None:
    index = make_index(clean(3000))
    spec = DatasetSpec.parse({"name": "d", "source": "x"}, "test")
    assignment = assign_splits(index, make_config(), spec, "fp")
    assert quality_report(index, assignment, make_config())["verdict"] == "good"


def test_a_small_test_split_is_a_warning_and_a_tiny_one_an_error() -> None:
    assert report(clean(300))["verdict"] == "usable with warnings"
    assert report(clean(60))["verdict"] == "poor"
    assert report(clean(10))["reasons"][0].startswith("val has 1 window: a score on it")


def test_an_empty_split_is_poor() -> None:
    windows = [{**w, "split": "train" if w["split"] == "val" else w["split"]} for w in clean()]
    found = report(windows)
    assert found["verdict"] == "poor"
    assert found["reasons"][0].startswith("val is empty")
    assert found["standard_error"]["val"] is None


def test_a_class_that_train_lacks_is_poor() -> None:
    config = make_config()
    windows = [{**w, "class": int(w["split"] == "test")} for w in clean()]
    index = make_index(windows, config)
    assignment = given_splits(index, windows)
    full = SplitAssignment(assignment.table, "fp", split_report(index, assignment, config, "given"))
    found = quality_report(index, full, config)
    assert found["verdict"] == "poor"
    assert "train has no forest" in found["reasons"][0]
    codes = [f["code"] for f in found["findings"]]
    assert codes.count("class_missing") == 3  # val and test lack one of the two as well
    assert codes.count("class_distribution") == 1  # test; val is like train
    assert "splits.strategy stratified" in found["reasons"][0]


def test_what_is_stratified_already_is_not_told_to_be() -> None:
    config = make_config()
    windows = [{**w, "class": int(w["split"] == "test")} for w in clean()]
    index = make_index(windows, config)
    assignment = given_splits(index, windows)
    report = split_report(index, assignment, config, "stratified 80% / 10% / 10%, seed 42")
    full = SplitAssignment(assignment.table, "fp", report)
    reasons = quality_report(index, full, config)["reasons"]
    assert "as many windows as there are splits" in reasons[0]
    assert not any("strategy stratified" in reason for reason in reasons)


def test_leaks_make_a_dataset_poor() -> None:
    windows = clean()
    for k in range(30):
        windows.append(window(f"x{k}", k * 5000.0 + 100, 0, split="test"))
    found = report(windows)
    assert found["verdict"] == "poor"
    assert found["leakage"]["splits"]["test"]["overlapping"]["count"] >= 24
    assert len(found["leakage"]["splits"]["test"]["overlapping"]["examples"]) == 3


def test_what_helps_against_leaks_is_said_once() -> None:
    windows = [
        window(f"w{k:04d}", k // 3 * 5000.0, split=("train", "val", "test")[k % 3])
        for k in range(600)
    ]
    reasons = report(windows)["reasons"]
    assert [" overlap a train window" in reason for reason in reasons].count(True) == 2
    assert [reason for reason in reasons if "splits.strategy spatial" in reason] == reasons[:1]


def test_windows_that_all_lie_at_one_place_may_have_placeholders_for_coordinates() -> None:
    found = findings([{**w, "x": 0.0, "y": 0.0} for w in clean(200)])
    assert found["one_place"]["count"] == 200
    assert "placeholders" in found["one_place"]["text"]
    assert len(found["one_place"]["examples"]) == 3
    assert "spatial" not in found["leakage_overlap"]["text"]
    assert "one_place" not in findings([{**w, "unplaced": True} for w in clean(200)])


def test_the_error_of_a_regression_is_a_share_of_the_score() -> None:
    task = Task(kind=TaskKind.SCALAR_REGRESSION, num_classes=1)
    table = make_index(clean(300)).table
    moments = [{k: [float(v)] for k, v in zip(MOMENTS, (1, n, n * n, n, n), strict=True)}
               for n in range(300)]  # fmt: skip
    config = make_config(task=task)
    kind = index_schema(config).field("label.moments").type
    table = table.append_column("label.moments", pa.array(moments, kind))
    index = WindowIndex(table, "fp", "key")
    found = quality_report(index, given_splits(index, clean(300)), config)
    assert "off by up to 13% of itself" in found["reasons"][0]  # 1 / sqrt(2 * 30)


# ----------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (1e-4, "reflectance from 0 to 1"),
        (0.0255, "8 bits"),
        (0.1, "too small by a factor of 10"),
        (10.0, "too large by a factor of 10"),
        (1e4, "too large by a factor of 10,000"),
    ],
)
def test_another_scale_is_found_and_named(factor: float, cause: str) -> None:
    found = findings(with_means(factor))["units"]
    assert found["severity"] == "warning"
    assert cause in found["text"]
    assert found["count"] == 4
    assert found["examples"][0].startswith("B02: mean")


def test_the_offset_of_baseline_0400_is_found() -> None:
    assert "offset of 1000" in findings(with_means(1.0, plus=1000.0))["units"]["text"]


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0])
def test_darker_and_brighter_landscapes_are_plausible(factor: float) -> None:
    assert "units" not in findings(with_means(factor))


@pytest.mark.parametrize(
    ("measured", "cause"),
    [
        (moments(means=(2.0, 1.0), low=0.1, std=1, counted=0.01), "stored in decibels"),
        (moments(means=(30.0, 24.0), low=10, std=3), "42 dB too bright"),
        (moments(means=(-52.0, -58.0), low=-70, std=3), "40 dB too dark"),
    ],
)
def test_radar_in_other_units_is_found(measured: Any, cause: str) -> None:
    found = findings(clean(200, moments=measured), RADAR)["units"]
    assert cause in found["text"]


def test_radar_in_the_units_of_pretraining_is_plausible() -> None:
    measured = moments(means=(-11.0, -18.0), low=-30, std=3)
    assert "units" not in findings(clean(200, moments=measured), RADAR)


def test_one_band_in_another_unit_is_named() -> None:
    measured = moments(means=(1100.0, 1300.0, 14000.0, 2700.0))
    found = findings(clean(200, moments=measured))["units"]
    assert (found["count"], found["of"]) == (1, 4)
    assert found["examples"][0].startswith("B04")


def test_every_modality_has_pretraining_statistics_for_every_band() -> None:
    for modality in MODALITIES.values():
        assert tuple(PRETRAINING[modality.name]) == modality.bands


def test_pretraining_statistics_are_those_of_the_package() -> None:
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.data import normalize

    theirs = normalize.load_computed_config()
    for modality, bands in PRETRAINING.items():
        for band, (mean, std) in bands.items():
            assert mean == pytest.approx(theirs[modality][band]["mean"], rel=1e-4)
            assert std == pytest.approx(theirs[modality][band]["std"], rel=1e-4)


# ------------------------------------------------------------------------------------------ data


def test_a_band_that_never_varies_is_found() -> None:
    measured = moments()
    measured[:, 2] = [8192, 0, 0, 0, 0]
    found = findings(clean(200, moments=measured))["zero_variance"]
    assert found["examples"] == ["B04"]


def test_windows_with_a_flat_band_are_found_by_name() -> None:
    windows = clean()
    windows[7]["moments"] = moments(std=0.0)
    found = findings(windows)["flat_window"]
    assert (found["count"], found["severity"]) == (1, "note")
    assert found["examples"] == ["g/w00007"]


def test_numbers_that_mark_missing_data_are_found_where_they_count_as_values() -> None:
    windows = clean()
    for k in (3, 4):
        windows[k]["moments"] = moments(low=-9999)
    windows[5]["moments"] = moments(low=-1000)
    found = findings(windows)["nodata_value"]
    assert (found["count"], found["severity"]) == (2, "warning")
    assert found["examples"] == ["g/w00003", "g/w00004"]
    assert "down to -9999" in found["text"] and "store 0 there" in found["text"]
    decibels = moments(means=(-11.0, -18.0), low=-100, std=3)
    assert "nodata_value" not in findings(clean(moments=decibels), RADAR)


def test_windows_without_half_of_their_pixels_are_found() -> None:
    windows = clean()
    for k in range(100):
        windows[k]["moments"] = moments(counted=0.3)
    found = findings(windows)["nodata"]
    assert (found["count"], found["severity"]) == (100, "warning")
    assert "5.8% are missing" in found["text"]


def test_windows_that_are_mostly_zeros_are_found_and_some_zeros_noted() -> None:
    windows = clean()
    windows[3]["nodata"] = 64 * 64
    for k in range(20, 60):
        windows[k]["nodata"] = 64 * 64 * 2
    found = findings(windows)
    assert found["nodata_some"]["examples"] == ["g/w00003"]
    assert found["nodata_some"]["severity"] == "note"
    assert (found["nodata"]["count"], found["nodata"]["severity"]) == (40, "warning")
    assert "3.4% are missing" in found["nodata"]["text"]


def test_timesteps_out_of_order_are_found() -> None:
    windows = clean()
    windows[5]["stamps"] = ("2024-06-01", "2024-03-01")
    assert findings(windows)["timestamps_unordered"]["examples"] == ["g/w00005"]


def test_timesteps_outside_the_windows_time_are_found() -> None:
    windows = clean()
    windows[5]["stamps"] = ("2023-06-01", "2024-03-01")
    found = findings(windows)["timestamps_outside"]
    assert (found["count"], found["examples"]) == (1, ["g/w00005"])


def test_a_layer_that_is_outside_in_every_window_is_only_noted() -> None:
    found = findings(clean(stamps=("2022-06-01", "2022-07-01")))["timestamps_outside"]
    assert found["severity"] == "note"


def test_duplicated_windows_and_pixels_are_found() -> None:
    windows = clean()
    windows.append({**windows[0], "name": "again"})
    windows[20]["digest"] = windows[10]["digest"] = "same"
    found = findings(windows)
    assert found["duplicated_window"]["count"] == 1
    assert found["duplicated_pixels"]["examples"] == ["g/w00020"]


def test_constant_labels_are_poor() -> None:
    found = report([{**w, "class": 1} for w in clean()])
    assert found["verdict"] == "poor"
    assert "every label is forest" in found["reasons"][0]


# ---------------------------------------------------------------------------------------- digest


def digest_of(pixels: np.ndarray[Any, Any]) -> str | None:
    sums = np.zeros((5, pixels.shape[-1]))
    sums[1] = pixels.sum(axis=(0, 1, 2), dtype=np.float64)
    return pixel_digest({"s2": pixels}, {"s2": sums})


def test_equal_pixels_have_equal_digests_and_others_do_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 9999, (8, 8, 3, 4), dtype=np.uint16)
    assert digest_of(pixels) == digest_of(pixels.copy(order="F"))
    other = pixels.copy()
    other[3, 4, 1, 2] ^= 1
    assert digest_of(pixels) != digest_of(other)
    assert digest_of(pixels) != digest_of(pixels[::-1])
    assert digest_of(pixels) != digest_of(pixels.reshape(16, 4, 3, 4))
    assert pixel_digest({}, {}) is None
