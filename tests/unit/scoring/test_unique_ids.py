"""Ids that are there twice, in memory and through the disk."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.scoring import unique_ids
from wsdm_ray.scoring.unique_ids import IdHashes, first_twice, hash_ids


def column(values: list, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind or pa.string())])


@given(st.lists(st.text(max_size=40), max_size=50), st.integers(1, 300))
def test_equal_ids_and_only_these_have_equal_hashes(values, block):
    whole = hash_ids(column(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique_ids, "BLOCK_BYTES", block)
        assert np.array_equal(hash_ids(column(values)), whole)
    assert np.array_equal(hash_ids(column(["x", *values]).slice(1)), whole)
    assert len(np.unique(whole)) == len(set(values))


def test_a_number_and_its_text_are_one_id():
    numbers = [0, -7, 2**63 - 1]
    assert np.array_equal(hash_ids(column(numbers, pa.int64())), hash_ids(column(list(map(str, numbers)))))


@pytest.mark.parametrize("in_memory", [3, 1_000_000])
def test_what_is_there_twice_is_counted(monkeypatch, tmp_path, in_memory):
    monkeypatch.setattr(unique_ids, "IN_MEMORY", in_memory)
    monkeypatch.setattr(unique_ids.tempfile, "tempdir", str(tmp_path))
    parts = [list(range(start, start + 10)) for start in (0, 100, 5, 200)]
    with IdHashes() as hashes:
        for part in parts:
            hashes.add(hash_ids(column(part, pa.int64())))
        count, repeated = hashes.duplicates()
        assert bool(list(tmp_path.iterdir())) == (in_memory == 3)
    assert count == 5
    assert np.array_equal(repeated, np.sort(hash_ids(column([5, 6, 7, 8, 9], pa.int64()))))
    assert not list(tmp_path.iterdir()), "its files are deleted"


def test_the_first_id_that_comes_again():
    places = [("a", "1"), ("b", "2"), ("c", "3"), ("c", "4"), ("b", "5"), ("b", "6")]
    assert first_twice(places) == ("b", ["2", "5"])
    assert first_twice(places[1:4]) == ("c", ["3", "4"])
    assert first_twice([(7, "1"), ("7", "2")]) == (7, ["1", "2"])
    assert first_twice(places[:3]) is None, "other ids with one hash"
