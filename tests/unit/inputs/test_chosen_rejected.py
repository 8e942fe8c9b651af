"""Rows that say which response was chosen, or better, become votes written out here."""

import pytest

from tests.unit.inputs.published_rows import (
    CALL,
    DPO,
    ULTRAFEEDBACK_RAW,
    assistant,
    pair_of,
    read,
    tool,
    user,
    write,
)
from wsdm_ray.errors import DataError
from wsdm_ray.inputs.formats import FORMATS


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_completions_are_compared_with_the_best(tmp_path, ending):
    third = {"model": "gpt-4", "response": "So.", "fine-grained_score": 4.5, "overall_score": 8.0}
    row = {**ULTRAFEEDBACK_RAW, "completions": [*ULTRAFEEDBACK_RAW["completions"], third]}
    rows, different = read(write(tmp_path, [row, ULTRAFEEDBACK_RAW], ending), "ultrafeedback-raw")
    assert [row["id"] for row in rows] == ["rows-0-1", "rows-0-2", "rows-1"]
    assert different == [False] * 3
    best = ("how can i write it?", "Like this.", "Dunno.")
    assert [pair_of(rows[0]), pair_of(rows[2])] == [best, best]
    assert rows[1]["winner"] == "tie"
    assert {rows[1]["response_a"], rows[1]["response_b"]} == {"Like this.", "So."}
    assert {row["source"] for row in rows} == {"ultrafeedback-raw"}
    assert {row["input_source"] for row in rows} == {"evol_instruct"}


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        (((2.0, 9.0), (3.0, 8.0)), "y"),
        (((None, 6.0), (4.75, 9.5)), "y"),
        ((("N/A", 6.0), (4.75, 5.0)), "x"),
        (((None, 6.0), (4.75, None)), None),
        (((None, None), (None, None)), None),
        (((float("nan"), float("nan")), (2.0, 3.0)), None),
    ],
)
def test_scores_of_completions_are_compared_on_one_scale(scores, winner):
    completions = [
        {"response": name, "fine-grained_score": fine, "overall_score": overall}
        for name, (fine, overall) in zip("xy", scores, strict=True)
    ]
    (row,) = FORMATS["ultrafeedback-raw"].pairs({"instruction": "q", "completions": completions})
    vote = FORMATS["ultrafeedback-raw"].vote(row)
    assert vote
    assert {vote.response_a, vote.response_b} == {"x", "y"}
    assert vote.winner == (None if winner is None else "model_a")
    assert winner in (None, vote.response_a)


@pytest.mark.parametrize("completions", ["Hi", [], [{"response": "x"}], [{"text": "x"}, {"text": "y"}], 5])
def test_what_is_no_list_of_completions(completions):
    form = FORMATS["ultrafeedback-raw"]
    with pytest.raises(
        DataError, match=r"completions is .*, but a list of two or more, each with a response"
    ):
        [form.vote(row) for row in form.pairs({"instruction": "q", "completions": completions})]


REWARD_BENCH_2 = {
    "id": "12", "prompt": "Sky?", "chosen": ["Blue."], "rejected": ["Green.", "Red.", "[1]"],
    "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4, "subset": "Factuality",
}  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_lists_of_answers_are_pairs(tmp_path, ending):
    ties = {**REWARD_BENCH_2, "id": "13", "chosen": ["Blue.", "Azure."], "rejected": ["Green.", "Red."]}
    single = {**REWARD_BENCH_2, "id": "14", "rejected": ["Green."]}
    rows, different = read(write(tmp_path, [REWARD_BENCH_2, ties, single], ending), "dpo")
    assert [row["id"] for row in rows] == ["12-1", "12-2", "12-3", "13-1", "13-2", "13-3", "13-4", "14"]
    assert [pair_of(row)[1:] for row in rows] == [
        ("Blue.", "Green."), ("Blue.", "Red."), ("Blue.", "[1]"),
        ("Blue.", "Green."), ("Blue.", "Red."), ("Azure.", "Green."), ("Azure.", "Red."),
        ("Blue.", "Green."),
    ]  # fmt: skip
    assert {row["prompt"] for row in rows} == {"Sky?"}
    assert [row["subset"] for row in rows] == ["Factuality"] * 8
    assert different == [False] * 8
    assert {row["winner"] for row in rows} == {"model_a", "model_b"}


def test_one_chosen_text_and_a_list_of_rejected_ones(tmp_path):
    row = {**REWARD_BENCH_2, "chosen": "Blue."}
    rows, _ = read(write(tmp_path, [row], "jsonl"), "dpo")
    assert [pair_of(row)[1:] for row in rows] == [("Blue.", "Green."), ("Blue.", "Red."), ("Blue.", "[1]")]


def test_answers_that_are_json_stay_as_they_are():
    lists = {"prompt": "Two names?", "chosen": '["Ann", "Bo"]', "rejected": '["x"]'}
    objects = {
        "prompt": '{"from": "EUR", "to": "USD"}',
        "chosen": '{"from": "EUR", "value": "5"}',
        "rejected": "{}",
    }
    for row in (lists, objects):
        assert FORMATS["dpo"].pairs(row) == [row]
        assert FORMATS["dpo"].vote(row) == (row["prompt"], row["chosen"], row["rejected"], "model_a")


def test_no_answers_are_no_pair():
    form = FORMATS["dpo"]
    with pytest.raises(DataError, match=r"chosen is \['Blue.'\] and rejected \[\]; both must be texts"):
        [form.vote(row) for row in form.pairs({**REWARD_BENCH_2, "rejected": []})]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_reward_bench_and_skywork(tmp_path, ending):
    bench = {
        "prompt": "Sky?", "chosen": "Blue.", "chosen_model": "m", "rejected": "Green.", "rejected_model": "n",
        "subset": "alpacaeval-easy", "id": 0,
    }  # fmt: skip
    rows, _ = read(write(tmp_path, [bench], ending), "dpo")
    assert pair_of(rows[0]) == ("Sky?", "Blue.", "Green.")
    assert str(rows[0]["id"]) == "0"
    skywork = {
        "chosen": [user("Sky?"), assistant("Blue.")], "rejected": [user("Sky?"), assistant("Green.")],
        "source": "magpie_ultra",
    }  # fmt: skip
    rows, _ = read(write(tmp_path, [skywork], ending), "dpo")
    assert pair_of(rows[0]) == ("Sky?", "Blue.", "Green.")
    assert (rows[0]["id"], rows[0]["source"]) == ("rows-0", "magpie_ultra")


GPT = {"chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "Green."}}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversations": [{"from": "human", "value": "Sky?"}], **GPT}, "Sky?"),
        (
            {"conversations": [{"from": "human", "value": "Sky?"}], "system": "Be brief.", **GPT},
            "system: Be brief.\n\nuser: Sky?",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "6 x 7?"},
                    {"from": "function_call", "value": '{"name": "mul"}'},
                    {"from": "observation", "value": "42"},
                ],
                **GPT,
            },
            'user: 6 x 7?\n\nfunction_call: {"name": "mul"}\n\nobservation: 42',
        ),
        ({"conversations": [user("Sky?")], "chosen": [assistant("Blue.")], "rejected": assistant("Green.")},
         "Sky?"),
        (
            {"conversations": {"from": "human", "value": "Sky?"}, "chosen": "Blue.", "rejected": "Green."},
            "Sky?",
        ),
        ({"prompt": "Sky?", **GPT}, "Sky?"),
        (
            {
                "chosen": [{"from": "human", "value": "Sky?"}, GPT["chosen"]],
                "rejected": [{"from": "human", "value": "Sky?"}, GPT["rejected"]],
            },
            "Sky?",
        ),
    ],
)  # fmt: skip
def test_shapes_of_sharegpt(tmp_path, ending, row, prompt):
    rows, different = read(write(tmp_path, [row], ending), "dpo")
    assert [pair_of(row) for row in rows] == [(prompt, "Blue.", "Green.")]
    assert different == [False]
    assert rows[0].get("system") == row.get("system")


def test_a_tool_in_a_dialogue():
    before = [user("6 x 7?"), CALL, tool("42")]
    row = {"chosen": [*before, assistant("42.")], "rejected": [*before, assistant("41.")]}
    prompt = 'user: 6 x 7?\n\nassistant: [{"name": "add"}]\n\ntool: 42'
    for form in ("dpo", "orpo-dpo-mix", "ultrafeedback"):
        assert FORMATS[form].vote(row) == (prompt, "42.", "41.", "model_a")


def test_calls_of_tools_are_answers():
    row = {"prompt": "6 x 7?", "chosen": [CALL], "rejected": [{"from": "function_call", "value": "sub()"}]}
    assert FORMATS["dpo"].vote(row) == ("6 x 7?", '[{"name": "add"}]', "sub()", "model_a")


def test_arrays_as_numpy_shows_them_are_named():
    array = "[{'content': 'Sky?', 'role': 'user'}\n {'content': 'Blue.', 'role': 'assistant'}]"
    for form in ("dpo", "orpo-dpo-mix"):
        with pytest.raises(
            DataError, match=r"chosen is .*; it is a numpy array as text: write parquet, or JS"
        ):
            FORMATS[form].vote({**DPO, "chosen": array, "rejected": array})


def test_nan_is_null():
    row = {**DPO, "chosen": float("nan")}
    vote = FORMATS["dpo"].vote(row)
    assert vote
    assert vote[:3] == (None, None, None)
