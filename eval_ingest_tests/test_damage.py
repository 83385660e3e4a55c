"""Damaged files of an eval root are found, told with a cure, and repaired, but never believed."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval_ingest import EvalDataset, api, cli, pipeline
from eval_ingest.core.forms import TableForm
from eval_ingest.core.index import INDEX_FORM
from eval_ingest.core.resolved import SPLITS
from eval_ingest.core.splits import SPLITS_FORM
from eval_ingest.errors import IntegrityError, LoadError, StoreError
from eval_ingest.store.index_file import read_index, read_splits
from eval_ingest.store.manifest import MANIFEST_FORM
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import read_metadata, read_opening, read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import (
    UNSEALED,
    sealed_bytes,
    sealed_json,
    write_sealed_json,
)
from eval_ingest.store.split_index import SPLIT_INDEX_FORM
from eval_ingest.store.tables import open_table, read_table, write_table
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import faults, places
from eval_ingest_tests.support.damaging import CURE, Damage, cut, emptied, flip, grown, one
from eval_ingest_tests.support.killing import Run
from eval_ingest_tests.support.places import Place
from eval_ingest_tests.support.sealed import read_sealed_json, saying

place = places.place


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:
    """An eval root with the dataset `crops`, to be damaged."""
    shutil.copytree(reference, tmp_path / "root")
    return tmp_path / "root"


# ------------------------------------------------------------------------------------- noticed


def test_every_byte_of_a_json_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"name": "crops", "crc32:00000000": [1, 2.5, None], "ü": "crc32:12345678"}
    write_sealed_json(path, value)
    assert read_sealed_json(path, CURE) == value
    assert json.loads(path.read_text()).keys() == {*value, "checksum"}
    whole = path.read_bytes()
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        with pytest.raises(IntegrityError, match=CURE):
            read_sealed_json(path, CURE)
        path.write_bytes(whole[:k])
        with pytest.raises(IntegrityError):
            read_sealed_json(path, CURE)


def test_every_byte_of_a_table_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"row": list(range(50)), "name": [f"crc32:{k:08x}" for k in range(50)]})
    write_table(path, table, saying({"kind": "k", "version": 1, "text": "crc32:00000000"}))
    form = TableForm("k", 1, {})
    found = read_table(path, form, "crops")
    assert found is not None and found[0].to_pydict() == table.to_pydict()
    assert read_table(path, TableForm("k", 2, {}), "crops") is None
    whole = path.read_bytes()
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        with pytest.raises(IntegrityError, match=CURE):
            read_table(path, form, "crops")


@pytest.mark.parametrize("damage", [flip(10), flip(-300), cut, emptied, grown])
@pytest.mark.parametrize("file", ["metadata.json", "train/index.*.arrow"])
def test_what_opening_reads_is_checked(file: str, damage: Damage, root: Path) -> None:
    damage(one(root, f"crops/{file}"))
    (root / "crops" / "opening.json").unlink()
    with pytest.raises(IntegrityError, match=CURE):
        EvalDataset("crops", "train", root=root)


@pytest.mark.parametrize("damage", [flip(10), cut, emptied, Path.unlink])
def test_without_opening_json_metadata_json_is_read_and_the_next_run_writes_it(
    damage: Damage, root: Path, small: Path
) -> None:
    path = root / "crops" / "opening.json"
    whole, samples = path.read_bytes(), faults.values(root)
    damage(path)
    assert faults.values(root) == samples
    pipeline.ingest(make_job(small, root))
    assert path.read_bytes() == whole


def test_opening_json_of_a_version_that_is_gone_is_passed_over(root: Path, small: Path) -> None:
    path = root / "crops" / "opening.json"
    old = path.read_bytes()
    pipeline.ingest(make_job(small, root, splits={"strategy": "random", "seed": 5}))
    for index in (root / "crops").glob("*/index.*.arrow"):
        if index.name.encode() in old:
            index.unlink()
    samples = faults.values(root)
    path.write_bytes(old)  # an earlier version of eval_ingest doesn't know it
    assert faults.values(root) == samples


@pytest.mark.parametrize(
    "damage", [flip(0), flip(6), flip(8), flip(20), flip(62), cut, emptied, grown, Path.unlink]
)
@pytest.mark.parametrize("name", ["sentinel2_l2a", "target"])
def test_packed_files_of_another_size_or_shape_are_noticed_on_opening(
    name: str, damage: Damage, root: Path
) -> None:
    damage(one(root, f"crops/samples/*/{name}.npy"))
    with pytest.raises(IntegrityError, match=CURE):
        EvalDataset("crops", "train", root=root)


def test_swapped_axes_are_noticed_although_the_size_is_the_same(root: Path) -> None:
    path = one(root, "crops/samples/*/sentinel2_l2a.npy")
    stored = np.load(path)
    other = stored.reshape(len(stored), stored.shape[1], -1, *stored.shape[4:3:-1], 2)
    np.save(path, other.reshape(*stored.shape[:3], stored.shape[4], stored.shape[3]))
    with pytest.raises(IntegrityError, match="their header isn't that of"):
        EvalDataset("crops", "train", root=root)


def changed_index(root: Path, column: str, value: object) -> None:
    """The index of train with another first value in a column, sealed as if we had written it."""
    path = one(root, "crops/train/index.*.arrow")
    found = read_table(path, SPLIT_INDEX_FORM, "crops")
    assert found is not None
    table = found[0]
    values = table[column].to_pylist()
    values[0] = value
    place = table.schema.get_field_index(column)
    table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    write_table(path, table, SPLIT_INDEX_FORM)


@pytest.mark.parametrize(
    ("column", "value"),
    [("row", 10), ("row", -1), ("shard", 1), ("shard", -1), ("height", 5), ("width", 1),
     ("sentinel2_l2a.timesteps", 1), ("sentinel2_l2a.timesteps", -1), ("row", None),
     ("height", None), ("name", None), ("sentinel2_l2a.timestamps", [None, 1, 2])],
)  # fmt: skip
def test_an_index_that_speaks_of_other_places_is_refused(
    column: str, value: Any, root: Path
) -> None:
    changed_index(root, column, value)
    with pytest.raises(IntegrityError, match=CURE):
        EvalDataset("crops", "train", root=root)


def test_an_index_names_no_window_outside_of_the_source(small: Path, tmp_path: Path) -> None:
    pipeline.ingest(make_job(small, tmp_path / "root", copy="index"))
    changed_index(tmp_path / "root", "group", "../../other")
    found = EvalDataset("crops", "train", root=tmp_path / "root")
    with pytest.raises(IntegrityError, match=f"names a window .*{CURE}"):
        found[0]
    assert found[1]


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda record: [1],
    "nested deeply": lambda record: {**record, "signal": "DEEP"},
    "an infinity": lambda record: {**record, "n_bytes": math.inf},
    "a number that is too large": lambda record: {**record, "signal": {"gap": "LARGE"}},
    "half of a character": lambda record: {**record, "warnings": ["\ud800"]},
    "a report without counts": lambda record: {**record, "split_report": {"strategy": "x"}},
    "counts that are texts": lambda record: {
        **record, "split_report": record["split_report"] | {"counts": dict.fromkeys(SPLITS, "1")}},
    "a class too few": lambda record: {
        **record,
        "split_report": record["split_report"] | {"class_counts": {split: [1] for split in SPLITS}},
    },
    "statistics of other bands": lambda record: {
        **record, "norm_stats": {"sentinel2_l2a": {"B99": {}}}},
    "statistics of another modality": lambda record: {**record, "norm_stats": {"x": {}}},
    "statistics of none": lambda record: {**record, "norm_stats": {}},
    "an array without a shape": lambda record: {
        **record,
        "shards": [
            {**shard, "arrays": {name: {**a, "shape": []} for name, a in shard["arrays"].items()}}
            for shard in record["shards"]
        ],
    },
    "a verdict without reasons": lambda record: {**record, "quality": {"verdict": "good"}},
    "findings that are none": lambda record: {
        **record, "quality": record["quality"] | {"findings": [{"code": "x"}]}},
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_what_is_no_record_of_ours_is_none_though_its_checksum_is_right(
    kind: str, root: Path
) -> None:
    path = root / "crops" / "metadata.json"
    forged = FORGED[kind](json.loads(path.read_text()))
    sealed = {**forged, "checksum": UNSEALED} if isinstance(forged, dict) else [UNSEALED]
    text = json.dumps(sealed).replace('"LARGE"', "1e999")
    path.write_bytes(sealed_bytes(text.replace('"DEEP"', "[" * 9_999 + "]" * 9_999).encode()))
    for use in (api.info, api.verify):
        with pytest.raises(IntegrityError, match=CURE):
            use("crops", root)
    assert EvalDataset("crops", "train", root=root)  # opening.json is whole


@pytest.mark.parametrize(
    "kind", [kind for kind in FORGED if kind.startswith(("statistics", "an array"))]
)
def test_what_is_opened_by_holds_what_samples_need(kind: str, root: Path) -> None:
    for name in ("opening.json", "metadata.json"):
        forged = FORGED[kind](read_sealed_json(root / "crops" / name, CURE))
        write_sealed_json(root / "crops" / name, forged)
    with pytest.raises(IntegrityError, match=CURE):
        EvalDataset("crops", "train", root=root)


@pytest.mark.parametrize(
    ("field", "value"),
    [("split_report", {"class_counts": 5}), ("split_report", {"class_counts": ["x"]}),
     ("split_report", {"class_counts": {"train": 5}}), ("quality", {"verdict": 5}),
     ("signal", {"gap": 1}), ("history", [1]), ("their_entry", "{}"), ("timesteps", {"x": [1, 2]}),
     ("warnings", [5]), ("invalid", {"x": -1}), ("fingerprints", {"x": 1}), ("norm_stats", {})],
)  # fmt: skip
def test_what_never_stands_in_opening_json_hides_nothing_there(
    field: str, value: object, root: Path
) -> None:
    path = root / "crops" / "opening.json"
    record = {**read_sealed_json(path, CURE), "norm_stats": {}, field: value}
    write_sealed_json(path, record)
    with pytest.raises(IntegrityError, match=f"damaged at {field}; {CURE}"):
        read_opening(EvalRoot(root).dataset("crops"))
    assert EvalDataset("crops", "train", root=root)  # by metadata.json


def test_a_copy_without_a_manifest_is_recorded_as_ever(root: Path) -> None:
    found = read_outcome(EvalRoot(root).dataset("crops"), "weka_copy")
    assert found is not None and found.model_dump()["manifest"] == found.manifest
    assert "manifest" not in found.model_copy(update={"manifest": None}).model_dump()


@pytest.mark.parametrize("size", [10**30, 2**63, 65_536, -1, 0, "8", None])
def test_a_size_that_nobody_can_pad_to_is_refused(size: object, root: Path) -> None:
    for name in ("opening.json", "metadata.json"):
        record = read_sealed_json(root / "crops" / name, CURE)
        assert record is not None
        record["config"]["modalities"][0]["pad"] = {"size": size, "center": False}
        write_sealed_json(root / "crops" / name, record)
    with pytest.raises((IntegrityError, LoadError), match=f"{CURE}|filled up to 65536"):
        EvalDataset("crops", "train", root=root)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("window_index", "options", "no JSON"), ("window_index", "options", "[1]"),
     ("window_index", "options", "[" * 100_000), ("window_index", "crs", "http://host/x"),
     ("window_index", "crs", "+proj=utm +nadgrids=/etc/x"), ("window_index", "name", ".."),
     ("window_index", "name", None), ("window_index", "bounds", [1]),
     ("window_index", "height", -1),
     ("window_index", "geometry", b"\1\6\0\0\0\1\0\0\0" * 100_000),
     ("window_index", "geometry", b"\1\7\0\0\0\0\0\0\0"), ("window_index", "status", "fine"),
     ("window_index", "label.class_counts", [1]), ("split_assignment", "split", "trial"),
     ("split_assignment", "split", None), ("copy_manifest", "group", "../x"),
     ("copy_manifest", "checksum", "x"), ("copy_manifest", "n_bytes", -1)],
)  # fmt: skip
def test_a_value_that_no_table_of_ours_has_is_damage(
    table: str, column: str, value: object, root: Path
) -> None:
    form = {"window_index": INDEX_FORM, "split_assignment": SPLITS_FORM,
            "copy_manifest": MANIFEST_FORM}[table]  # fmt: skip
    path = root / "crops" / f"{table}.parquet"
    found = read_table(path, form, "crops")
    assert found is not None
    values = [*found[0][column].to_pylist()[:-1], value]
    at = found[0].schema.get_field_index(column)
    changed = pa.array(values, found[0].schema.field(at).type)
    facts = saying(dict(found[1]))
    write_table(path, found[0].set_column(at, column, changed), facts)
    with pytest.raises(IntegrityError, match=f"damaged at {column}; {CURE}"):
        read_table(path, form, "crops")
    if form.columns[column].needed:
        write_table(path, found[0].drop_columns(column), facts)
        with pytest.raises(IntegrityError, match=f"damaged at {column}; {CURE}"):
            read_table(path, form, "crops")


@pytest.mark.parametrize("split", SPLITS)
def test_a_record_without_one_of_the_splits_is_damage(split: str, root: Path) -> None:
    for name in ("opening.json", "metadata.json"):
        record = read_sealed_json(root / "crops" / name, CURE)
        assert record is not None
        del record["splits"][split]
        write_sealed_json(root / "crops" / name, record)
    with pytest.raises(IntegrityError, match=f"damaged at splits; {CURE}"):
        EvalDataset("crops", "train", root=root)
    with pytest.raises(IntegrityError, match=f"damaged at splits; {CURE}"):
        api.info("crops", root)


@pytest.mark.parametrize("counts", [{"train": "x", "val": 1, "test": 2}, {"train": 6}, "7"])
def test_a_report_beside_the_splits_has_its_form(counts: object, root: Path) -> None:
    path = root / "crops" / "split_assignment.parquet"
    found = read_table(path, SPLITS_FORM, "crops")
    assert found is not None
    facts = dict(found[1])
    forged = {**facts, "report": {**facts["report"], "counts": counts}}
    write_table(path, found[0], saying(forged))
    with pytest.raises(IntegrityError, match=f"damaged at report.counts.*{CURE}"):
        read_splits(path)


@pytest.mark.parametrize("fact", ["fingerprint", "row_key", "source", "extra"])
def test_what_an_index_says_of_itself_has_its_form(fact: str, root: Path) -> None:
    path = root / "crops" / "window_index.parquet"
    found = open_table(path, INDEX_FORM, "crops")
    assert found is not None
    write_table(path, found[0].whole(), saying({**dict(found[1]), fact: ["x"]}))
    with pytest.raises(IntegrityError, match=CURE):
        read_index(path)


def test_a_flat_shard_is_never_read_beyond_its_end(
    ingested: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(ingested("ragged_segmentation"), tmp_path / "root")
    (tmp_path / "root" / "ragged_segmentation").rename(tmp_path / "root" / "crops")
    EvalDataset("crops", "train", root=tmp_path / "root")
    changed_index(tmp_path / "root", "sentinel2_l2a.offset", 10**9)
    with pytest.raises(IntegrityError, match="no room"):
        EvalDataset("crops", "train", root=tmp_path / "root")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("splits", "train", "index"), "../../elsewhere/index.0.arrow"),
        (("splits", "train", "index"), "/etc/passwd"),
        (("splits", "train", "index"), "train/../../x/index.0.arrow"),
        (("splits", "train", "index"), "train/index.0.arrow\n"),
        (("shards", 0, "name"), "../../other/samples/x"),
        (("shards", 0, "name"), "/tmp"),
        (("shards", 0, "name"), ".."),
        (("shards", 0, "arrays"), {"../target": {}}),
    ],
)
def test_names_in_metadata_json_stay_in_the_datasets_folder(
    where: tuple[Any, ...], value: Any, root: Path
) -> None:
    for name in ("opening.json", "metadata.json"):
        path = root / "crops" / name
        content = read_sealed_json(path, CURE)
        assert content is not None
        holder: Any = content
        for key in where[:-1]:
            holder = holder[key]
        holder[where[-1]] = value
        path.write_bytes(sealed_json(content))
    with pytest.raises(IntegrityError, match=f"is damaged at {where[0]}.*{CURE}"):
        EvalDataset("crops", "train", root=root)


# ------------------------------------------------------------------------------------- verified


@pytest.mark.parametrize(("name", "what"), [("sentinel2_l2a", "pixels"), ("target", "label")])
def test_verify_names_the_samples_that_have_changed(name: str, what: str, root: Path) -> None:
    path = one(root, f"crops/samples/*/{name}.npy")
    dataset = EvalDataset("crops", "train", root=root)
    stored = np.load(path, mmap_mode="r+")
    row = int(dataset._index.rows[0])
    stored.view(np.uint8)[row].reshape(-1)[7] ^= 1
    stored.flush()
    assert faults.verified(root) == [f"the packed {what} of {dataset.window(0)} have changed"]


def test_verify_finds_samples_of_other_windows(root: Path) -> None:
    path = one(root, "crops/train/index.*.arrow")
    found = read_table(path, SPLIT_INDEX_FORM, "crops")
    assert found is not None
    first, second, *_ = found[0]["row"].to_pylist()
    changed_index(root, "row", second)
    assert first != second
    window = f"{found[0]['group'][0]}/{found[0]['name'][0]}"
    assert faults.verified(root) == [f"the packed label and pixels of {window} have changed"]


@pytest.mark.parametrize("case", ["vector_classification", "three_modalities",
                                  "per_pixel_regression", "scalar_regression",
                                  "ragged_segmentation", "class_mapping"])  # fmt: skip
def test_whole_datasets_of_every_kind_verify(case: str, ingested: Callable[[str], Path]) -> None:
    assert faults.verified(ingested(case), case) == []


# ------------------------------------------------------------------------------------- repaired

OWN = (
    "metadata.json", "norm_stats.json", "weka_copy.json", "window_index.parquet",
    "split_assignment.parquet", "copy_manifest.parquet", "train/index.*.arrow",
    "samples/*/index.parquet", "samples/*/target.npy", "source_state.json", "config.json",
    "model.yaml", ".rslearn_dataset_index/*.json",
)  # fmt: skip


@pytest.mark.parametrize("damage", [flip(12), cut])
@pytest.mark.parametrize("file", OWN)
def test_the_next_ingest_repairs(
    file: str, damage: Damage, root: Path, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = faults.values(root)
    path = one(root, f"crops/{file}")
    damage(path)
    if file != "source_state.json":
        try:
            assert faults.verified(root) != []
        except IntegrityError as error:
            assert CURE in str(error)
    with caplog.at_level(logging.WARNING):
        Run(str(small), root).do()
    assert faults.values(root) == expected
    assert faults.verified(root) == []
    told = [record.message for record in caplog.records if record.name == "eval_ingest"]
    assert [text for text in told if path.name in text]


@pytest.mark.parametrize("damage", [flip(12), cut, emptied])
@pytest.mark.usefixtures("nobody_else_writes")
def test_a_damaged_registry_is_told_and_compiled_anew(
    damage: Damage, root: Path, small: Path
) -> None:
    before = read_registry(EvalRoot(root))["crops"]
    damage(root / "registry.json")
    with pytest.raises(IntegrityError, match="run: eval-ingest registry rebuild"):
        read_registry(EvalRoot(root))
    Run(str(small), root).do()
    entries = read_registry(EvalRoot(root))
    assert entries == {"crops": {**before, "weka_path": str(root / "crops")}}


# ------------------------------------------------------------------------------------- commands


@pytest.mark.usefixtures("nobody_else_writes")
@pytest.mark.parametrize("damage", [flip(12), emptied])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("crops/metadata.json", ["info", "--name", "crops"]),
        ("crops/metadata.json", ["verify", "--name", "crops"]),
        ("crops/metadata.json", ["report", "--name", "crops"]),
        ("crops/window_index.parquet", ["report", "--name", "crops"]),
        ("crops/split_assignment.parquet", ["report", "--name", "crops"]),
        ("crops/train/index.*.arrow", ["report", "--name", "crops"]),
        ("crops/weka_copy.json", ["export", "--name", "crops", "--to", "out"]),
        ("registry.json", ["list"]),
        ("registry.json", ["tasks", "--format", "olmoearth"]),
    ],
)
def test_a_damaged_file_is_one_sentence(
    file: str,
    command: list[str],
    damage: Damage,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    path = one(root, file)
    damage(path)
    assert cli.main(command) == 1
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1 and told.startswith("error: ")
    assert path.name in told and "run: eval-ingest" in told


def test_other_datasets_load_beside_a_damaged_one(root: Path, small: Path) -> None:
    Run(str(small), root, "other").do()
    expected = faults.values(root, "other")
    for path in (root / "crops").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".parquet"):
            emptied(path)
    Run(str(small), root, "another").do()
    assert faults.values(root, "other") == expected
    assert {"crops", "other", "another"} <= read_registry(EvalRoot(root)).keys()
    with pytest.raises(StoreError):
        read_metadata(EvalRoot(root).dataset("crops"))


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_the_manifest_of_an_earlier_copy_vouches_for_nothing(
    seed: int, place: Place, few: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "copy_manifest.parquet"
    place.ingest(few)
    old = place.read(f"crops/{name}")
    place.ingest(few, splits={"strategy": "random", "seed": 5})
    assert old != place.read(f"crops/{name}")
    place.write(f"crops/{name}", old)
    assert any(name in problem for problem in api.verify("crops").problems)
    place.ingest(few, splits={"strategy": "random", "seed": seed})
    assert name in caplog.text and "made anew" in caplog.text
    assert api.verify("crops").problems == []
