"""Configuration files: which are read, whose variables they know, and what their texts mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval_ingest.config_files import read_config_files
from eval_ingest.core.plain_yaml import untyped
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import ConfigError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest.settings import Settings
from eval_ingest.sources.open import open_source

BANDS = ["B02", "B03"]
CONFIG = {
    "layers": {
        "sentinel2": {"type": "raster", "band_sets": [{"bands": BANDS, "dtype": "uint16"}]},
        "label": {"type": "vector"},
    }
}  # fmt: skip

MODEL = """\
data:
  class_path: rslearn.train.data_module.RslearnDataModule
  init_args:
    path: /data/d
    inputs:
      sentinel2_l2a:
        data_type: raster
        layers: [sentinel2]
        bands: [B02, B03]
        passthrough: true
      targets: {{data_type: vector, layers: [label], is_target: true}}
    task:
      class_path: rslearn.train.tasks.classification.ClassificationTask
      init_args:
        property_name: {property}
        classes: [a, b]
    train_config:
      groups: [{group}]
      names: [{name}]
      tags: {{{tag}}}
    val_config:
      groups: [other]
"""


def model(group="g", name="n", tag="split: train", property="kind") -> str:
    return MODEL.format(group=group, name=name, tag=tag, property=property)


def put(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_json", ".json").replace("_yaml", ".yaml")).write_text(text)
    return folder


def read(source: Path, config: Path | str | None = None, **settings: Any) -> ConfigFiles:
    spec = DatasetSpec(name="d", source=str(source), config=config and str(config))
    return read_config_files(open_source(str(source)), spec, Settings(**settings))


def resolved(files: ConfigFiles) -> ResolvedConfig:
    return resolve(files, DatasetSpec(name="d", source="s"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return put(tmp_path / "roots" / "d", config_json=json.dumps(CONFIG), model_yaml=model())


# ---------------------------------------------------------------------------------- which files


def test_a_file_of_any_name_is_taken_for_what_it_holds(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "helios_v2.txt"
    other.write_text(model(group="other_group"))
    files = read(source, other)
    assert resolved(files).selectors["train"].groups == ("other_group",)
    run = tmp_path / "studio.txt"
    run.write_text("window_prep: {label_layer: label}\n")
    files = read(source, run)
    assert files.run_yaml == run.read_text() and files.model_yaml == model()


def test_messages_name_the_files_that_were_read(source: Path, tmp_path: Path) -> None:
    mine = put(tmp_path / "mine", fine_yaml=model(property="[]")) / "fine.yaml"
    with pytest.raises(ConfigError) as caught:
        resolved(read(source, mine))
    assert str(caught.value).startswith(f"{mine}: data.init_args.task")
    (source / "config.json").rename(source / "dataset.json")
    put(tmp_path / "mine", fine_yaml=model())
    found = resolved(read(source, mine))
    assert found.provenance["task"].startswith("fine.yaml: data.init_args.task")
    put(source, dataset_json=json.dumps({"layers": {}}))
    with pytest.raises(ConfigError, match=f"^{source}/dataset.json: "):
        resolved(read(source, mine))


def test_a_folder_s_model_yaml_goes_before_that_of_the_source(source: Path, tmp_path: Path) -> None:
    folder = put(tmp_path / "configs", model_yaml=model(group="mine"))
    assert resolved(read(source, folder)).selectors["train"].groups == ("mine",)


@pytest.mark.parametrize("texts", [{}, {"olmoearth_run_yaml": "window_prep: {}"}])
def test_a_folder_without_model_yaml_is_no_silent_use_of_the_source_s_own(
    texts: dict[str, str], source: Path, tmp_path: Path
) -> None:
    folder = put(tmp_path / "configs", **texts)
    with pytest.raises(ConfigError, match=r"holds (no model\.yaml|neither)") as caught:
        read(source, folder)
    assert str(folder) in str(caught.value)


def test_a_folder_with_run_hints_does_where_nobody_has_a_model_yaml(
    source: Path, tmp_path: Path
) -> None:
    (source / "model.yaml").unlink()
    folder = put(tmp_path / "configs", olmoearth_run_yaml="window_prep: {label_layer: label}")
    assert read(source, folder).run_yaml is not None


def test_a_path_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        read(source, tmp_path / "nowhere.yaml")


# ------------------------------------------------------------------------------------ variables

VARIABLES = {"GROUP": "from_here", "MY_API_KEY": "s3cret", "CROP": "32"}


def test_variables_are_filled_in_as_rslearn_does(source: Path, tmp_path: Path) -> None:
    (source / "model.yaml").write_text(model(group="${GROUP}"))
    assert resolved(read(source, variables=VARIABLES)).selectors["train"].groups == ("from_here",)
    given = tmp_path / "m.yaml"
    given.write_text(model(group="${GROUP}_2"))
    files = read(source, given, variables=VARIABLES)
    assert resolved(files).selectors["train"].groups == ("from_here_2",)
    assert files.model_yaml == given.read_text()  # what is kept and published: as it was


def test_a_variable_named_like_a_secret_stays_one(source: Path) -> None:
    (source / "model.yaml").write_text(model(property="x${MY_API_KEY}"))
    config = resolved(read(source, variables=VARIABLES))
    assert config.task.property_name == "x${MY_API_KEY}"


def test_what_was_found_under_a_watched_root_reads_no_variable(source: Path) -> None:
    (source / "model.yaml").write_text(model(property="x${GROUP}"))
    watched = (str(source.parent),)
    config = resolved(read(source, variables=VARIABLES, studio_roots=watched))
    assert config.task.property_name == "x${GROUP}"


def test_a_bucket_s_own_words_read_no_variable(source: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({
        "/d/config.json": json.dumps(CONFIG).encode(),
        "/d/model.yaml": model(property="x${GROUP}").encode(),
    })  # fmt: skip
    try:
        config = resolved(read("memory://d", variables=VARIABLES))  # type: ignore[arg-type]
        assert config.task.property_name == "x${GROUP}"
        own = source / "model.yaml"
        own.write_text(model(property="x${GROUP}"))
        config = resolved(read("memory://d", own, variables=VARIABLES))  # type: ignore[arg-type]
        assert config.task.property_name == "xfrom_here"
    finally:
        memory.rm("/d", recursive=True)


def test_unset_variables_don_t_break_numbers(source: Path) -> None:
    text = model().replace("    val_config:", "    batch_size: ${N}\n    val_config:")
    text = text.replace("      groups: [other]", "      groups: [other]\n      crop_size: ${SIDE}")
    (source / "model.yaml").write_text(text)
    config = resolved(read(source))
    assert config.crop_size is None
    assert any("SIDE" in warning for warning in config.warnings)


# ---------------------------------------------------------------------------------------- texts

SCALARS = [
    "2025-12-10", "2025-12-10T10:00:00", "yes", "No", "on", "Off", "true", "1e3", "1e-3", "1.5",
    "1.e3", ".5", ".inf", ".nan", "017", "0o17", "0x1F", "0b11", "1_000", "+5", "-5", "12:30:45",
    "1:30", '"2025"', "'017'", '"yes"', '"1e3"', '"2025-12-10"', "!!str 5", "plain", "a b", "v1.2",
    "1.2.3", "1e", "e5", "5e", '"a: b"', '"[1"', '"[1, a]"', '"{x}"', '"a:"', "'\"q\"'", '"- x"',
]  # fmt: skip


@pytest.fixture(scope="module")
def parser() -> Any:
    """rslearn's own parser of model.yaml."""
    from eval_ingest_tests.support.oracle import stand_in_for_wandb

    stand_in_for_wandb()
    from rslearn.arg_parser import RslearnArgumentParser
    from rslearn.train.data_module import RslearnDataModule
    from rslearn.utils.jsonargparse import init_jsonargparse

    init_jsonargparse()
    made = RslearnArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(RslearnDataModule, "data", fail_untyped=False)
    return made


def parsed(parser: Any, text: str) -> Any:
    """rslearn's train_config; None if it refuses the text."""
    from jsonargparse import ArgumentError

    try:
        arguments = parser.parse_string(text).data.init_args
    except ArgumentError:
        return None
    return arguments.train_config.init_args


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_group_and_a_name_are_what_jsonargparse_makes_of_them(scalar: str, parser: Any) -> None:
    text = model(group=scalar, name=scalar)
    expected = parsed(parser, text)
    files = ConfigFiles(json.dumps(CONFIG), text)
    if expected is None:
        if scalar in ("-5",):  # refused by rslearn; as a text it can mean one thing only
            assert resolved(files).selectors["train"].groups == (scalar,)
            return
        with pytest.raises(ConfigError, match="write it in quotes"):
            resolved(files)
    else:
        selector = resolved(files).selectors["train"]
        assert list(selector.groups) == expected.groups
        assert list(selector.names) == expected.names


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_tag_selects_what_it_selects_for_rslearn(scalar: str, parser: Any) -> None:
    text = model(tag=f"k: {scalar}", name='"n"')
    value = parsed(parser, text).tags["k"]
    files = ConfigFiles(json.dumps(CONFIG), text)
    if scalar in (".inf", ".nan"):
        with pytest.raises(ConfigError, match="equals no option"):
            resolved(files)
        return
    selector = resolved(files).selectors["train"]
    for option in (value, str(value), "2025", 2025, "yes", True, 15, "017", None, 0, "", [1, "a"]):
        wanted = not (value and option != value)  # rslearn's own rule
        assert selector.selects("g", "n", {"k": option}) is wanted
    assert not selector.selects("g", "n", {})


def test_a_tag_whose_key_is_no_text_is_refused() -> None:
    files = ConfigFiles(json.dumps(CONFIG), model(tag="2025: x"))
    with pytest.raises(ConfigError, match=r"key 2025.*quotes"):
        resolved(files)


def test_texts_of_any_depth_are_harmless() -> None:
    assert untyped("[" * 5000) == "[" * 5000
