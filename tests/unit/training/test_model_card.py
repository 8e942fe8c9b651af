"""The model card: front matter that YAML reads, base, data, metrics with intervals, and how to score."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.manifest import Manifest
from wsdm_ray.modeling.plain_lines import plain_lines
from wsdm_ray.presets import tiny
from wsdm_ray.training.check import TrainingCounts
from wsdm_ray.training.model_card import model_card
from wsdm_ray.training.publish import publish

CONFIG = tiny("/home/someone/gemma-tiny", ("/home/someone/votes",), "runs/my-judge/")
MANIFEST = Manifest(
    kind="adapter", base=CONFIG.base, base_digest="ab" * 32, quantization="bnb-int8", head=HeadConfig(),
    text=CONFIG.text, temperature=1.5, versions={"wsdm_ray": "0.2.0"},
)  # fmt: skip
COUNTS = TrainingCounts(train=12_345, epoch_rows=20_000, steps=625, valid=804)
METRICS = {
    "step": 600, "loss": 0.5, "valid_accuracy": 0.785, "valid_accuracy_ci95": [0.755, 0.8124],
    "valid_log_loss": 0.468, "valid_rows": 804,
}  # fmt: skip


def card(metrics: dict[str, Any] | None = None, **changes: Any) -> str:
    config = dataclasses.replace(CONFIG, **changes)
    return model_card(config, MANIFEST, COUNTS, METRICS if metrics is None else metrics, begins_with_bos=True)


def test_the_front_matter_is_what_the_hub_reads():
    _, front, body = card().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "base_model": "gemma-tiny",
        "pipeline_tag": "text-classification",
        "tags": ["preference", "reward-model", "lora", "wsdm_ray"],
        "license": "other",
        "license_name": "fill-in",
    }
    assert body.lstrip().startswith("# my-judge\n")
    assert "base_model: google/gemma-2-2b\n" in card(base="hf://google/gemma-2-2b")


def test_the_card_says_what_was_trained_on_what_and_how_well():
    text = card()
    for line in (
        "| base | `gemma-tiny` |",
        f"| SHA-256 of its files | `{'ab' * 32}` |",
        "| held in training as | bnb-int8 |",
        "| train votes | 12,345 |",
        "| votes of one epoch | 20,000 |",
        "| valid votes | 804 |",
        "| steps | 625 |",
        "| orders | both |",
        "| tokens of an order, at most | 512 |",
        "| accuracy (95 % interval) | 0.7850 (0.7550 to 0.8124) |",
        "| log loss, nats | 0.4680 |",
        "wsdm-ray score --model my-judge --base gemma-tiny --input pairs.parquet --output predictions",
        'judge = Judge("my-judge", base="gemma-tiny")',
    ):
        assert line in text.splitlines(), line
    assert "divide log-odds by the temperature 1.5." in text
    assert "Fill in: the licence" in text
    assert "None" not in text.partition("## With transformers")[0]
    assert "someone" not in text, "no path of this machine"
    assert (
        plain_lines(HeadConfig(), CONFIG.text, base="gemma-tiny", folder="my-judge", begins_with_bos=True)
        in text
    )
    assert len(re.findall("^```", text, re.MULTILINE)) == 6


def test_no_lines_are_shown_that_cannot_run():
    """Transformers reads no base in int8 rows."""
    text = model_card(CONFIG, MANIFEST, COUNTS, METRICS, begins_with_bos=True, base_is_ours=True)
    assert "from transformers" not in text
    assert len(re.findall("^```", text, re.MULTILINE)) == 4


def test_without_a_valid_set_nothing_is_claimed():
    text = card({"step": 625, "loss": 0.5})
    assert "There was no valid set, so nothing was measured." in text
    assert "accuracy" not in text


def test_the_card_is_published_and_may_be_edited_or_deleted(tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "wsdm_ray.json").write_text("{}")
    published = publish(str(tmp_path / "checkpoint"), str(tmp_path / "out"), card())
    assert (tmp_path / "out" / "README.md").read_text() == card()
    assert published == {"wsdm_ray.json": None}


def test_names_of_the_data_and_of_folders_break_neither_table_nor_front_matter():
    name = "a|b\n| x | <script>`code`[y](z)\x1b"
    counts = dataclasses.replace(COUNTS, epoch_rows_by_source={name: 5})
    text = model_card(
        dataclasses.replace(CONFIG, base="/bases/a: b\nc"), MANIFEST, counts, METRICS, begins_with_bos=True
    )
    [line] = (line for line in text.splitlines() if "by source" in line)
    shown = r"a\|b \| x \| \<script\>\`code\`\[y\](z)\\x1b 5"
    assert line == f"| of one epoch, by source | {shown} |"
    _, front, _ = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "a: b\nc"
