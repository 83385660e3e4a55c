"""The five stages on real rslearn datasets: what they write, when they run, how they fail."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from eval_ingest import EvalDataset, pipeline
from eval_ingest.copying.verify import verify
from eval_ingest.decoding import judge as window_module
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.engine import no_progress
from eval_ingest.errors import (
    ConfigError,
    InvalidWindowsError,
    LockedError,
    NotIngestedError,
    SourceNotFoundError,
    SpecError,
    StoreError,
)
from eval_ingest.job import open_job
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import locked, read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.changing import windows_of

Copied = Callable[[str], Path]


def ran(outcomes: list[pipeline.Outcome]) -> list[str]:
    return [outcome.stage for outcome in outcomes if outcome.ran]


@pytest.fixture
def pixels_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how many rasters are decoded."""
    calls: list[int] = []
    decode = window_module.decode_geotiff

    def counted(data: bytes, *rest: Any) -> Any:
        calls.append(len(data))
        return decode(data, *rest)

    monkeypatch.setattr(window_module, "decode_geotiff", counted)
    return calls


def test_the_first_run_does_everything_and_the_second_nothing(
    copied: Copied, tmp_path: Path, pixels_read: list[int]
) -> None:
    source = copied("segmentation")
    assert ran(pipeline.ingest(make_job(source, tmp_path / "root"))) == list(pipeline.STAGES)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "root").rglob("*") if p.is_file()}
    pixels_read.clear()
    assert ran(pipeline.ingest(make_job(source, tmp_path / "root"))) == []
    assert pixels_read == []
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_everything_is_readable_without_us(ingested: Callable[[str], Path]) -> None:
    folder = ingested("segmentation") / "segmentation"
    index = pq.read_table(folder / "window_index.parquet")
    assert {"group", "name", "bounds", "geometry", "status", "problems"} <= set(index.column_names)
    assert json.loads(pq.read_schema(folder / "window_index.parquet").metadata[b"geo"])
    splits = pq.read_table(folder / "split_assignment.parquet")
    assert set(splits["split"].to_pylist()) == {"train", "val", "test"}
    stats = json.loads((folder / "norm_stats.json").read_text())["stats"]
    assert set(stats["sentinel2_l2a"]["B02"]) == {"mean", "std", "min", "max"}
    metadata = json.loads((folder / "metadata.json").read_text())
    for split, found in metadata["splits"].items():
        rows = feather.read_table(folder / found["index"])
        assert rows.num_rows == found["count"] == splits["split"].to_pylist().count(split)
    shard = folder / "samples" / metadata["shards"][0]["name"]
    assert np.load(shard / "sentinel2_l2a.npy", mmap_mode="r").ndim == 5


def test_the_registry_is_what_the_existing_eval_code_reads(
    ingested: Callable[[str], Path],
) -> None:
    root = ingested("segmentation")
    registry = json.loads((root / "registry.json").read_text())
    assert registry["version"] == "1.0"
    entry = registry["datasets"]["segmentation"]
    assert entry["weka_path"] == str(root / "segmentation")
    assert entry["task_type"] == "segmentation"
    assert entry["split_tag_key"] == "eval_split"
    assert set(entry["split_stats"]) == {"train", "val", "test"}
    assert entry["modalities"] == ["sentinel2_l2a"]
    assert len(entry["classes"]) == entry["num_classes"]


def test_norm_stats_are_those_of_all_train_pixels(ingested: Callable[[str], Path]) -> None:
    root = ingested("vector_classification")
    train = EvalDataset("vector_classification", "train", root=root, normalize=None, crop=None)
    for modality in train.metadata.config.modalities:
        pixels = np.concatenate([s[modality.name].reshape(-1, len(modality.bands)) for s in train])
        pixels = pixels.astype(np.float64)
        if modality.decibels:
            pixels = 10 * np.log10(np.where(pixels > 0, pixels, np.nan))
        for c, band in enumerate(modality.bands):
            found = train.metadata.norm_stats[modality.name][band]
            assert found["mean"] == pytest.approx(np.nanmean(pixels[:, c]), rel=1e-5)
            assert found["std"] == pytest.approx(np.nanstd(pixels[:, c]), rel=1e-4)
            assert found["min"] == pytest.approx(np.nanmin(pixels[:, c]), rel=1e-5)


def test_every_copied_window_says_its_split(ingested: Callable[[str], Path]) -> None:
    folder = ingested("segmentation") / "segmentation"
    table = pq.read_table(folder / "split_assignment.parquet").to_pylist()
    for row in table:
        metadata = folder / "windows" / row["group"] / row["name"] / "metadata.json"
        assert json.loads(metadata.read_text())["options"]["eval_split"] == row["split"]


def test_another_split_policy_reads_no_pixel(
    copied: Copied, tmp_path: Path, pixels_read: list[int]
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    shards = sorted((root / "crops" / "samples").iterdir())
    pixels_read.clear()
    policy = {"strategy": "random", "ratios": [50, 25, 25]}
    outcomes = pipeline.ingest(make_job(source, root, splits=policy))
    assert ran(outcomes) == list(pipeline.STAGES[1:])
    assert pixels_read == []
    assert sorted((root / "crops" / "samples").iterdir()) == shards
    splits = [EvalDataset("crops", s, root=root) for s in ("train", "val", "test")]
    seen = [dataset.window(i) for dataset in splits for i in range(len(dataset))]
    assert len(seen) == len(set(seen)) == len(windows_of(source))
    for dataset in splits:
        for i in range(len(dataset)):
            metadata = json.loads(
                (root / "crops" / "windows" / dataset.window(i) / "metadata.json").read_text()
            )
            assert metadata["options"]["eval_split"] == dataset.split


def test_a_new_window_costs_one_window(
    copied: Copied, tmp_path: Path, pixels_read: list[int]
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    aside = tmp_path / "aside"
    shutil.move(windows_of(source)[3], aside)
    pipeline.ingest(make_job(source, root))
    shutil.move(aside, windows_of(source)[0].parent / "new_window")
    pixels_read.clear()
    pipeline.ingest(make_job(source, root))
    assert len(pixels_read) == 3 + 1  # three timesteps and the label, each once
    total = sum(len(EvalDataset("crops", s, root=root)) for s in ("train", "val", "test"))
    assert total == len(windows_of(source))


def test_an_edited_window_is_noticed(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    path = windows_of(source)[0] / "metadata.json"
    content = json.loads(path.read_text())
    content["options"]["note"] = "edited"
    path.write_text(json.dumps(content))
    assert "window_index" in ran(pipeline.ingest(make_job(source, root)))
    rows = pq.read_table(root / "crops" / "window_index.parquet")["options"].to_pylist()
    assert sum("edited" in row for row in rows) == 1


def test_a_window_that_is_gone_leaves_the_copy(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    gone = windows_of(source)[0]
    shutil.rmtree(gone)
    pipeline.ingest(make_job(source, root))
    assert not (root / "crops" / "windows" / gone.parent.name / gone.name).exists()
    assert len(windows_of(root / "crops")) == len(windows_of(source))


def test_broken_windows_are_kept_counted_and_left_out(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    broken = windows_of(source)[:5]
    (broken[0] / "metadata.json").unlink()
    raster = next((broken[1] / "layers" / "sentinel2").rglob("geotiff.tif"))
    raster.write_bytes(raster.read_bytes()[:300])
    (broken[2] / "layers" / "label_raster" / "completed").unlink()
    metadata = json.loads((broken[3] / "metadata.json").read_text())
    metadata["bounds"][2] = metadata["bounds"][0]
    (broken[3] / "metadata.json").write_text(json.dumps(metadata))
    (broken[4] / "metadata.json").write_text("{not json")
    pipeline.ingest(make_job(source, root, max_invalid_fraction=0.9))
    index = read_outcome(EvalRoot(root).dataset("crops"), "window_index")
    assert index.summary.reasons == {
        "metadata_missing": 1,
        "raster_unreadable": 1,
        "layer_not_completed": 1,
        "bounds_invalid": 1,
        "metadata_unreadable": 1,
    }
    names = {path.name for path in broken}
    for split in ("train", "val", "test"):
        dataset = EvalDataset("crops", split, root=root)
        assert not names & {dataset.window(i).split("/")[1] for i in range(len(dataset))}


def test_too_many_invalid_windows_stop_the_ingest(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    for window in windows_of(source)[:4]:
        (window / "layers" / "label_raster" / "completed").unlink()
    with pytest.raises(InvalidWindowsError) as error:
        pipeline.ingest(make_job(source, root))
    text = str(error.value)
    assert "4 of" in text and "layer_not_completed" in text and "max_invalid_fraction" in text
    assert not (root / "crops" / "metadata.json").exists()
    assert not (root / "registry.json").exists()


def test_an_input_that_is_nowhere_but_nodata_makes_a_window_invalid(
    copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    names = [path.name for path in windows_of(source)]
    for layer in ("sentinel2", "sentinel2.1", "sentinel2.2"):
        fill_with_nodata(source, names[0], layer)
    for layer in ("sentinel2", "sentinel2.2"):
        fill_with_nodata(source, names[1], layer)
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {"input_nodata": 1}
    [example] = index.summary.examples["input_nodata"]
    assert example.endswith(f"{names[0]}: sentinel2_l2a is its nodata value everywhere")


def fill_with_nodata(dataset: Path, window: str, layer: str, nodata: int = 9999) -> None:
    import rasterio

    [path] = dataset.glob(f"windows/*/{window}/layers/{layer}/*/geotiff.tif")
    with rasterio.open(path) as raster:
        pixels, profile = raster.read(), raster.profile
    with rasterio.open(path, "w", **{**profile, "nodata": nodata}) as raster:
        raster.write(np.full_like(pixels, nodata))


def test_nan_in_a_label_of_classes_is_told_as_such(copied: Copied, tmp_path: Path) -> None:
    import rasterio

    source = copied("class_mapping")
    config = json.loads((source / "config.json").read_text())
    config["layers"]["label_raster"]["band_sets"][0]["dtype"] = "float32"
    (source / "config.json").write_text(json.dumps(config))
    for path in sorted(source.glob("windows/*/*/layers/label_raster/*/geotiff.tif")):
        with rasterio.open(path) as raster:
            label, profile = raster.read().astype(np.float32), raster.profile
        label[0, 0, 0] = np.nan if "window_0003" in str(path) else label[0, 0, 0]
        with rasterio.open(path, "w", **{**profile, "dtype": "float32"}) as raster:
            raster.write(label)
    index = pipeline.ingest(make_job(source, tmp_path / "root"))[0].value
    assert index.summary.reasons == {"label_out_of_range": 1}
    assert "window_0003: NaN" in index.summary.examples["label_out_of_range"][0]


def test_forgetting_drops_the_judgement_of_a_run_that_found_too_much_amiss(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    job = make_job(source, root)
    monkeypatch.setattr(window_module, "decode_geotiff", _undecodable)
    with pytest.raises(InvalidWindowsError, match="raster_unreadable"):
        pipeline.ingest(job)
    monkeypatch.undo()  # as after the installation is mended: no file of the source has changed
    pipeline.forget(job)
    assert ran(pipeline.ingest(job)) == list(pipeline.STAGES)


def _undecodable(*_: object) -> None:
    raise Unreadable("raster_unreadable", "no codec")


def test_an_old_version_stays_readable_while_a_new_one_is_made(
    copied: Copied, tmp_path: Path
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    old = EvalDataset("crops", "train", root=root, normalize=None)
    expected = [old[i]["sentinel2_l2a"].clone() for i in range(len(old))]
    lazy = EvalDataset("crops", "train", root=root, normalize=None)  # has opened no map yet
    job = make_job(source, root, splits={"strategy": "random", "seed": 5})
    pipeline.forget(job)
    pipeline.ingest(job)
    assert all((a == b["sentinel2_l2a"]).all() for a, b in zip(expected, lazy, strict=True))


def test_a_stopped_ingest_goes_on(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels_read: list[int]
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    monkeypatch.setattr("eval_ingest.pipeline.transfer", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.ingest(make_job(source, root))
    monkeypatch.undo()
    assert not (root / "registry.json").exists()
    outcomes = pipeline.ingest(make_job(source, root))
    assert ran(outcomes) == ["weka_copy", "registry_entry"]
    store = EvalRoot(root).dataset("crops")
    metadata = read_outcome(store, "registry_entry")
    assert verify(store, metadata, no_progress).problems == []


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_verify_finds_a_changed_byte(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    store = EvalRoot(root).dataset("crops")
    metadata = read_outcome(store, "registry_entry")
    assert verify(store, metadata, no_progress).problems == []
    raster = next(store.layout.windows.rglob("geotiff.tif"))
    data = bytearray(raster.read_bytes())
    data[-1] ^= 1
    raster.write_bytes(data)
    (problem,) = verify(store, metadata, no_progress).problems
    assert raster.relative_to(store.layout.path).parts[2] in problem


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_engines_give_the_same_bytes(
    engine: str, written: Callable[[str], Path], ingested: Callable[[str], Path], tmp_path: Path
) -> None:
    job = make_job(written("ragged_segmentation"), tmp_path, "ragged_segmentation",
                   max_invalid_fraction=0.5)  # fmt: skip
    settings = type(job.settings)(eval_root=str(tmp_path), workers=2, engine=engine)
    job = open_job(job.spec, settings)
    pipeline.ingest(job)
    reference = ingested("ragged_segmentation") / "ragged_segmentation"
    for path in sorted(reference.rglob("*.npy")):
        other = job.layout.path / path.relative_to(reference)
        assert other.read_bytes() == path.read_bytes()


def test_stream_packs_without_copying(written: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline.ingest(make_job(written("segmentation"), tmp_path, copy="stream"))
    assert not (tmp_path / "crops" / "windows").exists()
    assert len(EvalDataset("crops", "train", root=tmp_path)) > 0


def test_groups_and_tags_choose_windows(written: Callable[[str], Path], tmp_path: Path) -> None:
    source = written("segmentation")
    pipeline.ingest(make_job(source, tmp_path, tags={"split": "train"}))
    counts = read_outcome(EvalRoot(tmp_path).dataset("crops"), "split_assignment").counts()
    tagged = [
        path
        for path in windows_of(source)
        if json.loads((path / "metadata.json").read_text())["options"]["split"] == "train"
    ]
    assert sum(counts.values()) == len(tagged)


def test_a_trial_with_few_samples_reads_few_windows(
    copied: Copied, tmp_path: Path, pixels_read: list[int]
) -> None:
    source = copied("segmentation")
    window = windows_of(source)[0]
    for k in range(80):
        shutil.copytree(window, window.parent / f"more_{k}")
    job = make_job(source, tmp_path / "root", max_samples=4)
    assert ran(pipeline.ingest(job)) == list(pipeline.STAGES)
    counts = read_outcome(job.store, "split_assignment").counts()
    assert sum(counts.values()) == 4
    assert len(pixels_read) == 4 * (4 + 64) + 4 * 4  # four rasters a window; read, then packed
    assert ran(pipeline.ingest(make_job(source, tmp_path / "root", max_samples=4))) == []


def test_one_dataset_is_ingested_once_at_a_time(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    job = make_job(written("segmentation"), tmp_path)
    with (
        locked(job.layout.lock, 1, "test"),
        pytest.raises(LockedError, match="another process"),
        pipeline.dataset_lock(job, timeout_s=0.1),
    ):
        pass


# ------------------------------------------------------------------------------- wrong input


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="does not exist; give the folder"):
        make_job(tmp_path / "nowhere", tmp_path / "root")


def test_a_folder_without_config_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        make_job(tmp_path, tmp_path / "root")


def test_broken_yaml_is_told(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    (source / "model.yaml").write_text("data: [unclosed\n")
    with pytest.raises(ConfigError, match=r"model\.yaml"):
        make_job(source, tmp_path / "root")


def test_an_unknown_group_names_those_that_are_there(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="has no group nope; it has"):
        pipeline.ingest(make_job(written("segmentation"), tmp_path, groups=["nope"]))


def test_tags_that_match_nothing_are_told(written: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidWindowsError, match="no windows were found; check groups, tags"):
        pipeline.ingest(make_job(written("segmentation"), tmp_path, tags={"nope": ""}))


def test_a_root_that_is_a_file_is_told(written: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match="set OLMOEARTH_EVAL_DATASETS"):
        pipeline.ingest(make_job(written("segmentation"), tmp_path / "root"))


def test_a_stage_says_which_one_it_needs(written: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(NotIngestedError, match="norm_stats needs window_index, which has not run"):
        pipeline.run_stage(make_job(written("segmentation"), tmp_path), "norm_stats")


def test_many_datasets_in_one_root_lose_no_entry(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ingest(k: int) -> None:
        pipeline.ingest(make_job(written("segmentation"), tmp_path, f"crops_{k}", copy="stream"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ingest, range(8)))
    assert sorted(read_registry(EvalRoot(tmp_path))) == [f"crops_{k}" for k in range(8)]


def test_factories_cover_the_task_kinds() -> None:
    assert len(factories.CASES) == 7
