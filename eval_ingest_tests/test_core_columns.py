"""Columns as numpy arrays: the values of to_pylist, without pandas."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_ingest.core import columns
from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.index import WindowIndex, index_schema
from eval_ingest.core.keyed import RowsByKey
from eval_ingest_tests.support.indexes import make_config, make_index, window


def test_nulls_are_what_is_asked_for() -> None:
    column = pa.chunked_array([[1, None], [3]], pa.int32())
    assert columns.numbers(column, 0).tolist() == [1, 0, 3]
    assert columns.numbers(column, 0).dtype == np.int32
    found = columns.floats(column)
    assert np.isnan(found[1]) and found[[0, 2]].tolist() == [1, 3]
    assert columns.floats(pa.array([5], pa.timestamp("us", tz="UTC"))).tolist() == [5]
    assert columns.encoded(pa.array(["b", None, "a", "b"]))[0].tolist() == [0, -1, 1, 0]
    assert columns.lengths(pa.array([[1], None, [], [1, 2]])).tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([[1, 2], None, [5]], [[1, 2], [9, 9], [5, 9]]),
        ([None], [[9, 9]]),
        ([], np.zeros((0, 2))),
    ],
)
def test_lists_become_rows_of_a_matrix(lists: list[object], expected: object) -> None:
    column = pa.array(lists, pa.list_(pa.int64()))
    assert columns.matrix(column, 2, 9, np.int64).tolist() == np.asarray(expected).tolist()
    pieces = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    assert columns.matrix(pieces, 2, 9, np.int64).tolist() == np.asarray(expected).tolist()


def test_moments_of_windows_without_any_count_nothing() -> None:
    index = make_index([window("a"), window("b")])
    table = index.table.set_column(
        index.table.schema.get_field_index("sentinel2_l2a.moments"),
        "sentinel2_l2a.moments",
        pa.array(
            [None, *index.table["sentinel2_l2a.moments"].to_pylist()[1:]],
            index.table.schema.field("sentinel2_l2a.moments").type,
        ),
    )
    found = WindowIndex(table, "fp", "key").moments("sentinel2_l2a")
    assert found.shape == (2, 5, 4)
    assert found[0].tolist() == [[0] * 4] * 3 + [[np.inf] * 4, [-np.inf] * 4]
    assert found[1].tolist() == index.moments("sentinel2_l2a")[1].tolist()
    empty = WindowIndex(index_schema(make_config()).empty_table(), "fp", "key")
    assert empty.moments("sentinel2_l2a").shape == (0, 5, 1)


_LEAVES = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.timestamp("us", tz="UTC"): st.datetimes(timezones=st.just(UTC)),
}


def _typed(kind: pa.DataType, inside: st.SearchStrategy) -> list[tuple[pa.DataType, object]]:
    nullable = st.none() | inside
    return [
        (kind, inside),
        (pa.list_(kind), st.lists(nullable, max_size=3)),
        (pa.struct([("a", kind), ("b", pa.list_(kind))]),
         st.fixed_dictionaries({}, optional={"a": nullable, "b": st.lists(nullable, max_size=2)})),
        (pa.list_(pa.struct([("a", kind)])),
         st.lists(st.none() | st.fixed_dictionaries({"a": nullable}), max_size=2)),
    ]  # fmt: skip


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_values_become_the_array_that_arrow_makes_of_them(data: st.DataObject) -> None:
    typed = [pair for kind, leaf in _LEAVES.items() for pair in _typed(kind, leaf)]
    kind, inside = data.draw(st.sampled_from(typed))
    values = data.draw(st.lists(st.none() | inside, max_size=12))
    found, expected = columns.arrow(values, kind), pa.array(values, kind)
    found.validate(full=True)
    assert found.equals(expected) and found.null_count == expected.null_count


def test_numbers_of_numpy_get_the_columns_type_and_must_fit() -> None:
    found = columns.arrow(np.arange(6).reshape(2, 3)[:, 1], pa.int32())
    assert found.equals(pa.array([1, 4], pa.int32()))
    with pytest.raises(OverflowError):
        columns.arrow([2**31], pa.int32())


def test_an_ingest_imports_no_pandas_in_any_process(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "pandas.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'a').close(); raise ImportError"
    )
    code = (
        "import eval_ingest; eval_ingest.ingest('crops', source={!r}); import sys;"
        "print('pyarrow' in sys.modules)"
    ).format(str(written("segmentation")))
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "EVAL_INGEST_ENGINE": "processes",
        "OLMOEARTH_EVAL_DATASETS": str(tmp_path / "root"),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("True\n"), done.stderr
    assert not (tmp_path / "imported").exists()


def test_rows_are_found_by_key_where_all_hashes_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = arrow_rows([{"a": a, "b": b} for a in "xyx" for b in ("p", "q")], _PAIRS)
    wanted = arrow_rows([{"a": "x", "b": "q"}, {"a": "y", "b": "p"}, {"a": "z", "b": "p"}], _PAIRS)
    assert RowsByKey(table, ["a", "b"]).find(wanted).tolist() == [5, 2, -1]
    monkeypatch.setattr("builtins.hash", lambda key: 1)
    assert RowsByKey(table, ["a", "b"]).find(wanted).tolist() == [5, 2, -1]


_PAIRS = pa.schema([("a", pa.string()), ("b", pa.string())])
