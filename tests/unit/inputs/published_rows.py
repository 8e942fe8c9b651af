"""One row of each published format, and how a file of such rows is written and read."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wsdm_ray.config import VoteFormat
from wsdm_ray.inputs.faults import DIFFERENT_PROMPTS, FaultCounts
from wsdm_ray.inputs.files import list_inputs
from wsdm_ray.inputs.rows import Reading, read_rows


def user(text: str | None) -> dict:
    return {"content": text, "role": "user"}


def assistant(text: str | None) -> dict:
    return {"content": text, "role": "assistant"}


def system(text: str | None) -> dict:
    return {"content": text, "role": "system"}


def tool(text: str) -> dict:
    return {"role": "tool", "content": text}


CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
WSDM = {
    "id": "00007cff95d7f7974642a785aca248b0", "prompt": "вправе ли", "response_a": "Да", "response_b": "Нет",
    "winner": "model_a", "model_a": "o1-preview", "model_b": "reka-flash", "language": "Russian",
}  # fmt: skip
LMSYS_57K = {
    "id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613",
    "prompt": ["Is it moral?", "And now?"],
    "response_a": ["It depends.", "Yes."], "response_b": ["No.", None],
    "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
}  # fmt: skip
LMSYS_33K = {
    "question_id": "58210e39b3fd4441a2bd4a518bb44c2d", "model_a": "chatglm-6b", "model_b": "koala-13b",
    "winner": "tie (bothbad)", "judge": "arena_user_973",
    "conversation_a": [user("What is it?"), assistant("A test.")],
    "conversation_b": [user("What is it?"), assistant("An exam.")],
    "turn": 1, "anony": True, "language": "English", "tstamp": 1682351591.1322,
    "openai_moderation": {"categories": {"hate": False}, "category_scores": {"hate": 1e-5}, "flagged": False},
    "toxic_chat_tag": {"roberta-large": {"flagged": False, "probability": 0.01}},
}  # fmt: skip


def parts(role: str, *texts: str) -> dict:
    """A message as arena-140k has it."""
    return {
        "role": role,
        "content": [{"type": "text", "text": text, "image": None, "mimeType": None} for text in texts],
    }


ARENA_140K = {
    "id": "c4b9710c-8d64-4bee-a0b0-94637ae4cc65", "model_a": "gemini-2.5-pro", "model_b": "claude-3-7-sonnet",
    "winner": "both_bad", "evaluation_session_id": "a333a685", "evaluation_order": 2,
    "conversation_a": [parts("user", "What is it?"), parts("assistant", "A test.")],
    "conversation_b": [parts("user", "What is it?"), parts("assistant", "An exam.")],
    "full_conversation": [
        {
            "user": parts("user", "Hi"),
            "model_side_a": parts("assistant", "Hello"), "model_side_b": parts("assistant", "Yo"),
        },
        {
            "user": parts("user", "What is it?"),
            "model_side_a": parts("assistant", "A test."), "model_side_b": parts("assistant", "An exam."),
        },
    ],
    "conv_metadata": {"sum_assistant_a_tokens": 3, "turns": 1},
    "category_tag": {"math_v0.1": {"math": False}},
    "language": "en", "is_code": False, "timestamp": "2025-05-29T14:48:41.602925",
}  # fmt: skip
ULTRAFEEDBACK = {
    "prompt": "how can i write it?", "prompt_id": "5b4a9b9f",
    "chosen": [user("how can i write it?"), assistant("Like this.")],
    "rejected": [user("how can i write it?"), assistant("Dunno.")],
    "messages": [user("how can i write it?"), assistant("Like this.")],
    "score_chosen": 8.5, "score_rejected": 6.0,
}  # fmt: skip
ORPO = {
    "source": "Airoboros",
    "chosen": [system("Be brief."), user("Hi"), assistant("Hello"), user("And?"), assistant("Good.")],
    "rejected": [system("Be brief."), user("Hi"), assistant("Hello"), user("And?"), assistant("Bad.")],
    "prompt": "Hi", "question": None,
}  # fmt: skip
HH = {
    "chosen": "\n\nHuman: What are some words?\n\nAssistant: Here’s a list.\n\nAss, dick,"
    "\n\nHuman: Which one?\n\nAssistant: I haven't thought.",
    "rejected": "\n\nHuman: What are some words?\n\nAssistant: Here’s a list.\n\nAss, dick,"
    "\n\nHuman: Which one?\n\nAssistant: Ass.",
}
HH_PROMPT = "user: What are some words?\n\nassistant: Here’s a list.\n\nAss, dick,\n\nuser: Which one?"
ULTRAFEEDBACK_RAW = {
    "source": "evol_instruct", "instruction": "how can i write it?", "models": ["alpaca-7b", "bard"],
    "completions": [
        {"model": "alpaca-7b", "response": "Dunno.", "fine-grained_score": 1.5, "overall_score": 10.0},
        {"model": "bard", "response": "Like this.", "fine-grained_score": 4.5, "overall_score": 7.5},
    ],
    "correct_answers": ["None"], "incorrect_answers": ["None"],
}  # fmt: skip
HELPSTEER2 = {
    "split": "train", "prompt": "Sky?", "response_1": "Blue.", "response_2": "Green.",
    "preference_strength": -2, "preference_statement": "Response 1 is better than Response 2",
}  # fmt: skip
HELPSTEER3 = {
    "domain": "general", "language": "english", "context": [user("Hi"), assistant("Hello"), user("Sky?")],
    "response1": "Green.", "response2": "Blue.", "overall_preference": 1,
    "individual_preference": [{"score": 1, "reasoning": "It is true."}],
}  # fmt: skip
DPO = {"id": 7, "prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
ROWS = {
    "wsdm": WSDM, "lmsys-57k": LMSYS_57K, "lmsys-33k": LMSYS_33K, "ultrafeedback": ULTRAFEEDBACK,
    "orpo-dpo-mix": ORPO, "hh-rlhf": HH, "dpo": DPO, "arena-140k": ARENA_140K,
    "ultrafeedback-raw": ULTRAFEEDBACK_RAW, "helpsteer2": HELPSTEER2, "helpsteer3": HELPSTEER3,
}  # fmt: skip

A_IDS = ["rows-1", "rows-2"]
"""Ids by whose hash the chosen response is response_a."""


def write(folder: Path, rows: list[dict], ending: str = "parquet") -> str:
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                packed = {
                    name: json.dumps(value) for name, value in row.items() if isinstance(value, list | dict)
                }
                writer.writerow({**row, **packed})
    return str(path)


def read(path: str, form: VoteFormat, **options) -> tuple[list[dict], list[bool]]:
    """The rows, and which of them have different prompts; most rows malformed is an error, as in a job."""
    rows, different, counts = [], [], FaultCounts()
    for file in list_inputs([path]):
        for table, faults in read_rows(file, Reading(format=form, **options)):
            counts.add(len(table), faults, file.path, len(rows), table["id"])
            rows += table.to_pylist()
            different += [
                row in faults and faults[row].reason == DIFFERENT_PROMPTS for row in range(len(table))
            ]
    counts.check()
    return rows, different


def pair_of(row: dict) -> tuple:
    """Prompt, winning text, losing text of a canonical row."""
    a, b = row["response_a"], row["response_b"]
    return (row["prompt"], a, b) if row["winner"] == "model_a" else (row["prompt"], b, a)
