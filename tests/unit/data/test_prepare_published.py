"""`prepare --format NAME`: published data sets to shards."""

import json

import pytest

from tests.unit.data.prepare_rows import both, config, vote, write, write_57k
from wsdm_ray.config import Columns
from wsdm_ray.data.prepare import prepare
from wsdm_ray.errors import ConfigError
from wsdm_ray.inputs import tables


def test_lmsys_57k_to_shards(tmp_path):
    path = write_57k(
        tmp_path / "train.csv",
        (1, ["Hi", "And,\nnow?"], ["Hello", 'A "quote"'], ["Yo", None], "a"),
        (2, ["one?"], ["x"], ["y"], "b"),
        (3, ["two?"], ["x"], ["y"], "tie"),
        (4, ["three?"], ["x"], [None], "a"),
        (5, ["One?"], ["y"], ["x"], "a"),
    )
    run = prepare(config(tmp_path, path, format="lmsys-57k", valid_fraction=0))
    dropped = {name: rows for name, rows in run["counts"]["dropped"].items() if rows}
    assert dropped == {"null_text": 1, "tie": 1, "duplicate": 1}
    assert run["counts"]["input_rows"] == 5 == run["counts"]["kept"]["train"] + sum(dropped.values())
    models = {"model_a": "gpt-4", "model_b": "koala", "source": "lmsys-57k"}
    assert both(tmp_path) == [
        {
            "id": "1", "prompt": "[turn 1]\nHi\n\n[turn 2]\nAnd,\nnow?",
            "response_a": '[turn 1]\nHello\n\n[turn 2]\nA "quote"',
            "response_b": "[turn 1]\nYo\n\n[turn 2]\n",
            "winner": "model_a", **models,
        },
        {"id": "2", "prompt": "one?", "response_a": "x", "response_b": "y", "winner": "model_b", **models},
    ]  # fmt: skip
    assert run["config"]["format"] == "lmsys-57k"
    soft = prepare(config(tmp_path, path, format="lmsys-57k", valid_fraction=0, ties="soft", restart=True))
    assert soft["counts"]["dropped"]["tie"] == 0
    assert [(row["id"], row["winner"], row["prob_a"]) for row in both(tmp_path)] == [
        ("1", "model_a", None), ("2", "model_b", None), ("3", None, 0.5)
    ]  # fmt: skip


def dialogue(*turns: str) -> str:
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[place % 2]}: {text}" for place, text in enumerate(turns))


def test_hh_rlhf_to_shards(tmp_path):
    rows = [
        {"chosen": dialogue("q0", "good"), "rejected": dialogue("q0", "bad")},
        {"chosen": dialogue("q1", "so", "then?", "good"), "rejected": dialogue("q1", "so", "then?", "bad")},
        {"chosen": dialogue("q2", "so", "then?", "good"), "rejected": dialogue("q2", "no", "then?", "bad")},
        {"chosen": dialogue("q3", "good"), "rejected": dialogue("q3", "")},
        *(
            {"chosen": dialogue(f"q{row}", "good"), "rejected": dialogue(f"q{row}", "bad")}
            for row in range(4, 54)
        ),
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepare(config(tmp_path, str(tmp_path / "train.jsonl"), format="hh-rlhf"))
    dropped = {name: rows for name, rows in run["counts"]["dropped"].items() if rows}
    assert dropped == {"different_prompts": 1, "empty_response": 1}
    assert run["counts"]["input_rows"] == 54
    assert run["counts"]["kept"] == {"train": 46, "valid": 6}
    kept = {row["id"]: row for row in both(tmp_path)}
    assert list(kept["train-0"]) == ["id", "prompt", "response_a", "response_b", "winner", "source"]
    assert kept["train-1"]["prompt"] == "user: q1\n\nassistant: so\n\nuser: then?"
    assert sorted(kept) == sorted(f"train-{row}" for row in range(54) if row not in (2, 3))
    for row in kept.values():
        texts = {"model_a": row["response_a"], "model_b": row["response_b"]}
        assert texts.pop(row["winner"]) == "good"
        assert list(texts.values()) == ["bad"]
    assert {row["winner"] for row in kept.values()} == {"model_a", "model_b"}


def test_sides_do_not_depend_on_the_order_of_files(tmp_path):
    rows = [{"id": number, "prompt": f"p{number}", "chosen": "x", "rejected": "y"} for number in range(40)]
    for name, part in (("a", rows[:20]), ("b", rows[20:])):
        write(tmp_path / f"{name}.parquet", part)
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    options = {"format": "dpo", "valid_fraction": 0, "restart": True}
    kept = []
    for inputs in (paths, paths[::-1]):
        prepare(config(tmp_path, *inputs, **options))
        kept.append({row["id"]: row for row in both(tmp_path)})
    assert kept[0] == kept[1]
    assert len(kept[0]) == 40


def test_nested_columns_pass_through_from_batches_that_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)
    tags = [{"t5": {"flagged": True}}, None, {"t5": {"flagged": False, "probability": 0.5}}]
    asked = {"role": "user", "content": "p"}
    rows = [
        {
            "question_id": f"q{number}",
            "winner": "model_a",
            "toxic_chat_tag": tag,
            "conversation_a": [asked, {"role": "assistant", "content": f"x{number}"}],
            "conversation_b": [asked, {"role": "assistant", "content": f"y{number}"}],
        }
        for number, tag in enumerate(tags)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(config(tmp_path, str(tmp_path / "x.jsonl"), format="lmsys-33k", valid_fraction=0))
    assert [(row["id"], row["toxic_chat_tag"]) for row in both(tmp_path)] == [
        ("q0", {"t5": {"flagged": True, "probability": None}}),
        ("q1", None),
        ("q2", {"t5": {"flagged": False, "probability": 0.5}}),
    ]


def test_made_ids_of_two_files_of_one_name(tmp_path):
    for name in ("helpful", "harmless"):
        (tmp_path / name).mkdir()
        row = {"chosen": dialogue(name, "x"), "rejected": dialogue(name, "y")}
        (tmp_path / name / "train.jsonl").write_text(json.dumps(row))
    inputs = [str(tmp_path / name / "train.jsonl") for name in ("helpful", "harmless")]
    prepare(config(tmp_path, *inputs, format="hh-rlhf", valid_fraction=0))
    assert [row["id"] for row in both(tmp_path)] == ["helpful/train-0", "harmless/train-0"]


def test_columns_and_a_format_of_its_own(tmp_path):
    path = write(tmp_path / "x.parquet", [vote(0)])
    with pytest.raises(ConfigError, match=r"--columns: --format wsdm has its own columns; leave one"):
        prepare(config(tmp_path, path, format="wsdm", columns=Columns(prompt="question")))


def test_malformed_rows_are_counted_by_kind(tmp_path):
    good = [{"chosen": dialogue(f"q{row}", "x"), "rejected": dialogue(f"q{row}", "y")} for row in range(9)]
    bad = [{"chosen": "Hello", "rejected": dialogue("q", "y")}] * 2
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*good, *bad)))
    run = prepare(config(tmp_path, str(path), format="hh-rlhf"))
    assert run["counts"]["dropped"]["malformed"] == 2
    assert run["counts"]["malformed"] == {"not a dialogue": 2}
