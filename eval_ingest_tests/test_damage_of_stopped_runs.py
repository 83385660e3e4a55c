"""What stopped runs have left is done again where it is damaged, or says what none of ours does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eval_ingest.core.index import INDEX_FORM
from eval_ingest.errors import IntegrityError
from eval_ingest.indexing.partial import PARTIAL_FORM
from eval_ingest.store.manifest import JOURNAL, CopiedWindow, Manifest, journal_text
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import write_sealed_json
from eval_ingest.store.tables import AsideTable, read_table, write_table
from eval_ingest_tests.support import faults
from eval_ingest_tests.support.damaging import CURE, Damage, cut, emptied, flip, one
from eval_ingest_tests.support.killing import Run
from eval_ingest_tests.support.sealed import read_sealed_json, saying


@pytest.mark.parametrize("file", ["packing/packing.json", "packing/*/*.npy", "*.arrow"])
@pytest.mark.parametrize("damage", [flip(12), cut, emptied])
def test_a_stopped_run_whose_work_is_damaged_is_done_again(
    file: str, damage: Damage, small: Path, reference: Path, tmp_path: Path
) -> None:
    run = Run(str(small), tmp_path / "root")
    run.stop()
    damage(one(tmp_path / "root" / "crops", f".window_index/{file}"))
    run.do()
    assert faults.values(tmp_path / "root") == faults.values(reference)
    assert faults.verified(tmp_path / "root") == []


@pytest.mark.parametrize(
    "said", [{"count": 1 << 53}, {"count": 1}, {"like": {"height": 10**9}},
             {"like": {"timesteps": {}}}],
)  # fmt: skip
def test_a_packing_of_other_samples_is_begun_anew(
    said: dict[str, Any], small: Path, reference: Path, tmp_path: Path
) -> None:
    run = Run(str(small), tmp_path / "root")
    run.stop()
    path = one(tmp_path / "root" / "crops", ".window_index/packing/packing.json")
    record = read_sealed_json(path)
    like = {**record["like"], **said.get("like", {})}
    write_sealed_json(path, {**record, **said, "like": like})
    run.do()
    assert faults.values(tmp_path / "root") == faults.values(reference)


def without_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns("label.class_counts")


def in_another_order(table: pa.Table) -> pa.Table:
    return table.take(pa.array(reversed(range(len(table))), pa.int64()))


@pytest.mark.parametrize("changed", [without_a_column, in_another_order])
@pytest.mark.parametrize("file", [".window_index/*.arrow", "window_index.parquet"])
def test_rows_that_no_index_can_be_put_together_from_are_read_again(
    file: str,
    changed: Callable[[pa.Table], pa.Table],
    small: Path,
    reference: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = shutil.copytree(small, tmp_path / "source")
    run = Run(str(source), tmp_path / "root")
    if file.startswith("."):
        run.stop()
        form = PARTIAL_FORM
    else:
        run.do()
        window = one(source, "windows/*/*/metadata.json")
        window.write_text(window.read_text() + "\n")
        form = INDEX_FORM
    path = one(tmp_path / "root" / "crops", file)
    found = read_table(path, form, "crops")
    assert found is not None
    write_table(path, changed(found[0]), form, **found[1].model_dump(exclude={"kind", "version"}))
    run.do()
    assert "it is made anew" in caplog.text
    assert faults.values(tmp_path / "root") == faults.values(reference)
    assert faults.verified(tmp_path / "root") == []


def test_rows_that_are_damaged_after_they_were_looked_at_are_not_merged(tmp_path: Path) -> None:
    path, table = tmp_path / "rows.arrow", pa.table({"name": ["a", "b"]})
    write_table(path, table, saying({}))
    rows = AsideTable(path, table.schema, 2, "crops")
    assert [batch.to_pydict() for batch in rows.to_batches()] == [{"name": ["a", "b"]}]
    place = path.read_bytes().index(b"ab")
    flip(place)(path)
    with pytest.raises(IntegrityError, match=CURE):
        list(rows.to_batches())


COPIED = {"group": "g", "name": "w", "source_digest": "d", "split": "train", "n_files": 1,
          "n_bytes": 1, "checksum": "0"}  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [{"group": "../../.."}, {"group": ""}, {"name": ".."}, {"name": "."}, {"name": "a/b"},
     {"name": "a\0b"}, {"name": "/etc"}, {"split": "evil"}, {"n_files": -1}],
)  # fmt: skip
def test_a_journal_that_names_no_window_vouches_for_nothing(
    said: dict[str, Any], tmp_path: Path
) -> None:
    layout = EvalRoot(tmp_path).dataset("crops").layout
    layout.path.mkdir()
    for lines in ([COPIED, {**COPIED, **said}], [COPIED, {"group": "g", "name": "w", **said}]):
        (layout.path / JOURNAL).write_bytes(journal_text(lines))
        assert Manifest(layout).windows == {}
    for name in ("...", "..w", ".w", "w..", "ä b"):
        fine = {**COPIED, "name": name, "source_digest": "d\0train\0" + "1"}
        (layout.path / JOURNAL).write_bytes(journal_text([fine]))
        assert Manifest(layout).windows == {("g", name): CopiedWindow(**fine)}


def test_a_damaged_line_of_the_journal_makes_it_vouch_for_nothing(tmp_path: Path) -> None:
    layout = EvalRoot(tmp_path).dataset("crops").layout
    windows = [CopiedWindow("g", f"w{k}", "d", "train", 1, 1, "0") for k in range(4)]
    manifest = Manifest(layout)
    manifest.add(windows)
    manifest.close()
    Manifest(layout).add(CopiedWindow("g", f"w{k}", "e", "val", 2, 2, "1") for k in range(3))
    journal = one(layout.path, "*journal*")
    flip(90)(journal)
    again = Manifest(layout)
    assert again.windows == {}
    again.add(windows[:1])
    assert list(Manifest(layout).windows) == [("g", "w0")]  # not what the manifest says
