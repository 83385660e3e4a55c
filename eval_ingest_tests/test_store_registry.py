"""registry.json and folders that other tools have written: nothing of theirs is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_ingest import cli, pipeline
from eval_ingest.adopting import adopt
from eval_ingest.core.adoption import corrections, differences
from eval_ingest.core.registry_text import Entry, RegistryText, extended
from eval_ingest.errors import (
    IntegrityError,
    InvalidWindowsError,
    NotOursError,
    SpecError,
    UnknownDatasetError,
)
from eval_ingest.report.terminal import entry_lines, list_lines
from eval_ingest.settings import Settings
from eval_ingest.store import registry_file
from eval_ingest.store.claims import their_counts
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import read_registry, rebuild_registry, remove_dataset
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.sweep.tasks import _unreadable
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import faults
from eval_ingest_tests.support.fake_evals import write_fake

ODD = """{
 "datasets": {"zeta": {"b": 1e-05, "a": 1.0,   "n": NaN, "t": "\\u00e9\\ud83d\\ude00"},
\t"alpha":{"norm_stats":{},"big":123456789012345678901234567890, "x": 0.10}, "list": [1,
 2], "nothing": null},
  "updated_at": "2026-07-04T06:07:35.030913", "mine": {"k": [1.50]}, "version": "1.0"}"""
RAW = {
    "zeta": '{"b": 1e-05, "a": 1.0,   "n": NaN, "t": "\\u00e9\\ud83d\\ude00"}',
    "alpha": '{"norm_stats":{},"big":123456789012345678901234567890, "x": 0.10}',
    "list": "[1,\n 2]",
    "nothing": "null",
}


def theirs(root: Path, name: str = "yemen_crop") -> Path:
    """A folder as the existing tool leaves it."""
    folder = root / name
    for path in ("config.json", "model.yaml", "windows/g/w/metadata.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_entries_of_others_keep_every_byte_and_their_order(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text(ODD)
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    entries = rebuild_registry(EvalRoot(tmp_path))
    assert list(entries) == [*RAW, "crops"]
    text = RegistryText.parse(path.read_text())
    assert {name: raw for name, raw in text.raw.items() if name in RAW} == RAW
    assert [e.name for e in text.fields] == ["updated_at", "mine", "version"]
    assert dict(text.fields[1].value) == {"k": [1.5]} and text.fields[1].raw == '{"k": [1.50]}'
    before = path.read_bytes()
    rebuild_registry(EvalRoot(tmp_path))
    assert path.read_bytes() == before  # nothing was to be done
    remove_dataset(EvalRoot(tmp_path), "crops")
    assert RegistryText.parse(path.read_text()).raw == RAW
    assert set(read_registry(EvalRoot(tmp_path))) == {"zeta", "alpha"}


def test_the_first_write_keeps_a_dated_copy_and_a_file_of_others_alone_is_not_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "registry.json"
    path.write_text(ODD)
    rebuild_registry(EvalRoot(tmp_path))
    assert path.read_text() == ODD and len(list(tmp_path.glob("registry.*.json"))) == 0
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    write_fake(tmp_path, "more", "segmentation", counts=(4, 2, 2))
    rebuild_registry(EvalRoot(tmp_path))
    (copy,) = tmp_path.glob("registry.*.json")
    assert copy.read_text() == ODD


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), json_values, max_size=4),
    st.sampled_from([None, 0, 1, 3]),
    st.booleans(),
)
def test_any_registry_comes_back_as_it_was(
    datasets: dict[str, Any], indent: int, escape: bool
) -> None:
    text = json.dumps({"datasets": datasets, "version": "1.0"}, indent=indent, ensure_ascii=escape)
    found = RegistryText.parse(text)
    again = RegistryText.parse(found.text())
    assert again == found
    assert [e.name for e in found.entries] == list(datasets)
    assert all(e.raw in text for e in found.entries)


@pytest.mark.usefixtures("nobody_else_writes")
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"datasets": []}', ODD[:-1], ODD + "x", "{,}"])
def test_what_is_no_registry_is_told_as_such(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        RegistryText.parse(text)
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(IntegrityError, match="registry rebuild"):
        read_registry(EvalRoot(tmp_path))


@pytest.mark.usefixtures("nobody_else_writes")
def test_of_a_file_that_was_cut_off_the_whole_entries_and_those_of_the_copy_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "registry.json"
    path.write_text(ODD)
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    rebuild_registry(EvalRoot(tmp_path))
    path.write_text('{"datasets": {"new": {"x": 1e-05}, "zeta": {"b": 1e-0')
    rebuild_registry(EvalRoot(tmp_path))
    raw = RegistryText.parse(path.read_text()).raw
    assert {"new": '{"x": 1e-05}', **RAW}.items() <= raw.items() and "crops" in raw


def test_an_entry_takes_more_keys_and_keeps_its_own() -> None:
    raw = extended('{"a": 1e-05, "b": [1,2], "c": NaN}', {"c": 5, "d": {"e": 1}})
    entry = Entry("x", '"x"', raw)
    assert entry.value == {"a": 1e-05, "b": [1, 2], "c": 5, "d": {"e": 1}}
    assert '"a": 1e-05' in raw and '"b": [1,2]' in raw


_THEIR_TOOL = """
import json, sys, time
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for k in range(first, first + count):
    while True:  # it reads what it writes to, and fails on a file that another is writing
        try:
            with open(path) as f: data = json.load(f)
            break
        except (ValueError, FileNotFoundError): time.sleep(0.001)
    data["datasets"][f"theirs_{k}"] = {"name": f"theirs_{k}", "x": 1e-05, "pad": "y" * 20000}
    data = {key: data[key] for key in ("version", "updated_at", "datasets")}
    with open(path, "w") as f: json.dump(data, f, indent=2)
    time.sleep(0.002)
"""


def test_two_tools_that_write_at_once_lose_no_entry(tmp_path: Path) -> None:
    """Theirs as it is: json.dump into the open file, without a lock."""
    path = tmp_path / "registry.json"
    path.write_text(ODD)
    write_fake(tmp_path, "crop_0", "segmentation", counts=(4, 2, 2))
    tool = subprocess.Popen([sys.executable, "-c", _THEIR_TOOL, str(path), "0", "120"])
    count = 1
    while tool.poll() is None:
        name = f"crop_{count % 8}"  # comes and goes
        if (tmp_path / name).exists():
            remove_dataset(EvalRoot(tmp_path), name)
        else:
            write_fake(tmp_path, name, "segmentation", counts=(4, 2, 2), version=f"v{count}")
            rebuild_registry(EvalRoot(tmp_path))
        count += 1
    assert tool.returncode == 0
    entries = rebuild_registry(EvalRoot(tmp_path))
    ours = {p.parent.name for p in tmp_path.glob("*/metadata.json")}
    wanted = {*RAW, *(f"theirs_{k}" for k in range(120)), *ours}
    assert set(entries) - wanted <= {f"crop_{k}" for k in range(8)}  # they wrote it back
    assert wanted <= set(entries)
    assert RegistryText.parse(path.read_text()).raw["theirs_7"].count("1e-05") == 1
    assert not list(tmp_path.glob(".registry.json.*.old"))


def test_who_stands_still_while_writing_loses_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their file is emptied when it is opened; nobody waits for ever for what comes then."""
    monkeypatch.setattr(registry_file, "WRITING_S", 0.05)
    path = tmp_path / "registry.json"
    path.write_text(ODD)
    whole = ODD[:1] + ODD[1:].replace('"zeta"', '"new": {"x": 1e-05}, "zeta"', 1)
    with open(path, "w") as stream:
        write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
        rebuild_registry(EvalRoot(tmp_path))
        stream.write(whole[:60])
        stream.flush()
        rebuild_registry(EvalRoot(tmp_path))
        stream.write(whole[60:])
    rebuild_registry(EvalRoot(tmp_path))
    raw = RegistryText.parse(path.read_text()).raw
    assert {"new": '{"x": 1e-05}', **RAW}.items() <= raw.items() and "crops" in raw
    assert not list(tmp_path.glob(".registry.json.*.old"))


# -------------------------------------------------------------------------------------- folders


def test_a_folder_of_others_is_neither_written_nor_removed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    folder = theirs(root)
    (root / "registry.json").write_text(
        json.dumps(
            {"datasets": {"yemen_crop": {"weka_path": "/weka/y", "task_type": "segmentation"}}}
        )
    )
    before = files(root)
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    for flags in ([], ["--overwrite"], ["--dry-run"], ["--copy", "stream"]):
        assert cli.main(["ingest", "--name", "yemen_crop", "--source", str(small), *flags]) == 1
        told = capsys.readouterr().err
        assert "another --name" in told and "eval-ingest adopt yemen_crop" in told
    for command in (["remove", "--yes"], ["verify"], ["report"]):
        assert cli.main([command[0], "--name", "yemen_crop", *command[1:]]) == 1
        assert "another tool" in capsys.readouterr().err
    assert cli.main(["info", "--name", "yemen_crop"]) == 0
    assert "registered by another tool" in capsys.readouterr().out
    assert cli.main(["list"]) == 0
    assert "not ours" in capsys.readouterr().out
    with pytest.raises(NotOursError, match="another tool"):
        remove_dataset(EvalRoot(root), "yemen_crop")
    now = {name: data for name, data in files(root).items() if not name.endswith(".lock")}
    assert now == before and files(folder)


def test_a_name_that_others_have_registered_elsewhere_is_taken(small: Path, tmp_path: Path) -> None:
    entry = {"weka_path": "/weka/elsewhere/crops", "task_type": "segmentation"}
    (tmp_path / "registry.json").write_text(json.dumps({"datasets": {"crops": entry}}))
    with pytest.raises(NotOursError, match="/weka/elsewhere/crops"):
        make_job(small, tmp_path)
    assert not (tmp_path / "crops").exists()


@pytest.mark.parametrize(
    "value",
    [17, None, {}, [], "crops", {"split_stats": [], "x": 1}, {"weka_path": "/" + "a" * 5000}],
)
def test_a_name_is_taken_whatever_its_entry_says(value: Any, small: Path, tmp_path: Path) -> None:
    text = json.dumps({"datasets": {"crops": value}})
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(NotOursError, match="crops: the name is registered by another tool"):
        make_job(small, tmp_path)
    with pytest.raises((NotOursError, UnknownDatasetError), match="adopt"):
        adopt(Settings(eval_root=str(tmp_path)), "crops")
    assert (tmp_path / "registry.json").read_text() == text and not (tmp_path / "crops").exists()


def test_what_others_registered_under_our_name_since_stays_when_ours_is_removed(
    tmp_path: Path,
) -> None:
    root, raw = EvalRoot(tmp_path), '{"weka_path": "/weka/elsewhere/crops", "x": 1e-05}'
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    rebuild_registry(root)
    (tmp_path / "registry.json").write_text('{"datasets": {"crops": ' + raw + "}}")
    remove_dataset(root, "crops")
    assert not (tmp_path / "crops").exists()
    assert RegistryText.parse((tmp_path / "registry.json").read_text()).raw == {"crops": raw}


FIELDS = (
    "task_type", "num_classes", "classes", "modalities", "imputes", "norm_stats", "split_stats",
    "window_size", "num_timesteps", "timeseries", "weka_path", "split_tag_key", "eval",
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values)
    | st.fixed_dictionaries(
        {
            "split_stats": st.dictionaries(st.sampled_from(["train", "val"]), json_values),
            "norm_stats": st.dictionaries(st.sampled_from(["sentinel2_l2a"]), json_values),
            "imputes": st.lists(json_values),
            "modalities": st.lists(json_values),
        }
    )
)
def test_an_entry_of_others_may_say_anything(fake: Path, entry: dict[str, Any]) -> None:
    ours = read_registry(EvalRoot(fake))["crops"]
    assert all(found.why for found in differences(entry, ours))
    assert list_lines("root", {"theirs": entry}, {}) and entry_lines("theirs", entry)
    assert their_counts(entry)
    assert isinstance(_unreadable("theirs", entry), str)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e400", "9" * 400, "null", '"x"', "[]"])
def test_statistics_that_are_no_numbers_are_told_and_corrected(value: str, fake: Path) -> None:
    ours = read_registry(EvalRoot(fake))["crops"]
    modality, bands = next(iter(ours["norm_stats"].items()))
    band = next(iter(bands))
    raw = json.dumps({"norm_stats": {modality: {**bands, band: {**bands[band], "mean": "HERE"}}}})
    raw = raw.replace('"HERE"', value)[:-1] + ', "split_stats": {"train": {"count": 1, "x": NaN}}}'
    entry = json.loads(raw)
    told = {found.field: found.why for found in differences(entry, ours)}
    assert band in told["norm_stats"]
    found = json.loads(extended(raw, corrections(entry, ours)))
    assert found["norm_stats"][modality][band] == bands[band]
    assert found["split_stats"]["train"]["count"] == 4


def test_a_byte_order_mark_and_windows_line_ends_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_bytes(b"\xef\xbb\xbf" + ODD.replace("\n", "\r\n").encode())
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    rebuild_registry(EvalRoot(tmp_path))
    text = RegistryText.parse(path.read_bytes().decode())
    assert {n: r for n, r in text.raw.items() if n != "crops"} == {
        name: raw.replace("\n", "\r\n") for name, raw in RAW.items()
    }
    assert [e.name for e in text.fields] == ["updated_at", "mine", "version"]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fake")
    write_fake(root, "crops", "segmentation", counts=(4, 2, 2))
    rebuild_registry(EvalRoot(root))
    return root


def test_a_folder_of_somebody_with_a_metadata_json_of_its_own_is_not_ours(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "metadata.json").write_text('{"made": "by hand"}')
    assert whose(EvalRoot(tmp_path).dataset("crops")) is Whose.THEIRS
    with pytest.raises(NotOursError, match="somebody"):
        make_job(small, tmp_path)


def test_what_a_stopped_ingest_left_is_ours_and_an_empty_folder_nobodys(
    small: Path, reference: Path, tmp_path: Path
) -> None:
    store = EvalRoot(tmp_path).dataset("crops")
    store.layout.path.mkdir()
    assert whose(store) is Whose.NOBODYS
    job = make_job(small, tmp_path)
    with pipeline.dataset_lock(job):
        assert whose(store) is Whose.INGESTED  # before anything else is written
    assert whose(EvalRoot(reference).dataset("crops")) is Whose.INGESTED
    for path in (reference / "crops").glob(".ingested*"):
        assert "eval_ingest" in path.read_text()


def test_our_entries_that_their_tool_wrote_again_are_put_back(tmp_path: Path) -> None:
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    before = rebuild_registry(EvalRoot(tmp_path))
    kept = {k: v for k, v in before["crops"].items() if k not in ("fingerprint", "ingested_at")}
    (tmp_path / "registry.json").write_text(json.dumps({"datasets": {"crops": kept}}))
    assert rebuild_registry(EvalRoot(tmp_path)) == before


# ------------------------------------------------------------------------------------- removals


def test_what_a_killed_change_left_of_the_registry_goes_with_the_next(tmp_path: Path) -> None:
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    for name in ("registry.json", "registry.20261128T203724530317Z.json"):
        (tmp_path / f".{name}.ohvzhtih.tmp").write_text("{")
    rebuild_registry(EvalRoot(tmp_path))
    assert list(read_registry(EvalRoot(tmp_path))) == ["crops"] and faults.strays(tmp_path) == []


def test_a_removal_that_was_stopped_is_completed_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = EvalRoot(tmp_path)
    write_fake(tmp_path, "crops", "segmentation", counts=(4, 2, 2))
    write_fake(tmp_path, "more", "segmentation", counts=(4, 2, 2))
    rebuild_registry(root)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DatasetStore, "withdraw", _interrupted)
        remove_dataset(root, "crops")
    assert list(read_registry(root)) == ["crops", "more"]
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    assert cli.main(["list"]) == 0
    assert "more" in capsys.readouterr().out
    assert list(read_registry(root)) == ["more"] and faults.strays(tmp_path) == []
    assert not (tmp_path / "crops").exists()


def _interrupted(self: DatasetStore) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["catalog", "registry", "sweep_results"])
def test_names_that_the_root_uses_are_refused(name: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="used by the eval root"):
        make_job(small, tmp_path / "root", name)


@pytest.mark.parametrize("more", [[], ["--no-register"]], ids=["published", "unpublished"])
def test_a_removed_dataset_under_a_watched_root_stays_removed_until_it_is_asked_for(
    more: list[str],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = tmp_path / "watched"
    shutil.copytree(small, watched / "nice_crops")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "root"))
    monkeypatch.setenv("EVAL_INGEST_STUDIO_ROOTS", str(watched))
    source = str(watched / "nice_crops")
    assert cli.main(["ingest", "--name", "nice_crops", "--source", source, *more]) == 0
    assert cli.main(["remove", "--name", "nice_crops", "--yes"]) == 0
    assert "discover --forget nice_crops" in capsys.readouterr().out
    assert cli.main(["discover"]) == 0
    assert "ignored" in capsys.readouterr().out
    assert cli.main(["discover", "--forget", "nice_crops"]) == 0
    assert " new" in capsys.readouterr().out
    assert cli.main(["discover", "--forget", "nice_crop"]) == 1


def test_a_registered_name_is_not_given_to_another_folder_that_is_found(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, watched = tmp_path / "root", tmp_path / "watched"
    root.mkdir()
    write_fake(root, "crops", "segmentation", counts=(4, 2, 2))
    rebuild_registry(EvalRoot(root))
    shutil.copytree(small, watched / "crops")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    assert cli.main(["discover", "--root", str(watched), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["datasets"]
    assert found["name"] == "watched_crops" and found["state"] == "new"


# ------------------------------------------------------------------------ what is given later


def test_tags_and_dates_given_later_leave_out_windows_in_the_very_next_run(
    small: Path, tmp_path: Path
) -> None:
    def counts(**spec: Any) -> int:
        outcomes = pipeline.ingest(make_job(small, tmp_path, **spec))
        return sum(outcomes[1].value.counts().values())

    assert counts() == 10
    train = counts(tags={"split": "train"})
    assert 0 < train < 10
    assert counts() == 10
    assert counts(temporal_range=("2000-01-01", "2100-12-31")) == 10
    with pytest.raises(InvalidWindowsError, match="no windows were found"):
        counts(temporal_range=("2019-01-01", "2019-12-31"))


def test_another_way_of_copying_leaves_nothing_unregistered(small: Path, tmp_path: Path) -> None:
    for copy in ("stream", "index"):
        root = tmp_path / copy
        pipeline.ingest(make_job(small, root))
        job = make_job(small, root, copy=copy)
        pipeline.forget(job)
        pipeline.ingest(job)
        there = {path.name for path in (root / "crops").iterdir()}
        assert not there & {"windows", "config.json", "model.yaml", ".rslearn_dataset_index"}
        assert read_registry(EvalRoot(root))["crops"]["copy"] == copy


@pytest.mark.parametrize("odd", ["true", "7", '"x"', "[]", "null"])
def test_what_is_no_entry_gives_way_to_that_of_a_published_dataset(
    odd: str, reference: Path, tmp_path: Path
) -> None:
    root = EvalRoot(shutil.copytree(reference, tmp_path / "root"))
    before = read_registry(root)["crops"]
    root.layout.registry.write_text('{"datasets": {"crops": ' + odd + ', "theirs": 7}}')
    assert rebuild_registry(root)["crops"] == {**before, "weka_path": str(root.path / "crops")}
    assert '"theirs": 7' in root.layout.registry.read_text()


def test_an_entry_of_ours_is_only_dropped_where_its_dataset_is_known_to_be_gone(
    reference: Path, tmp_path: Path
) -> None:
    root = EvalRoot(shutil.copytree(reference, tmp_path / "root"))
    ours = read_registry(root)["crops"]
    places = {
        "in_a_bucket": "s3://somewhere/evals/in_a_bucket",
        "not_mounted": "/weka/somewhere/evals/not_mounted",
        "gone": str(tmp_path / "gone"),
    }
    entries = {name: {**ours, "name": name, "weka_path": at} for name, at in places.items()}
    root.layout.registry.write_text(json.dumps({"datasets": entries}))
    assert set(rebuild_registry(root)) == {"crops", "in_a_bucket", "not_mounted"}
    assert rebuild_registry(root)["in_a_bucket"] == entries["in_a_bucket"]
