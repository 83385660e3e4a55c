"""The asset eval_sweep: the rows of the command, a table and pictures on the page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from eval_ingest import cli
from eval_ingest.core.suite import SuiteFields
from eval_ingest.definitions import build_defs
from eval_ingest.settings import Settings
from eval_ingest.sweep.results import read_rows
from eval_ingest_tests.support.fake_evals import write_fake

# Outside of pytest defs/running.py silences it, and says why.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fake_evals")
    write_fake(root, "crops", "segmentation")
    return root


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def materialize(
    root: Path, instance: dg.DagsterInstance, name: str = "crops", **config: Any
) -> dg.ExecuteInProcessResult:
    settings = Settings(eval_root=str(root), cache=str(root.parent / "cache"), workers=2)
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    return job.get_subset(asset_selection={dg.AssetKey("eval_sweep")}).execute_in_process(
        instance=instance,
        partition_key=name,
        run_config={"ops": {"eval_sweep": {"config": config}}},
        raise_on_error=False,
    )


def shown(instance: dg.DagsterInstance) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey("eval_sweep"))
    assert event is not None and event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def rows(out: Path) -> list[dict[str, Any]]:
    """Kept rows, without what differs from run to run."""
    when = {"finished_at", "seconds", "embed_seconds"}
    return [row.model_dump(mode="json", exclude=when) for row in read_rows(out)]


def test_the_asset_gives_the_rows_of_the_command(
    root: Path, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"label_fractions": ["50%", 1], "seeds": [1, 42], "max_train_samples": 40}
    config["out"] = "by_dagster"
    assert materialize(root, instance, **config).success  # `out` is seen from here
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "another_cache"))
    flags = ["--datasets", "crops", "--label-fraction", "0.5", "1.0", "--seeds", "1", "42",
             "--max-train-samples", "40"]  # fmt: skip
    out = ["--out", str(tmp_path / "by_command"), "--no-plots"]
    assert cli.main(["sweep", "--encoder", "pixels", *flags, *out]) == 0
    by_dagster, by_command = rows(tmp_path / "by_dagster"), rows(tmp_path / "by_command")
    assert [row["n_train"] for row in by_dagster] == [30, 30, 40, 40]
    assert by_dagster == by_command


def test_the_page_shows_scores_and_pictures_and_a_second_run_scores_nothing(
    root: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert materialize(root, instance, label_fractions=[0.5, 1.0]).success
    first = shown(instance)
    (row,) = [row for row in rows(tmp_path / "sweep_results") if row["label_fraction"] == 1]
    assert first["new scores"] == 2
    assert f"| {row['test_score']:.4f} |" in first["scores"]
    assert first["pixels miou"] == row["test_score"]
    assert first["pictures"].count("](data:image/png;base64,") == 3
    assert next(iter(first)) == "scores"
    assert materialize(root, instance, label_fractions=[0.5, 1.0]).success
    second = shown(instance)
    assert second["new scores"] == 0
    assert second["scores"] == first["scores"]


def test_an_encoder_that_fails_is_told_first_and_the_others_are_shown(
    root: Path, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from eval_ingest.errors import SweepError\n"
        "class Broken:\n"
        "    name, fingerprint, weights = 'broken', 'x', 'none'\n"
        "    patch_size, normalize, method = 4, 'dataset', 'norm_no_clip_2_std'\n"
        "    def embed(self, batch, dataset):\n"
        "        raise SweepError('no such layer')\n"
        "def make(patch_size, device):\n"
        "    return Broken()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = materialize(root, instance, encoders=["pixels", "mine:make"])
    assert not result.success
    data = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert data.user_failure_data is not None
    told = str(data.user_failure_data.description)
    assert told == "crops: broken: no such layer"
    assert "pixels" in shown(instance)["scores"]


def test_a_dataset_that_is_not_registered_says_what_to_run(
    root: Path, instance: dg.DagsterInstance
) -> None:
    result = materialize(root, instance, "cropz")
    data = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert data.user_failure_data is not None
    assert "did you mean crops?" in str(data.user_failure_data.description)


def test_the_launchpad_describes_every_choice() -> None:
    node = build_defs(Settings(eval_root="/nowhere")).resolve_asset_graph()
    assert dg.AssetKey("eval_sweep") in node.get_all_asset_keys()
    from eval_ingest.defs.sweep import SweepConfig

    wanted = SuiteFields.model_fields.keys() - {"datasets"} | {"device", "out"}
    assert SweepConfig.model_fields.keys() == wanted  # a partition is a dataset
    described = {name for name, field in SweepConfig.model_fields.items() if field.description}
    assert described == set(SweepConfig.model_fields)
    assert json.loads(SweepConfig().model_dump_json())["encoders"] == ["pixels"]
