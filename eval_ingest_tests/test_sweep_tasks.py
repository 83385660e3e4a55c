"""The registry as downstream tasks of OlmoEarth's trainer."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import cli
from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import sealed_json
from eval_ingest.sweep.tasks import (
    CALLBACK,
    as_overrides,
    as_python,
    left_out_lines,
    patch_size,
    trainer_tasks,
)


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "weka_path": f"/evals/{name}",
        "copy": "windows",
        "task_type": "segmentation",
        "split_stats": {"train": {"count": 80}, "val": {"count": 10}, "test": {"count": 10}},
        "modalities": ["sentinel2_l2a"],
        "same_timesteps": True,
        "window_size": 64,
        "num_timesteps": 12,
        "use_pretrain_norm": True,
        **changes,
    }


def root_of(path: Path, *entries: dict[str, Any]) -> EvalRoot:
    content = {"version": "1.0", "datasets": {known["name"]: known for known in entries}}
    (path / "registry.json").write_bytes(sealed_json(content))
    return EvalRoot(path)


def test_window_classes_go_to_knn_and_everything_else_to_a_linear_probe(tmp_path: Path) -> None:
    kinds = ("classification", "regression", "scalar_regression", "segmentation")
    root = root_of(tmp_path, *(entry(kind, task_type=kind) for kind in kinds))
    modes = {t.fields["dataset"]: t.fields["eval_mode"] for t in trainer_tasks(root).tasks}
    assert modes.pop("classification") == "knn"
    assert modes == dict.fromkeys(kinds[1:], "linear_probe")


def test_too_few_train_windows_for_the_trainers_knn_go_to_a_linear_probe(tmp_path: Path) -> None:
    stats = {"train": {"count": 19}, "val": {"count": 1}, "test": {"count": 0}}
    root = root_of(tmp_path, entry("few", task_type="classification", split_stats=stats))
    (task,) = trainer_tasks(root).tasks
    assert task.fields["eval_mode"] == "linear_probe" and "20 train windows" in task.note


def test_the_patch_size_is_the_nearest_to_4_that_divides_the_window() -> None:
    for size in range(1, 130):
        found = patch_size(size)
        assert size % found == 0 and 1 <= found <= 8
        assert all(size % p for p in range(1, 9) if abs(p - 4) < abs(found - 4))


def test_modalities_are_joined_where_the_trainer_can(tmp_path: Path) -> None:
    both = ["sentinel2_l2a", "sentinel1"]
    root = root_of(
        tmp_path,
        entry("apart", modalities=both, same_timesteps=False),
        entry("joint", modalities=both),
    )
    inputs = {task.name: task.fields["input_modalities"] for task in trainer_tasks(root).tasks}
    assert inputs == {
        "apart_sentinel2_l2a": ["sentinel2_l2a"],
        "apart_sentinel1": ["sentinel1"],
        "joint": both,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"copy": "stream"}, "no rslearn copy; ingest it with --copy windows"),
        ({"num_timesteps": 14}, "14 timesteps, and the trainer makes up dates for 13"),
        ({"name": "m-crops"}, "takes this name for a dataset of its own"),
        ({"name": "mados"}, "takes this name for a dataset of its own"),
        ({"name": "pastis_2"}, "takes this name for a dataset of its own"),
        ({"split_stats": {"train": {"count": 8}, "val": {"count": 0}}}, "val is empty"),
    ],
)
def test_what_the_trainer_cant_read_is_left_out_and_said(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    root = root_of(tmp_path, entry("good"), entry(**{"name": "bad", **changes}))
    found = trainer_tasks(root)
    assert [task.name for task in found.tasks] == ["good"]
    ((name, text),) = found.left_out.items()
    assert name == changes.get("name", "bad") and reason in text
    assert as_python(found).endswith(f"# left out: {name}: {text}")


def test_names_are_such_as_overrides_can_say(tmp_path: Path) -> None:
    names = ("2024", "my-crops", "my_crops")
    root = root_of(tmp_path, *map(entry, names))
    tasks = trainer_tasks(root).tasks
    assert [task.name for task in tasks] == ["eval_2024", "my_crops", "my_crops_2"]
    assert [task.fields["dataset"] for task in tasks] == list(names)


def test_datasets_are_chosen_by_name_and_near_names_are_offered(tmp_path: Path) -> None:
    root = root_of(tmp_path, entry("tolbi_crops"), entry("nandi"))
    assert [task.name for task in trainer_tasks(root, ["nandi", "nandi"]).tasks] == ["nandi"]
    with pytest.raises(UnknownDatasetError, match="did you mean tolbi_crops"):
        trainer_tasks(root, ["tolbi_crop"])


def test_an_empty_registry_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="run eval-ingest ingest"):
        trainer_tasks(EvalRoot(tmp_path))


def test_the_python_is_a_module_with_one_call_per_task(tmp_path: Path) -> None:
    root = root_of(tmp_path, entry("crops"), entry("odd", window_size=25))
    tree = ast.parse(as_python(trainer_tasks(root)))
    assigned = tree.body[-1]
    assert isinstance(assigned, ast.Assign) and isinstance(assigned.value, ast.Dict)
    calls = {k.value: v for k, v in zip(assigned.value.keys, assigned.value.values, strict=True)}  # type: ignore[union-attr]
    odd = {word.arg: ast.unparse(word.value) for word in calls["odd"].keywords}  # type: ignore[attr-defined]
    assert odd["patch_size"] == "5" and odd["eval_mode"] == "EvalMode.LINEAR_PROBE"
    assert odd["embedding_batch_size"] == "128" and odd["epochs"] == "50"
    assert odd["eval_interval"] == "Duration.epochs(10)"
    path = next(node for node in tree.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(path.value.args[0]) == str(root.layout.registry)  # type: ignore[attr-defined]


HOSTILE = 'x\nimport os; os.system("id")\n# \x1b[2J\u202e\U0001f33e\x7f"""\\'


def test_no_name_of_a_record_becomes_code_or_moves_a_terminal(tmp_path: Path) -> None:
    plain = root_of(_made(tmp_path / "plain"), entry("crops"), entry("thin", copy="stream"))
    expected = ast.parse(as_python(trainer_tasks(plain)))
    bands = ["sentinel2_l2a", HOSTILE]
    hostile = root_of(
        _made(tmp_path / 'a"""\nimport os\n\\b\x1b'),
        entry(f"a{HOSTILE}", modalities=bands),
        entry(f"m-{HOSTILE}", note=HOSTILE),
    )
    found = trainer_tasks(hostile)
    text = as_python(found)
    assert text.replace("\n", "").isprintable()
    tree = ast.parse(text)
    assert [type(node) for node in tree.body] == [type(node) for node in expected.body]
    values = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {f"a{HOSTILE}", HOSTILE, str(hostile.layout.registry)} <= values
    lines = list(left_out_lines(found))
    assert all(line.isprintable() for line in lines) and len(lines) == 1
    for asked in ("nothing", "crop"):
        told = str(UnknownDatasetError(asked, ["crops\n", HOSTILE], "the registry"))
        assert told.isprintable() and "crops\\x0a" in told
    (word,) = as_overrides(found)
    assert word.isascii() and word.isprintable()
    key, _, value = shlex.split(word)[0].partition("=")
    assert json.loads(value)["dataset"] == f"a{HOSTILE}"
    assert key.removeprefix(f"{CALLBACK}.tasks.").isidentifier()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("modalities", [["sentinel2_l2a", None], [{"a": 1}], [["b"]], "sentinel1"])
def test_an_entry_whose_modalities_are_no_names_is_left_out(
    modalities: Any, tmp_path: Path
) -> None:
    found = trainer_tasks(root_of(tmp_path, entry("odd", modalities=modalities)))
    assert not found.tasks and "its entry says modalities: " in found.left_out["odd"]


def test_an_override_is_one_shell_word_that_sets_a_whole_task(tmp_path: Path) -> None:
    found = trainer_tasks(root_of(tmp_path, entry("crops")))
    (word,) = shlex.split("\n".join(as_overrides(found)))
    key, _, value = word.partition("=")
    assert key == f"{CALLBACK}.tasks.crops"
    assert json.loads(value) == found.tasks[0].fields


def test_the_command_prints_both_forms_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root_of(tmp_path, entry("crops"), entry("thin", copy="stream"))
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    assert cli.main(["tasks", "--format", "olmoearth"]) == 0
    assert "EVAL_TASKS = {" in capsys.readouterr().out
    assert cli.main(["tasks", "--as", "overrides"]) == 0
    out, err = capsys.readouterr()
    assert out.count(CALLBACK) == 1 and "left out: thin" in err
    assert cli.main(["tasks", "--json", "--datasets", "crops"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tasks"]["crops"]["patch_size"] == 4 and facts["left_out"] == {}
    assert cli.main(["tasks", "--datasets", "crop"]) == 1
    assert "did you mean crops" in capsys.readouterr().err


def test_datasets_of_other_tools_are_in_the_list_and_scored_as_the_catalog_says(
    tmp_path: Path,
) -> None:
    theirs = {
        "name": "burns", "weka_path": "/weka/burns", "task_type": "segmentation",
        "modalities": ["sentinel1", "sentinel1", "sentinel2_l2a"], "window_size": 50,
        "split_stats": {"train": {"count": 9}, "val": {"count": 9}}, "num_timesteps": 8,
    }  # fmt: skip
    root = root_of(tmp_path, entry("ours"), theirs)
    settings = EvalSettings(
        primary_metric="class_f1", primary_metric_class=1, pooling="center", dice_loss=True,
        learning_rates=(0.0001, 0.1), patch_size=5, epochs=20, probe_batch_size=16,
        embedding_batch_size=4, num_workers=2,
        inputs=(("sentinel2_l2a",), ("sentinel1", "sentinel2_l2a")),
    )  # fmt: skip
    known = {"burns": DatasetSpec(name="burns", source="/x", eval=settings)}
    found = {task.name: task.fields for task in trainer_tasks(root, (), known).tasks}
    assert set(found) == {"burns", "burns_s1_s2", "ours"}
    wanted = {
        "input_modalities": ["sentinel2_l2a"], "patch_size": 5, "probe_lr": 0.0001, "epochs": 20,
        "primary_metric": "class_f1", "primary_metric_class": 1, "use_center_token": True,
        "use_dice_loss": True, "pooling_type": "mean", "embedding_batch_size": 4,
        "probe_batch_size": 16, "num_workers": 2, "eval_mode": "linear_probe",
    }  # fmt: skip
    assert wanted.items() <= found["burns"].items()
    assert found["burns_s1_s2"]["input_modalities"] == ["sentinel1", "sentinel2_l2a"]
    without = {task.name: task.fields for task in trainer_tasks(root).tasks}
    assert without["burns"]["input_modalities"] == ["sentinel1", "sentinel2_l2a"]
    assert without["burns"]["patch_size"] == 5 and "primary_metric" not in without["burns"]


def test_settings_of_a_spec_come_before_those_of_the_catalog(tmp_path: Path) -> None:
    root = root_of(tmp_path, entry("crops", eval={"learning_rates": [0.3]}))
    known = {"crops": DatasetSpec(name="crops", source="/x", eval=EvalSettings(epochs=3))}
    (task,) = trainer_tasks(root, (), known).tasks
    assert task.fields["probe_lr"] == 0.3 and task.fields["epochs"] == 50
