"""Columns as numpy arrays: the values of to_pylist, without pandas."""

import numpy as np
import pyarrow as pa
import pytest

from eval_ingest.core import columns
from eval_ingest.core.index import WindowIndex, index_schema
from eval_ingest_tests.test_core_leakage import make_config, make_index, window


def test_nulls_are_what_is_asked_for() -> None:
    column = pa.chunked_array([[1, None], [3]], pa.int32())
    assert columns.numbers(column, 0).tolist() == [1, 0, 3]
    assert columns.numbers(column, 0).dtype == np.int32
    found = columns.floats(column)
    assert np.isnan(found[1]) and found[[0, 2]].tolist() == [1, 3]
    assert columns.floats(pa.array([5], pa.timestamp("us", tz="UTC"))).tolist() == [5]
    assert columns.codes(pa.array(["b", None, "a", "b"])).tolist() == [0, -1, 1, 0]
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
