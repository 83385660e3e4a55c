"""The catalog: the datasets we know, and those that are added without code."""

import json
from pathlib import Path

import pytest

from eval_ingest import api
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.spec import DatasetSpec, SplitPolicy
from eval_ingest.errors import SpecError, StoreError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import (
    add_spec,
    drop_spec,
    find_spec,
    forget_removed,
    note_removed,
    parse_spec,
    read_catalog,
    removed_datasets,
)
from eval_ingest_tests.support.mutation import yaml_bombs

KNOWN = {
    "tolbi_crops": "gs://rslearn-eai/datasets/tolbi",
    "canada_wildfire_test": "gs://rslearn-eai/datasets/wildfire/canada_fire_sat_test",
    "canada_wildfire_full": (
        "/weka/dfive-default/rslearn-eai/datasets/wildfire/canada_fire_sat_full"
    ),
    "yemen_crop": "gs://rslearn-eai/datasets/yemen_crop",
    "geo_ecosystem": "gs://rslearn-eai/datasets/geo_ecosystem",
    "worldcover": "gs://rslearn-eai/datasets/worldcover",
    "forest_loss_driver": (
        "/weka/dfive-default/rslearn-eai/datasets/forest_loss_driver/dataset_v1/combined"
    ),
    "nandi": "gs://rslearn-eai/datasets/nandi",
    "awf": "gs://rslearn-eai/datasets/awf",
    "mozambique": "gs://rslearn-eai/datasets/mozambique",
    "fields_of_the_world": "gs://rslearn-eai/datasets/fields_of_the_world",
    "landslide": "gs://rslearn-eai/datasets/landslide",
    "mangrove": "gs://rslearn-eai/datasets/mangrove",
    "lfmc": "gs://rslearn-eai/datasets/lfmc",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load({"OLMOEARTH_EVAL_DATASETS": str(tmp_path)}, Path("none"))


def test_the_built_in_datasets_and_where_they_are(settings: Settings) -> None:
    catalog = read_catalog(settings)
    found = {name: settings.expand(spec.source) for name, spec in catalog.items()}
    assert KNOWN.items() <= found.items()
    assert catalog["tolbi_crops"].groups == ("20251210",)


def test_a_yaml_in_the_folder_is_a_dataset(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "mine.yaml").write_text("name: mine\nsource: /data/mine\n")
    assert find_spec(settings, "mine").source == "/data/mine"


def test_an_added_spec_comes_back_as_it_was(settings: Settings) -> None:
    spec = DatasetSpec.parse(
        {
            "name": "mine",
            "source": "${STUDIO_ROOT:-x}/mine",
            "groups": [20251210],
            "tags": {"oep_eval": None, "split": "val"},
            "splits": {"strategy": "spatial", "ratios": [70, 20, 10], "block_size_m": 1000},
            "copy": "stream",
        },
        "test",
    )
    add_spec(settings, spec)
    assert find_spec(settings, "mine") == spec


def test_an_added_spec_replaces_a_built_in_one(settings: Settings) -> None:
    add_spec(settings, DatasetSpec(name="nandi", source="/elsewhere"))
    assert find_spec(settings, "nandi").source == "/elsewhere"


def test_an_unknown_name_names_the_near_ones(settings: Settings) -> None:
    with pytest.raises(UnknownDatasetError, match="did you mean landslide"):
        find_spec(settings, "landslides")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\n", "source: Field required"),
        ("name: mine\nsource: x\nsorce: y\n", "unknown field 'sorce'; did you mean source"),
        ("name: mine\nsource: x\nratio: [8, 1, 1]\n", "'ratio'; did you mean splits.ratios?"),
        ("name: mine\nsource: x\nmax_samples: many\n", "integer, .*not 'many'"),
        ("name: [mine\n", "is not valid YAML"),
        ("just text\n", "must hold fields such as name"),
        ("name: other\nsource: x\n", r"name the file other\.yaml"),
        ("name: mine\nsource: x\ncrop_size: -1\n", "crop_size"),
        ("name: Mine!\nsource: x\n", "must match"),
    ],
)
def test_a_wrong_spec_names_file_and_field(
    text: str, message: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "mine.yaml").write_text(text)
    with pytest.raises(SpecError, match=message) as error:
        read_catalog(settings)
    assert "mine.yaml" in str(error.value)


PACKAGE = next(
    Path(__file__).parents[1].glob(".venv-peers/lib/python3*/site-packages/olmoearth_pretrain"),
    None,
)
"""The existing eval code, whose list of evals the catalog follows."""


@pytest.mark.skipif(PACKAGE is None, reason="needs .venv-peers: make peers")
def test_the_registered_evals_are_in_it_with_their_sources_and_tasks(settings: Settings) -> None:
    assert PACKAGE is not None
    text = (PACKAGE / "evals" / "studio_ingest" / "registry.json").read_text()
    entries = json.loads(text)["datasets"]
    catalog = read_catalog(settings)
    assert len(entries) == 29
    for name, entry in entries.items():
        spec = catalog[name]
        assert str(spec.task_type) == entry["task_type"] and spec.display_name
        if name != "yemen_crop":  # registered from a private folder
            assert settings.expand(spec.source) == entry["source_path"].rstrip("/")
        size = entry["window_size"]
        assert spec.eval.patch_size is None or size % spec.eval.patch_size == 0
        assert all(set(inputs) <= set(entry["modalities"]) for inputs in spec.eval.inputs)


def test_an_entry_says_how_it_is_scored(settings: Settings, tmp_path: Path) -> None:
    given = {
        "primary_metric": "class_f1", "primary_metric_class": 1, "dice_loss": True,
        "learning_rates": [0.1, 0.01], "pooling": "center", "inputs": [["sentinel1"]],
    }  # fmt: skip
    spec = DatasetSpec.parse({"name": "mine", "source": "/data", "eval": given}, "test")
    add_spec(settings, spec)
    assert find_spec(settings, "mine").eval == spec.eval
    for wrong, message in (
        ({"primary_metric": "class_f1"}, "go together"),
        ({"probe": "knn", "learning_rates": [0.1]}, "linear probe"),
        ({"primary_metric": "iou"}, "primary_metric"),
        ({"learnig_rates": [0.1]}, "learning_rates"),
        ({"learning_rates": [0]}, "learning_rates"),
    ):
        with pytest.raises(SpecError, match=message):
            DatasetSpec.parse({"name": "mine", "source": "/data", "eval": wrong}, "test")


def test_sources_are_kept_as_absolute_paths(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, kept in (
        ("data/crops", str(tmp_path / "data" / "crops")),
        ("~/crops", str(Path("~/crops").expanduser())),
        ("gs://bucket/crops", "gs://bucket/crops"),
        ("${STUDIO_ROOT:-x}/crops", "${STUDIO_ROOT:-x}/crops"),
    ):
        add_spec(settings, DatasetSpec(name="mine", source=given))
        assert find_spec(settings, "mine").source == kept


def test_a_removed_dataset_is_remembered_until_it_is_asked_for(settings: Settings) -> None:
    spec = DatasetSpec(name="mine", source="/data/mine")
    add_spec(settings, spec)
    assert note_removed(settings, "mine", "/data/mine")
    drop_spec(settings, "mine")
    assert "mine" not in read_catalog(settings)
    assert removed_datasets(settings)["mine"].source == "/data/mine"
    add_spec(settings, spec)
    assert removed_datasets(settings) == {} and "mine" in read_catalog(settings)
    note_removed(settings, "mine", "/data/mine")
    assert forget_removed(settings, "mine") and not forget_removed(settings, "mine")


ODD = (1.5, -1, 10**400, float("nan"), True, None, "", "x" * 10_000, "\ud800", [], [1.5], [[]],
       [None], {}, {"x": 1}, {1: []}, {None: None}, {"x": {"y": []}}, b"x", object())  # fmt: skip


@pytest.mark.parametrize("field", sorted({*DatasetSpec.model_fields, "copy"}))
def test_any_value_of_any_field_is_a_spec_or_a_message(field: str) -> None:
    inner = {"splits": SplitPolicy, "eval": EvalSettings}.get(field)
    values = [*ODD, *({key: odd} for key in (inner.model_fields if inner else ()) for odd in ODD)]
    for value in values:
        try:
            DatasetSpec.parse({"name": "a", "source": "b", field: value}, "test")
        except SpecError as error:
            assert field in str(error)


@pytest.mark.parametrize("bomb", yaml_bombs())
def test_a_spec_that_is_small_to_write_and_endless_to_show_is_refused(bomb: str) -> None:
    with pytest.raises(SpecError) as told:
        parse_spec(yaml_bombs()[bomb], "bomb.yaml")
    assert len(str(told.value)) < 500
    if bomb in ("billion laughs", "itself"):
        assert "aliases repeat more than 1,000,000 values, or themselves" in str(told.value)


def test_a_value_of_a_spec_is_shown_in_short() -> None:
    endless: list[object] = ["x"]
    for _ in range(60):
        endless = [endless] * 9
    with pytest.raises(SpecError) as told:
        DatasetSpec.parse({"name": "a", "source": endless, "classes": "y" * 1000}, "spec")
    assert len(str(told.value)) < 500


def test_what_is_wrong_with_another_spec_keeps_nobody_from_ingesting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_INGEST_CATALOG", str(tmp_path))
    (tmp_path / "bad.yaml").write_text("name: [a\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: /data/mine\n")
    settings = Settings.load()
    assert api.spec_of(settings, "mine", {}).source == "/data/mine"
    assert api.spec_of(settings, "new", {"source": "/data/new"}).source == "/data/new"
    with pytest.raises(SpecError, match=r"bad\.yaml is not valid YAML"):
        api.spec_of(settings, "bad", {"source": "/data/bad"})
    with pytest.raises(UnknownDatasetError, match="no dataset 'mime'"):
        api.spec_of(settings, "mime", {})
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVAL_INGEST_CATALOG", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="Not a directory"):
        api.spec_of(Settings.load(), "new", {"source": "/data/new"})
