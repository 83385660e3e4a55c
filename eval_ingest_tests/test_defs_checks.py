"""Asset checks: what they say of planted faults, in stage runs and in the front door alike."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.event_api import PartitionKeyFilter

from eval_ingest.core.entry import Metadata
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import TaskKind
from eval_ingest.definitions import build_defs
from eval_ingest.defs import checks
from eval_ingest.defs.checks import BY_FINDINGS, Result, registry_entry_checks
from eval_ingest.errors import UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import add_spec
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support.indexes import clean, moments, report, window, with_means

# Outside of pytest defs/running.py silences it, and says why.

CROPS = "segmentation"
NAMES = {
    "no_leakage", "every_class_in_every_split", "no_zero_variance_band", "units_plausible",
    "dataset_loads", "tells_models_apart", "verdict",
}  # fmt: skip


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def root(ingested: Callable[[str], Path], tmp_path: Path) -> EvalRoot:
    """An eval root of one's own with a dataset that has samples in every split."""
    shutil.copytree(ingested(CROPS), tmp_path / "evals")
    return EvalRoot(tmp_path / "evals")


@pytest.fixture
def settings(root: EvalRoot, written: Callable[[str], Path]) -> Settings:
    settings = Settings(eval_root=str(root.path), workers=2)
    spec = {"name": CROPS, "source": str(written(CROPS)), "max_invalid_fraction": 0.5}
    add_spec(settings, DatasetSpec.parse(spec, "test"))
    return settings


def logged(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """The last evaluation of each check of the dataset's partition."""
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        list(registry_entry_checks.check_keys), partition_filter=PartitionKeyFilter(key=CROPS)
    )
    return {key.name: e for key, record in found.items() if (e := record.evaluation) is not None}


def front_door(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(CROPS)])


def test_the_run_of_the_stages_checks_the_partition(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    job = build_defs(settings).resolve_job_def("ingest_studio_dataset")
    assert job.execute_in_process(instance=instance, partition_key=CROPS).success
    found = logged(instance)
    assert found.keys() == NAMES
    assert all(evaluation.partition == CROPS for evaluation in found.values())
    assert found["dataset_loads"].passed
    assert found["units_plausible"].passed
    verdict = found["verdict"]  # a few windows are no test set
    assert not verdict.passed and verdict.severity is dg.AssetCheckSeverity.ERROR
    assert (verdict.description or "").startswith("poor: ")


def test_the_front_door_checks_its_own_asset_and_the_partition(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    first = front_door(settings, instance)
    found = {(e.asset_key.path[-1], e.check_name): e for e in first.get_asset_check_evaluations()}
    assert found.keys() == {(asset, name) for asset in (CROPS, "registry_entry") for name in NAMES}
    assert logged(instance).keys() == NAMES
    record = instance.fetch_materializations(dg.AssetKey("registry_entry"), limit=1).records[0]
    assert record.run_id == first.run_id  # what the page takes checks of the same run to be about
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    alone = job.get_subset(asset_check_selection=set(registry_entry_checks.check_keys))
    assert alone.execute_in_process(instance=instance, partition_key=CROPS).success
    by_asset = logged(instance)
    for name in NAMES - {"dataset_loads"}:  # that one tells milliseconds
        for asset in (CROPS, "registry_entry"):
            assert by_asset[name].description == found[asset, name].description
            assert by_asset[name].metadata == found[asset, name].metadata
            assert by_asset[name].passed is found[asset, name].passed


def test_a_run_for_which_no_checks_are_selected_shows_them_all_the_same(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    alone = job.get_subset(asset_selection={dg.AssetKey(CROPS)}, asset_check_selection=set())
    run = alone.execute_in_process(instance=instance)
    assert run.success and not [e for e in run.all_events if e.step_key == f"{CROPS}_checks"]
    found = {(e.asset_key.path[-1], e.check_name) for e in run.get_asset_check_evaluations()}
    assert found == {(asset, name) for asset in (CROPS, "registry_entry") for name in NAMES}


def test_a_check_of_a_datasets_own_asset_runs_alone(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    key = dg.AssetCheckKey(dg.AssetKey(CROPS), "dataset_loads")
    result = job.get_subset(asset_check_selection={key}).execute_in_process(instance=instance)
    assert result.success
    assert {e.check_name for e in result.get_asset_check_evaluations()} == {"dataset_loads"}


def test_a_dataset_that_is_not_registered_says_what_to_run(root: EvalRoot) -> None:
    with pytest.raises(UnknownDatasetError, match="eval-ingest ingest nothing"):
        list(checks.evaluations(root, "nothing", [dg.AssetKey("registry_entry")]))


# --------------------------------------------------------------------------------------- loading


def loads(root: EvalRoot) -> Result:
    return checks.result(root, require_metadata(root, CROPS), "dataset_loads")


def test_what_loads_is_told_with_shapes(root: EvalRoot) -> None:
    result = loads(root)
    assert result.passed
    assert "sentinel2_l2a (16, 16, 3, 12)" in result.metadata["splits"].md_str


def test_a_modality_without_timesteps_in_a_window_loads(ingested: Callable[[str], Path]) -> None:
    root = EvalRoot(ingested("three_modalities"))
    entry = require_metadata(root, "three_modalities")
    assert entry.optional_modalities == ["landsat"]
    result = checks.result(root, entry, "dataset_loads")
    assert result.passed or "is empty" in result.text
    assert "landsat" in result.metadata["splits"].md_str


def test_a_damaged_shard_does_not_load(root: EvalRoot) -> None:
    (pack,) = root.path.glob(f"{CROPS}/samples/*/target.npy")
    pack.write_bytes(pack.read_bytes()[:-64])
    result = loads(root)
    assert not result.passed and result.severity is dg.AssetCheckSeverity.ERROR
    assert "does not load: " in result.text and "target.npy" in result.text


def test_a_split_without_its_index_does_not_load(root: EvalRoot) -> None:
    (index,) = root.path.glob(f"{CROPS}/val/index.*.arrow")
    index.unlink()
    result = loads(root)
    assert not result.passed and result.text.startswith("val does not load: ")


# --------------------------------------------------------------------------------------- findings


def of(reference: Path, quality: dict[str, Any]) -> dict[str, Result]:
    """Outcomes of the checks by findings for a report."""
    entry: Metadata = require_metadata(EvalRoot(reference), "crops")
    entry = entry.model_copy(update={"quality": quality})
    names = [*(check.name for check in BY_FINDINGS), "verdict"]
    return {name: checks.result(EvalRoot(reference), entry, name) for name in names}


def failed(found: dict[str, Result]) -> set[str]:
    return {name for name, result in found.items() if not result.passed}


def test_a_clean_dataset_passes_every_check(reference: Path) -> None:
    assert not failed(of(reference, report(clean())))


def test_leaks_are_errors_with_examples(reference: Path) -> None:
    windows = clean() + [window(f"x{k}", k * 5000.0 + 100, 0, split="test") for k in range(30)]
    found = of(reference, report(windows))
    assert failed(found) == {"no_leakage", "verdict"}
    assert found["no_leakage"].severity is dg.AssetCheckSeverity.ERROR
    assert "overlap a train window" in found["no_leakage"].text
    assert "/x1" in found["no_leakage"].metadata["findings"].md_str


def test_other_units_are_a_warning_that_names_the_cause(reference: Path) -> None:
    found = of(reference, report(with_means(1e-4)))
    assert failed(found) == {"units_plausible", "verdict"}
    assert found["units_plausible"].severity is dg.AssetCheckSeverity.WARN
    assert "multiply by 10,000" in found["units_plausible"].text


def test_a_flat_band_fails_its_check(reference: Path) -> None:
    measured = moments()
    measured[:, 2] = [8192, 0, 0, 0, 0]
    found = of(reference, report(clean(moments=measured)))
    assert "B04 never varies" in found["no_zero_variance_band"].text
    assert "no_zero_variance_band" in failed(found)


def test_an_empty_split_is_said_to_be_empty(reference: Path) -> None:
    root = EvalRoot(reference)
    result = checks.result(root, require_metadata(root, "crops"), "dataset_loads")
    assert (result.passed, result.text) == (False, "val is empty; check splits.ratios")


ONE = {"count": 1, "of": 120, "examples": ["g/w"]}


def test_a_class_that_a_split_lacks_fails_its_check(reference: Path) -> None:
    quality = report(clean())
    finding = {"code": "class_missing", "severity": "warning", "text": "val has no forest"}
    found = of(reference, {**quality, "findings": [{**finding, **ONE}]})
    assert failed(found) == {"every_class_in_every_split"}
    assert found["every_class_in_every_split"].text == "val has no forest"


def test_notes_do_not_fail_a_check(reference: Path) -> None:
    quality = report(clean())
    text = "1 of 120 val windows lie near"
    note = {"code": "leakage_near", "severity": "note", "text": text}
    found = of(reference, {**quality, "findings": [{**note, **ONE}]})
    assert not failed(found)
    assert found["no_leakage"].text == "1 of 120 val windows lie near"


def test_a_dataset_of_before_the_report_says_to_run_again(reference: Path) -> None:
    found = of(reference, {})
    assert failed(found) == {check.name for check in BY_FINDINGS} | {"verdict"}
    assert "materialise it again" in found["verdict"].text


def test_names_of_a_dataset_are_plain_words_on_the_page_and_in_the_log(reference: Path) -> None:
    name = "\x1b[2J![p](http://host/p.png) <img src=x>\nforest"
    finding = {
        "code": "class_missing", "severity": "warning", "count": 1, "of": 2,
        "text": f"val has no {name}", "examples": [f"{name}/w1"],
    }  # fmt: skip
    quality = {**report(clean()), "findings": [finding]}
    quality["verdict"], quality["reasons"] = "poor", [f"no {name}"]
    entry = require_metadata(EvalRoot(reference), "crops")
    with pytest.MonkeyPatch.context() as patch:
        found = entry.model_copy(update={"quality": quality})
        patch.setattr(checks, "require_metadata", lambda *_: found)
        wanted = ("every_class_in_every_split", "verdict")
        own = [dg.AssetKey("crops")]
        result, verdict = checks.evaluations(EvalRoot(reference), "crops", own, wanted)
    for text in (
        result.description or "",
        result.metadata["findings"].value,
        verdict.description or "",
        verdict.metadata["why"].value,
    ):
        assert "forest" in text
        assert not any(live in text for live in ("\x1b", "![p](", "<img", "http://"))
    assert "\n" not in (result.description or "")


def test_a_regression_has_no_classes_to_be_in_every_split(reference: Path) -> None:
    entry = require_metadata(EvalRoot(reference), "crops")
    task = entry.config.task.model_copy(update={"kind": TaskKind.REGRESSION, "classes": ()})
    config = entry.config.model_copy(update={"task": task})
    of_numbers = entry.model_copy(update={"config": config, "quality": report(clean())})
    result = checks.result(EvalRoot(reference), of_numbers, "every_class_in_every_split")
    assert result.passed and result.text == "does not apply: a regression has no classes"
