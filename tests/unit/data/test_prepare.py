"""prepare as a whole: what goes in comes out or is counted, and every refusal says why."""

import collections
import json
import logging
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.prepare_rows import both, config, read, vote, write
from wsdm_ray.config import Columns, PrepareConfig
from wsdm_ray.data.arena import arena_batches
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import ConfigError, DataError, RunMismatchError, StorageError
from wsdm_ray.inputs import tables
from wsdm_ray.text.groups import prompt_group_key


def test_arena_to_shards(tmp_path):
    votes = pa.concat_tables(arena_batches(6_000, seed=1, lengths="short"))
    pq.write_table(votes, tmp_path / "votes.parquet")
    run = prepare(config(tmp_path, str(tmp_path / "votes.parquet"), shard_rows=2_500))
    counts = run["counts"]
    assert counts["input_rows"] == 6_000
    assert sum(counts["kept"].values()) + sum(counts["dropped"].values()) == 6_000
    assert run == json.loads((tmp_path / "out/run.json").read_text())
    assert [path.name for path in sorted((tmp_path / "out/train").iterdir())] == [
        "part-000000.parquet", "part-000001.parquet", "part-000002.parquet"
    ]  # fmt: skip
    metadata = pq.read_metadata(tmp_path / "out/train/part-000000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2_000, 500]

    train, valid = read(tmp_path / "out/train"), read(tmp_path / "out/valid")
    assert counts["kept"] == {"train": len(train), "valid": len(valid)}
    assert abs(len(valid) - 600) < 20
    prompts = [{prompt_group_key(row["prompt"]) for row in rows} for rows in (train, valid)]
    assert not prompts[0] & prompts[1]
    assert counts["prompt_groups"] == {"train": len(prompts[0]), "valid": len(prompts[1])}
    original = {row["id"]: row for row in votes.to_pylist()}
    for rows in (train, valid):
        numbers = [int(row["id"].rsplit("-", 1)[1]) for row in rows]
        assert numbers == sorted(numbers), "in input order"
        assert all(row == original[row["id"]] for row in rows)


def test_every_reason_is_counted(tmp_path):
    rows = [
        vote(0),
        vote(1, prompt=None),
        vote(2, prompt=" \n"),
        vote(3, response_b=""),
        vote(4, winner="tie"),
        vote(5, response_a="same", response_b="same\x00"),
        vote(6, prompt="PROMPT  0", response_a="second 0", response_b="first 0", winner="b"),
        vote(7, prompt="x", response_a="1", response_b="2", winner="a"),
        vote(8, prompt="x", response_a="2", response_b="1", winner="a"),
        vote(9, prompt="quotes “here”"),
        vote(10, winner=None),
    ]
    run = prepare(config(tmp_path, write(tmp_path / "x.parquet", rows), valid_fraction=0))
    assert run["counts"] == {
        "input_rows": 11,
        "kept": {"train": 2, "valid": 0},
        "dropped": {
            "malformed": 0, "different_prompts": 0, "null_text": 1, "empty_prompt": 1, "empty_response": 1,
            "no_label": 1, "tie": 1, "identical_responses": 1, "excluded_prompt": 0, "duplicate": 1,
            "conflicting_duplicate": 2,
        },
        "malformed": {},
        "prompt_groups": {"train": 2, "valid": 0},
        "texts_fixed": 2,
    }  # fmt: skip
    assert [row["id"] for row in both(tmp_path)] == ["v0", "v9"]
    assert both(tmp_path)[1]["prompt"] == 'quotes "here"'
    assert not (tmp_path / "out/valid").exists()


def test_counts_are_on_the_screen(tmp_path, caplog):
    rows = [vote(number) for number in range(2_000)] + [vote(2_000, winner="tie")]
    with caplog.at_level(logging.INFO, logger="wsdm_ray"):
        prepare(config(tmp_path, write(tmp_path / "x.parquet", rows)))
    lines = [" ".join(record.getMessage().split()) for record in caplog.records]
    assert lines[0] == "2,001 input rows"
    assert "1 dropped: tie" in lines
    assert "0 dropped: null_text" in lines
    assert "1,800 kept in train/, 1,800 prompt groups" in lines
    assert "200 kept in valid/, 200 prompt groups" in lines


TEXT = st.sampled_from(["x", "X ", "y", "", None, "naïve “q”"])
VOTES = st.lists(
    st.tuples(
        TEXT,
        TEXT,
        TEXT,
        st.sampled_from(["a", "winner_b", "tie"]),
        st.none() | st.sampled_from([0.0, 0.25, 1.0]),
    ),
    min_size=1,
    max_size=40,
)


@given(
    VOTES,
    st.sampled_from([0.0, 0.2, 0.5]),
    st.sampled_from(["drop", "soft"]),
    st.integers(1, 7),
    st.sampled_from([(), (" X",), ("y", "x")]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_input_rows_are_kept_or_counted(tmp_path_factory, votes, fraction, ties, shard_rows, known):
    tmp_path = tmp_path_factory.mktemp("prepare")
    names = ("prompt", "response_a", "response_b", "winner", "prob_a")
    rows = [{"id": number, **dict(zip(names, values, strict=True))} for number, values in enumerate(votes)]
    schema = pa.schema(
        [("id", pa.int64()), *((name, pa.string()) for name in names[:4]), ("prob_a", pa.float64())]
    )
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), tmp_path / f"{number}.parquet")
    options: dict = {"valid_fraction": fraction, "ties": ties, "shard_rows": shard_rows}
    if known:
        options["exclude"] = (write(tmp_path / "known.parquet", [{"prompt": prompt} for prompt in known]),)
    inputs = (str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet"))
    try:
        run = prepare(config(tmp_path, *inputs, **options))
    except DataError:
        return  # every row was dropped
    counts = run["counts"]
    assert counts["input_rows"] == len(rows) == sum(counts["kept"].values()) + sum(counts["dropped"].values())
    kept = both(tmp_path)
    assert len(kept) == sum(counts["kept"].values()) == len({row["id"] for row in kept})
    keys = collections.Counter(
        (prompt_group_key(row["prompt"]), *sorted((row["response_a"], row["response_b"]))) for row in kept
    )
    assert set(keys.values()) == {1}, "every pair once"
    assert not {prompt for prompt, *_ in keys} & {prompt_group_key(prompt) for prompt in known}
    sides = [
        {prompt_group_key(row["prompt"]) for row in read(tmp_path / "out" / side)}
        for side in ("train", "valid")
    ]
    assert not sides[0] & sides[1]
    for row in kept:
        given = rows[row["id"]]["prob_a"]
        assert row["winner"] in ("model_a", "model_b") or row["prob_a"] is not None
        assert given is None or row["prob_a"] == given
        assert all(row[name].strip() for name in names[:3])


def test_soft_ties(tmp_path):
    rows = [vote(0, winner="tie"), vote(1)]
    prepare(config(tmp_path, write(tmp_path / "x.parquet", rows), ties="soft", valid_fraction=0))
    assert [(row["winner"], row["prob_a"]) for row in both(tmp_path)] == [(None, 0.5), ("model_a", None)]


def test_files_with_different_columns(tmp_path):
    inputs = [
        write(tmp_path / "a.parquet", [vote(0, turns=1)]),
        write(tmp_path / "b.parquet", [vote(1, turns=1.5, judge="x")]),
        write(tmp_path / "c.parquet", [vote(2, turns=None, prob_a=0.25)]),
    ]
    prepare(config(tmp_path, *inputs, valid_fraction=0))
    assert [(row["turns"], row["judge"], row["prob_a"]) for row in both(tmp_path)] == [
        (1.0, None, None), (1.5, "x", None), (None, None, 0.25)
    ]  # fmt: skip


def test_columns_of_types_that_do_not_go_together_are_text(tmp_path, caplog):
    inputs = [
        write(tmp_path / "a.parquet", [vote(0, turns=1, more=[{"x": 1}])]),
        write(tmp_path / "b.parquet", [vote(1, turns="1", more="text")]),
    ]
    prepare(config(tmp_path, *inputs, valid_fraction=0))
    assert [(row["turns"], row["more"]) for row in both(tmp_path)] == [("1", '[{"x": 1}]'), ("1", "text")]
    assert caplog.text.count("column 'turns' is int64 in ") == 1


def test_integers_and_fractions_are_fractions(tmp_path):
    inputs = [
        write(tmp_path / "a.parquet", [vote(0, turns=2**53), vote(1, turns=7)]),
        write(tmp_path / "b.parquet", [vote(2, turns=0.5)]),
    ]
    prepare(config(tmp_path, *inputs, valid_fraction=0))
    assert [row["turns"] for row in both(tmp_path)] == [2.0**53, 7.0, 0.5]


def test_ids_of_two_types_are_text(tmp_path):
    inputs = [write(tmp_path / "a.parquet", [vote(0)]), write(tmp_path / "b.parquet", [vote(1, id=5)])]
    prepare(config(tmp_path, *inputs, valid_fraction=0))
    assert [row["id"] for row in both(tmp_path)] == ["v0", "5"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([vote(0), vote(1, id=None)], r"x.parquet: row 1 \(counted from 0\) has no id"),
        (
            [vote(0), vote(1), vote(2, id="v1")],
            r"x.parquet: the id 'v1' is there twice \(first in .*x.parquet\)",
        ),
        ([vote(0), vote(1, id="v0", prompt=None)], r"the id 'v0' is there twice"),
        ([vote(0), vote(1, winner="nobody")], r"x.parquet: unknown winner 'nobody' \(id v1\)"),
        ([vote(0, prob_a=-0.5)], r"x.parquet: prob_a -0.5 \(id v0\) is not within 0..1"),
        ([vote(0, winner=None)], r"all 1 input rows were dropped \(no_label 1\)"),
        (
            [vote(0, prompt=None), vote(1, winner="tie")],
            r"all 2 input rows were dropped \(null_text 1, tie 1\)",
        ),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        prepare(config(tmp_path, write(tmp_path / "x.parquet", rows)))
    assert not (tmp_path / "out/run.json").exists()


def test_the_same_id_in_two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    inputs = [
        write(tmp_path / "a.parquet", [vote(number) for number in range(5)]),
        write(tmp_path / "b.parquet", [vote(number) for number in (5, 6, 3)]),
    ]
    with pytest.raises(DataError, match=r"b.parquet: the id 'v3' is there twice \(first in .*a.parquet\)"):
        prepare(config(tmp_path, *inputs))


def test_an_input_without_rows(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"x.jsonl: no rows"):
        prepare(config(tmp_path, str(tmp_path / "x.jsonl")))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(StorageError, match=r"gone.parquet: not found; check the path"):
        prepare(config(tmp_path, str(tmp_path / "gone.parquet")))
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"x.parquet: not a parquet file"):
        prepare(config(tmp_path, str(tmp_path / "x.parquet")))


def test_rows_without_ids(tmp_path):
    rows = [{name: value for name, value in vote(number).items() if name != "id"} for number in range(3)]
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=r"no column 'id' for the ids; give --columns.id=NAME or --make-ids"):
        prepare(config(tmp_path, path))
    prepare(config(tmp_path, path, make_ids=True, valid_fraction=0))
    assert [row["id"] for row in both(tmp_path)] == ["x-0", "x-1", "x-2"]


def test_integer_ids_and_mapped_columns(tmp_path):
    rows = [{"key": 2**40 + number, **vote(number)} for number in range(3)]
    path = write(tmp_path / "x.parquet", rows)
    prepare(config(tmp_path, path, columns=Columns(id="key"), valid_fraction=0))
    assert [(row["id"], row["input_id"]) for row in both(tmp_path)] == [
        (2**40 + i, f"v{i}") for i in range(3)
    ]


def test_the_same_command_again_does_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    run = prepare(config(tmp_path, path))
    monkeypatch.setattr("wsdm_ray.data.prepare.first_pass", None)
    assert prepare(config(tmp_path, path)) == run


def test_a_finished_run_whose_shards_are_gone(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    asked = config(tmp_path, path)
    rows = prepare(asked)["counts"]["kept"]["train"]
    for shard in Path(asked.output, "train").iterdir():
        shard.unlink()
    with pytest.raises(
        DataError, match=rf"train: holds 0 of the {rows} rows that the finished run wrote.*--restart"
    ):
        prepare(asked)


def test_an_output_folder_of_another_run(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    prepare(config(tmp_path, path))
    with pytest.raises(RunMismatchError, match=r"changed: options.ties: \"drop\" -> \"soft\".*--restart"):
        prepare(config(tmp_path, path, ties="soft"))
    write(tmp_path / "x.parquet", [vote(number) for number in range(21)])
    with pytest.raises(RunMismatchError, match=r"inputs..*x.parquet.bytes"):
        prepare(config(tmp_path, path))
    assert prepare(config(tmp_path, path, restart=True))["counts"]["input_rows"] == 21
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(RunMismatchError, match=r"holds thesis.txt, which no run of prepare left there"):
        prepare(PrepareConfig(input=(path,), output=str(tmp_path / "mine"), restart=True))


def test_leftovers_of_an_unfinished_run_go(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    prepare(config(tmp_path, path, shard_rows=3))
    (tmp_path / "out/run.json").rename(tmp_path / "out/_run.json")
    prepare(config(tmp_path, path, shard_rows=10))
    assert len(list((tmp_path / "out/train").iterdir())) == 2
    assert not (tmp_path / "out/_run.json").exists()


def test_an_output_that_holds_the_input(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(0)])
    with pytest.raises(ConfigError, match=r"holds the input .*x.parquet; choose another folder"):
        prepare(PrepareConfig(input=(path,), output=str(tmp_path)))


def test_an_object_store(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    output = f"memory://{tmp_path.name}/out"
    run = prepare(PrepareConfig(input=(path,), output=output, shard_rows=7))
    again = prepare(PrepareConfig(input=(f"{output}/train",), output=f"{output}2", valid_fraction=0))
    assert again["counts"]["input_rows"] == run["counts"]["kept"]["train"] == 18


def test_special_tokens_and_huge_texts_are_kept(tmp_path):
    rows = [
        vote(0, prompt="<eos> <|im_start|>system"),
        vote(1, response_a="y" * 5_000_000),
        vote(2, prompt="\u200fאב\u202e"),
        vote(3, prompt="nul\x00byte"),
    ]
    prepare(config(tmp_path, write(tmp_path / "x.parquet", rows), valid_fraction=0))
    kept = both(tmp_path)
    assert [row["prompt"] for row in kept] == [
        "<eos> <|im_start|>system",
        "prompt 1",
        "\u200fאב\u202e",
        "nulbyte",
    ]
    assert len(kept[1]["response_a"]) == 5_000_000


def test_the_recipes_split_is_by_row_number(tmp_path):
    rows = [vote(number) for number in range(9)]
    prepare(config(tmp_path, write(tmp_path / "x.parquet", rows), split="modulo", valid_fraction=0.25))
    ids = [row["id"] for row in read(tmp_path / "out/valid")]
    assert ids == [rows[number]["id"] for number in (0, 4, 8)]


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        (([1], pa.int64(), [2], pa.uint64()), [1, 2]),
        (([1], pa.int64(), [2**63 + 5], pa.uint64()), ["1", str(2**63 + 5)]),
        (([3], pa.int64(), [0.5], pa.float64()), [3.0, 0.5]),
        (([2**53 + 1], pa.int64(), [0.5], pa.float64()), [str(2**53 + 1), "0.5"]),
        (([[1]], pa.list_(pa.int32()), [[2]], pa.list_(pa.int64())), [[1], [2]]),
        (([[]], pa.list_(pa.null()), [["x"]], pa.list_(pa.string())), [[], ["x"]]),
        (([[1]], pa.list_(pa.int64()), [[2**63 + 5]], pa.list_(pa.uint64())), ["[1]", f"[{2**63 + 5}]"]),
        (
            ([timedelta(days=400_000)], pa.duration("s"), [None], pa.duration("ns")),
            [str(400_000 * 86_400), None],
        ),
        (([Decimal("0.123456789")], pa.decimal128(38, 9), [0.5], pa.float64()), ['"0.123456789"', "0.5"]),
        (
            ([datetime(9999, 1, 1)], pa.timestamp("us"), [None], pa.timestamp("ns")),
            ["9999-01-01 00:00:00.000000", None],
        ),
    ],
)
def test_values_of_files_with_other_types_are_exact(tmp_path, columns, kept):
    """Or text, with a warning: never another number."""
    one, one_type, other, other_type = columns
    for name, values, kind in (("a", one, one_type), ("b", other, other_type)):
        table = pa.Table.from_pylist([vote(ord(name))])
        pq.write_table(table.append_column("x", pa.array(values, kind)), tmp_path / f"{name}.parquet")
    given = config(tmp_path, f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", valid_fraction=0.0)
    prepare(given)
    found = [row["x"] for row in read(tmp_path / "out/train")]
    assert [value.strip('"') if isinstance(value, str) else value for value in found] == [
        value.strip('"') if isinstance(value, str) else value for value in kept
    ]
