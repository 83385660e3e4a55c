"""The catalog: the datasets we know, and those that are added without code."""

from pathlib import Path

import pytest

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import SpecError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import add_spec, find_spec, read_catalog

KNOWN = {
    "tolbi_crops": "gs://rslearn-eai/datasets/tolbi",
    "canada_wildfire_test": "gs://rslearn-eai/datasets/wildfire/canada_fire_sat_test",
    "canada_wildfire_full": (
        "/weka/dfive-default/rslearn-eai/datasets/wildfire/canada_fire_sat_full"
    ),
    "yemen_crop": "gs://rslearn-eai/datasets/yemen_crop",
    "geo_ecosystem": "gs://rslearn-eai/datasets/geo_ecosystem",
    "worldcover": "gs://rslearn-eai/datasets/worldcover",
    "forest_loss_driver": "gs://rslearn-eai/datasets/forest_loss_driver",
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
    assert {name: settings.expand(spec.source) for name, spec in catalog.items()} == KNOWN
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
