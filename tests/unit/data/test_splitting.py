"""Duplicates and the split: accounting, groups, stability."""

import collections
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.data.cleaning import REASONS
from wsdm_ray.data.splitting import (
    DIGEST,
    among,
    choose_valid,
    digests,
    duplicate_reasons,
    every_nth,
    first_repeated,
    pair_digests,
    prompt_digests,
)
from wsdm_ray.errors import DataError, StorageError
from wsdm_ray.text.groups import prompt_group_key

DUPLICATE, CONFLICT = REASONS.index("duplicate"), REASONS.index("conflicting_duplicate")


def table_of(rows: list[tuple[str, str, str]]) -> pa.Table:
    prompts, a, b = zip(*rows, strict=True) if rows else ((), (), ())
    texts = {"prompt": prompts, "response_a": a, "response_b": b}
    return pa.table({name: pa.array(column, pa.string()) for name, column in texts.items()})


def reasons_of(rows: list[tuple[str, str, str, float]]) -> list[int]:
    table = table_of([row[:3] for row in rows])
    _, pairs, prob = pair_digests(table, np.array([row[3] for row in rows]))
    return duplicate_reasons(pairs, prob).tolist()


def test_duplicates_are_found_either_way_round():
    assert reasons_of([("p", "x", "y", 1.0), ("p", "y", "x", 0.0), ("p", "x", "z", 1.0)]) == [
        -1,
        DUPLICATE,
        -1,
    ]


def test_the_prompt_counts_in_its_normalized_form():
    rows = [("What is  it?", "x", "y", 1.0), (" what IS\nit?", "x", "y", 1.0), ("what is it", "x", "y", 1.0)]
    assert reasons_of(rows) == [-1, DUPLICATE, -1]


def test_every_copy_of_a_conflict_goes():
    rows = [("p", "x", "y", 1.0), ("p", "y", "x", 1.0), ("p", "x", "y", 1.0), ("q", "x", "y", 1.0)]
    assert reasons_of(rows) == [CONFLICT, CONFLICT, CONFLICT, -1]


def test_soft_labels_agree_to_the_last_bit_but_one():
    rows = [("p", "x", "y", 0.3), ("p", "y", "x", 0.7), ("q", "x", "y", 0.3), ("q", "x", "y", 0.31)]
    assert reasons_of(rows) == [-1, DUPLICATE, CONFLICT, CONFLICT]


def test_texts_do_not_run_together():
    rows = [("p", "xy", "z", 1.0), ("p", "x", "yz", 1.0), ("px", "y", "z", 1.0)]
    assert reasons_of(rows) == [-1, -1, -1]


TEXT = st.sampled_from(["x", "y", "z"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "P ", "q"]), TEXT, TEXT, st.sampled_from([0.0, 1.0])), max_size=30
    )
)
def test_each_pair_is_kept_once_or_not_at_all(rows):
    groups = collections.defaultdict(list)
    for index, (prompt, a, b, prob) in enumerate(rows):
        key = (prompt.strip().casefold(), *sorted((a, b)))
        groups[key].append((index, prob if a <= b else 1 - prob))
    expected = [0] * len(rows)
    for copies in groups.values():
        conflict = len({prob for _, prob in copies}) > 1
        for place, (index, _) in enumerate(copies):
            expected[index] = CONFLICT if conflict else DUPLICATE if place else -1
    assert reasons_of(rows) == expected


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
    st.floats(0, 0.95),
    st.integers(-3, 3),
)
def test_no_prompt_stands_on_both_sides(names, fraction, seed):
    prompts = digests(names)
    valid = choose_valid(prompts, fraction, seed)
    assert not set(prompts[valid]) & set(prompts[~valid])
    assert not valid.all()
    assert valid.sum() <= 2 * np.ceil(fraction * len(names))
    assert (choose_valid(prompts, fraction, seed) == valid).all()
    order = np.random.default_rng(0).permutation(len(names))
    assert (choose_valid(prompts[order], fraction, seed) == valid[order]).all(), (
        "whatever the order of the rows"
    )


def test_the_fraction_is_reached():
    prompts = digests([i // 3 for i in range(3_000)])
    valid = choose_valid(prompts, 0.1, 0)
    assert 300 <= valid.sum() <= 302
    assert (choose_valid(prompts, 0.1, 1) != valid).any()
    assert choose_valid(prompts, 0.0, 0).sum() == 0


def test_a_group_too_large_stays_in_train():
    prompts = digests([0] * 500 + list(range(1, 501)))
    for seed in range(5):
        valid = choose_valid(prompts, 0.1, seed)
        assert not valid[:500].any()
        assert valid.sum() == 100


def test_more_groups_leave_the_others_on_their_side():
    few, more = digests(range(1_000)), digests(range(1_100))
    before, after = choose_valid(few, 0.1, 0), choose_valid(more, 0.1, 0)[:1_000]
    assert (before != after).sum() < 40


def test_first_repeated():
    assert first_repeated(digests([3, 1, 2])) is None
    assert first_repeated(digests([3, 1, 2, 1, 3])) == 3
    assert first_repeated(digests([])) is None
    assert first_repeated(digests(["a", "b", "a"])) == 2


def write_prompts(path: Path, prompts: list) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(range(len(prompts))), "prompt": prompts}), path)
    return str(path)


def test_prompt_digests_are_those_of_the_prompts_in_order(tmp_path):
    prompts = [f"Prompt  {row}" for row in range(2_500)]
    write_prompts(tmp_path / "x/a.parquet", prompts[:2_001])
    write_prompts(tmp_path / "x/b.parquet", prompts[2_001:])
    found = prompt_digests([str(tmp_path / "x")])
    assert found.dtype == DIGEST
    assert (found == pair_digests(table_of([(text, "a", "b") for text in prompts]), np.ones(2_500))[0]).all()
    assert (found == digests([prompt_group_key(text) for text in prompts])).all()
    assert (found[:2] == digests(["prompt 0", "prompt 1"])).all()


def test_prompt_digests_of_nothing(tmp_path):
    assert prompt_digests([]).tolist() == []
    empty = write_prompts(tmp_path / "empty.parquet", pa.array([], pa.string()))
    assert prompt_digests([empty]).dtype == DIGEST
    assert len(prompt_digests([empty])) == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            ["a", None],
            r"x.parquet: the prompt of row 1 \(counted from 0\) is null or not UTF-8; make canonical",
        ),
        (
            [["a"]],
            r"x.parquet: column 'prompt' holds list<.*>, but text is needed",
        ),
    ],
)
def test_prompts_that_are_no_texts(tmp_path, prompts, message):
    with pytest.raises(DataError, match=message):
        prompt_digests([write_prompts(tmp_path / "x.parquet", prompts)])


def test_files_without_prompts(tmp_path):
    pq.write_table(pa.table({"id": [1], "question": ["q"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: no column 'prompt'; there are: id, question"):
        prompt_digests([str(tmp_path / "x.parquet")])
    (tmp_path / "y.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"y.parquet: not a parquet file"):
        prompt_digests([str(tmp_path / "y.parquet")])
    with pytest.raises(StorageError, match=r"gone: not found"):
        prompt_digests([str(tmp_path / "gone")])


def test_a_damaged_file_of_prompts(tmp_path):
    path = Path(write_prompts(tmp_path / "x.parquet", [f"p{row * 7919}" for row in range(1_000)]))
    data = bytearray(path.read_bytes())
    data[100:-2_000] = bytes(len(data) - 2_100)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"x.parquet: cannot be read after row 0"):
        prompt_digests([str(path)])


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_among(values, known):
    found = among(digests(values), np.unique(digests(known)))
    assert found.dtype == bool
    assert found.tolist() == [value in known for value in values]


def test_every_nth_row():
    assert np.flatnonzero(every_nth(10, 0.25)).tolist() == [0, 4, 8]
    assert every_nth(48_439, 1 / 1000).sum() == 49, "the recipe's fold 0 of 1000"
    assert not every_nth(5, 0.0).any()
