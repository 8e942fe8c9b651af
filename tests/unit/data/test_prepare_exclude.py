"""`prepare --exclude`: prompts of other sets are left out."""

import pytest

from tests.unit.data.prepare_rows import both, config, read, vote, write, write_57k
from wsdm_ray.config import PrepareConfig
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import ConfigError, DataError, RunMismatchError, StorageError


def test_excluded_prompts(tmp_path):
    rows = [
        vote(0),
        vote(1, prompt="PROMPT  2"),
        vote(2),
        vote(3, prompt="Prompt 2", winner="tie"),
        vote(4, prompt="prompt 3\x00"),
        vote(5),
        vote(6, prompt="prompt 5", response_a="first 5", response_b="second 5"),
    ]
    path = write(tmp_path / "x.parquet", rows)
    exclude = write(tmp_path / "known.parquet", [vote(2), vote(3), vote(9)])
    run = prepare(config(tmp_path, path, exclude=(exclude,), valid_fraction=0))
    dropped = {name: rows for name, rows in run["counts"]["dropped"].items() if rows}
    assert dropped == {"tie": 1, "excluded_prompt": 3, "duplicate": 1}
    assert run["counts"]["input_rows"] == 7 == run["counts"]["kept"]["train"] + sum(dropped.values())
    assert [row["id"] for row in both(tmp_path)] == ["v0", "v5"]
    assert run["counts"]["prompt_groups"] == {"train": 2, "valid": 0}


def test_excluding_the_valid_of_another_run(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(100)])
    prepare(config(tmp_path, path))
    valid = {row["id"] for row in read(tmp_path / "out/valid")}
    again = PrepareConfig(input=(path,), output=str(tmp_path / "b"), exclude=(str(tmp_path / "out/valid"),))
    run = prepare(again)
    assert run["counts"]["dropped"]["excluded_prompt"] == len(valid) == 10
    kept = {row["id"] for side in ("train", "valid") for row in read(tmp_path / "b" / side)}
    assert kept == {f"v{number}" for number in range(100)} - valid


def test_the_33k_without_the_57k(tmp_path):
    path = write_57k(
        tmp_path / "train.csv", (1, ["Hi"], ["x"], ["y"], "a"), (2, ["1", "2"], ["x"] * 2, ["y"] * 2, "b")
    )
    prepare(config(tmp_path, path, format="lmsys-57k", valid_fraction=0))
    rows = [
        {
            "question_id": f"q{number}",
            "winner": "model_a",
            **{
                f"conversation_{side}": [
                    {"role": role, "content": text}
                    for prompt in prompts
                    for role, text in (("user", prompt), ("assistant", side))
                ]
                for side in "ab"
            },
        }
        for number, prompts in enumerate((["Hi"], ["1", "2"], ["1"], ["2", "1"]))
    ]
    inputs = (write(tmp_path / "33k.parquet", rows),)
    exclude = (str(tmp_path / "out/train"),)
    output = str(tmp_path / "extra")
    run = prepare(
        PrepareConfig(input=inputs, output=output, format="lmsys-33k", exclude=exclude, valid_fraction=0)
    )
    assert run["counts"]["dropped"]["excluded_prompt"] == 2
    assert [(row["id"], row["source"]) for row in read(tmp_path / "extra/train")] == [
        ("q2", "lmsys-33k"),
        ("q3", "lmsys-33k"),
    ]


def test_excluded_files_belong_to_the_run(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(20)])
    exclude = write(tmp_path / "known.parquet", [vote(2)])
    prepare(config(tmp_path, path, exclude=(exclude,)))
    with pytest.raises(RunMismatchError, match=r"exclude..*known.parquet: gone"):
        prepare(config(tmp_path, path))
    write(tmp_path / "known.parquet", [vote(2), vote(3)])
    with pytest.raises(RunMismatchError, match=r"exclude..*known.parquet.bytes"):
        prepare(config(tmp_path, path, exclude=(exclude,)))
    with pytest.raises(StorageError, match=r"gone.parquet: not found"):
        prepare(config(tmp_path, path, exclude=(str(tmp_path / "gone.parquet"),)))
    with pytest.raises(ConfigError, match=r"holds the input .*train; choose another folder"):
        prepare(config(tmp_path, path, exclude=(str(tmp_path / "out/train"),)))


def test_when_every_prompt_is_excluded(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(number) for number in range(3)])
    with pytest.raises(
        DataError, match=r"all 3 input rows were dropped \(excluded_prompt 3\); nothing to write"
    ):
        prepare(config(tmp_path, path, exclude=(path,)))
