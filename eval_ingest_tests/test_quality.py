"""Faults planted in a real dataset: each is found by the ingest, counted, and named."""

import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_ingest import pipeline
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.changing import rewrite, windows_of

Findings = dict[str, dict[str, Any]]


def key_of(window: Path) -> str:
    return f"{window.parent.name}/{window.name}"


def rasters(window: Path, layer: str = "sentinel2*") -> list[Path]:
    return sorted(window.glob(f"layers/{layer}/*/geotiff.tif"))


def move_times(window: Path, days: list[int]) -> None:
    """Move the timestamps of a window's item groups by so many days."""
    for path, shift in zip(rasters(window), days, strict=True):
        sidecar = path.with_name("metadata.json")
        content = json.loads(sidecar.read_text())
        content["timestamps"] = [
            [(datetime.fromisoformat(end) + timedelta(days=shift)).isoformat() for end in interval]
            for interval in content["timestamps"]
        ]
        sidecar.write_text(json.dumps(content))


def again(window: Path, split: str) -> Path:
    """The same window under another name, in another split."""
    copy = window.with_name(f"{window.name}_again")
    shutil.copytree(window, copy)
    content = json.loads((copy / "metadata.json").read_text())
    content["name"], content["options"]["split"] = copy.name, split
    (copy / "metadata.json").write_text(json.dumps(content))
    return copy


def split_of(window: Path) -> str:
    return str(json.loads((window / "metadata.json").read_text())["options"]["split"])


def constant(band: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[band] = value
        return pixels

    return change


@pytest.fixture(scope="module")
def planted(
    written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Findings, dict[str, Path], dict[str, Any]]:
    """Findings by code, the windows that faults were planted in, and the whole report."""
    source = tmp_path_factory.mktemp("planted") / "source"
    shutil.copytree(written("segmentation"), source)
    windows = windows_of(source)
    train = [window for window in windows if split_of(window) == "train"]
    names = ("flat", "zero", "empty", "unordered", "outside", "class", "twin")
    where = dict(zip(names, train, strict=False))
    for path in rasters(where["flat"]):
        rewrite(path, constant(3, 900))
    for path in rasters(where["zero"]):
        rewrite(path, lambda pixels: np.where(np.indices(pixels.shape)[1] < 3, 0, pixels))
    for path in rasters(where["empty"]):
        rewrite(path, lambda pixels: np.where(np.indices(pixels.shape)[1] < 20, 0, pixels))
    move_times(where["unordered"], [60, 0, 0])
    move_times(where["outside"], [0, 0, 2000])
    factories.set_label(source, where["class"].parent.name, where["class"].name, 99)
    where["copy"] = again(where["twin"], "val")
    job = make_job(source, tmp_path_factory.mktemp("root"), max_invalid_fraction=0.5)
    quality = pipeline.ingest(job)[-1].value.quality
    return {found["code"]: found for found in quality["findings"]}, where, quality


@pytest.mark.parametrize(
    ("code", "window"),
    [
        ("flat_window", "flat"),
        ("nodata_some", "zero"),
        ("nodata", "empty"),
        ("timestamps_unordered", "unordered"),
        ("timestamps_outside", "outside"),
        ("invalid_label_out_of_range", "class"),
        ("duplicated_window", "copy"),
        ("duplicated_pixels", "copy"),
    ],
)
def test_a_fault_of_one_window_is_found_counted_and_named(
    code: str, window: str, planted: tuple[Findings, dict[str, Path], dict[str, Any]]
) -> None:
    findings, where, _ = planted
    found = findings[code]
    assert found["count"] == 1
    assert found["of"] >= 24
    (example,) = found["examples"]
    assert example.startswith(key_of(where[window]))


def test_a_window_that_is_in_two_splits_is_a_leak(
    planted: tuple[Findings, dict[str, Path], dict[str, Any]],
) -> None:
    findings, where, quality = planted
    leaks = quality["leakage"]["splits"]
    held_out = next(split for split in leaks if leaks[split]["overlapping"]["count"])
    copy, twin = key_of(where["copy"]), key_of(where["twin"])
    assert leaks[held_out]["overlapping"]["examples"] == [f"{copy} overlaps train {twin}"]
    assert leaks[held_out]["duplicated"]["count"] == 1
    assert findings["leakage_overlap"]["severity"] == "error"
    assert quality["verdict"] == "poor"


def test_a_clean_copy_has_none_of_these_findings(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    quality = pipeline.ingest(make_job(written("segmentation"), tmp_path))[-1].value.quality
    codes = {found["code"] for found in quality["findings"]}
    assert codes <= {"small_split", "leakage_near", "class_missing", "class_distribution"}


def test_a_band_and_labels_that_never_vary_are_found(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(written("segmentation"), source)
    for window in windows_of(source):
        factories.set_label(source, window.parent.name, window.name, 2)
        for path in rasters(window):
            rewrite(path, constant(0, 7))  # B01, stored first
    quality = pipeline.ingest(make_job(source, tmp_path / "root"))[-1].value.quality
    findings = {found["code"]: found for found in quality["findings"]}
    band, found = findings["zero_variance"], findings["constant_label"]
    assert (band["count"], band["of"], band["examples"]) == (1, 12, ["B01"])
    assert found["severity"] == "error" and quality["verdict"] == "poor"
    assert found["count"] == found["of"] == 24
    assert len(found["examples"]) == 3


def test_radar_that_was_stored_in_decibels_is_found(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(written("three_modalities"), source)
    for window in windows_of(source):
        for path in rasters(window, "sentinel1*"):
            rewrite(path, lambda power: 10 * np.log10(power))
    quality = pipeline.ingest(
        make_job(source, tmp_path / "root", max_invalid_fraction=1.0, modalities=["sentinel1"])
    )[-1].value.quality
    texts = [f["text"] for f in quality["findings"] if f["code"] == "units"]
    assert any("sentinel1" in text and "decibels" in text for text in texts)
