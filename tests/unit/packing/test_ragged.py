"""Ragged lists: there and back through Arrow, whatever the slices and chunks."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.packing.ragged import Ragged

ids = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6)
lists = st.lists(ids, max_size=12)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.from_lists([np.asarray(row, np.int32) for row in rows])


def rows_of(lists: Ragged) -> list[list[int]]:
    return [lists[i].tolist() for i in range(len(lists))]


@given(lists)
def test_rows(rows):
    made = ragged(rows)
    assert rows_of(made) == rows
    assert made.lengths.tolist() == [len(row) for row in rows]
    assert (made.values.dtype, made.offsets.dtype) == (np.int32, np.int64)


@given(lists, st.data())
def test_through_sliced_arrow(rows, data):
    start = data.draw(st.integers(0, len(rows)))
    count = data.draw(st.integers(0, len(rows) - start))
    part = pa.table({"ids": ragged(rows).to_arrow()}).slice(start, count)
    back = Ragged.from_arrow(part.column("ids"))
    assert rows_of(back) == rows[start : start + count]
    assert back.lengths.tolist() == [len(row) for row in rows[start : start + count]]
    assert back.values.dtype == np.int32
    assert rows_of(Ragged.from_arrow(back.to_arrow())) == rows[start : start + count], "and once more"
    assert back.to_arrow().to_pylist() == rows[start : start + count]


@given(st.lists(lists, max_size=4))
def test_through_chunks(chunks):
    kind = pa.large_list(pa.int32())
    chunked = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    assert rows_of(Ragged.from_arrow(chunked)) == [row for chunk in chunks for row in chunk]


@given(lists)
def test_through_the_bytes_of_a_stream(rows):
    table = pa.table({"ids": ragged(rows).to_arrow()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    back = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert rows_of(Ragged.from_arrow(back.column("ids"))) == rows


def test_values_are_not_copied():
    made = ragged([[1, 2], [], [3]])
    back = Ragged.from_arrow(made.to_arrow())
    assert np.shares_memory(back.values, made.values)
