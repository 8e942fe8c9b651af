"""The model card of a classifier: README.md in its folder, in the form that the Hugging Face Hub shows.

People fill in the licence, so a finished run's card is never written again.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from wsdm_ray.config import TrainConfig
from wsdm_ray.modeling.manifest import Manifest, read_manifest
from wsdm_ray.modeling.plain_lines import plain_lines
from wsdm_ray.modeling.quantization_config import folder_quantization
from wsdm_ray.plain_text import one_line
from wsdm_ray.storage import local_copy
from wsdm_ray.text.encoding import PairEncoder
from wsdm_ray.training.check import CheckedTraining, TrainingCounts

__all__ = ["CARD_FILE", "card_of", "model_card"]

CARD_FILE = "README.md"

LICENCE = "Fill in: the licence of this classifier. The base and the votes have licences that bind it."


def card_of(checkpoint: str, checked: CheckedTraining, metrics: Mapping[str, Any]) -> str:
    """The card of the classifier in a checkpoint folder of a run; `metrics` are those of the checkpoint."""
    manifest = read_manifest(checkpoint)
    begins_with_bos = bool(len(PairEncoder(checkpoint, manifest.text).bos))
    assert manifest.base is not None
    return model_card(
        checked.config,
        manifest,
        checked.counts,
        metrics,
        begins_with_bos=begins_with_bos,
        base_is_ours=folder_quantization(local_copy(manifest.base)) == "w8a8-int8",
    )


def model_card(
    config: TrainConfig,
    manifest: Manifest,
    counts: TrainingCounts,
    metrics: Mapping[str, Any],
    *,
    begins_with_bos: bool,
    base_is_ours: bool = False,
) -> str:
    """The card of a classifier, in Markdown with a front matter in YAML.

    Args:
        manifest: of the published checkpoint. metrics: of that checkpoint, as run.json has them.
        begins_with_bos: whether the tokenizer begins every text with a token of its own.
        base_is_ours: the base is stored in a way that transformers does not read.
    """
    assert manifest.head is not None
    base, name = name_of(config.base), name_of(config.output)
    lines = plain_lines(manifest.head, manifest.text, base=base, folder=name, begins_with_bos=begins_with_bos)
    return f"""\
{front_matter(base)}
# {name}

A classifier that predicts which of two responses to a prompt a person prefers: a LoRA adapter with a head of
two logits (first response wins, second wins) for `{base}`. Made by `train` of wsdm_ray \
{manifest.versions.get("wsdm_ray", "")}.

## Licence

{LICENCE}

## Base

{table(base_rows(base, manifest))}

## Data

{table(data_rows(counts))}

The data sets are not named here: say which votes they are, and whose.

## Training

{table(training_rows(config, counts))}

`run.json` has every option.

## Metrics

{metrics_text(metrics)}

{usage_text(name, base, manifest)}
{"" if base_is_ours else lines_text(lines)}"""


def lines_text(lines: str) -> str:
    """How to load the classifier without this package."""
    return f"""
## With transformers and peft alone

One order, without repair and truncation of texts, with the base as its folder stores it:

```python
{lines}```
"""


def usage_text(name: str, base: str, manifest: Manifest) -> str:
    """How to score with the classifier, on a command line and in Python."""
    return f"""\
## Scoring with it

```bash
wsdm-ray score --model {name} --base {base} --input pairs.parquet --output predictions
```

```python
from wsdm_ray import Judge

judge = Judge("{name}", base="{base}")
print(judge.compare("What is 2 + 2?", "It is 4.", "I do not know.").prob_a)
```

Both average the two orders of the responses{temperature_text(manifest)}."""


def name_of(path: str) -> str:
    """The last part of a path: the card names no place of one machine. A name of the Hub is kept whole."""
    if path.startswith("hf://"):
        return path.removeprefix("hf://")
    return PurePosixPath(path.rstrip("/")).name or path


def front_matter(base: str) -> str:
    plain = re.fullmatch(r"[\w./-]+", base)
    return f"""\
---
library_name: peft
base_model: {base if plain else json.dumps(base)}
pipeline_tag: text-classification
tags:
- preference
- reward-model
- lora
- wsdm_ray
license: other
license_name: fill-in
---
"""


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """A Markdown table of names and values, without those that are None."""
    body = [f"| {name} | {shown(value)} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *body])


def shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{in_cell(str(name))} {shown(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def in_cell(name: str) -> str:
    """A name of the data as text of a Markdown table: no end of a line or cell, no code and no tag."""
    return re.sub(r"([|`<>\[\]*_\\])", r"\\\1", one_line(name))


def base_rows(base: str, manifest: Manifest) -> list[tuple[str, Any]]:
    return [
        ("base", f"`{base}`"),
        ("SHA-256 of its files", f"`{manifest.base_digest}`"),
        ("held in training as", manifest.quantization),
        ("adapter and head started from", manifest.started_from and f"`{manifest.started_from}`"),
        ("SHA-256 of its files", manifest.started_from_digest and f"`{manifest.started_from_digest}`"),
    ]


def data_rows(counts: TrainingCounts) -> list[tuple[str, Any]]:
    return [
        ("train votes", counts.train),
        ("votes of one epoch", counts.epoch_rows),
        ("of one epoch, by source", counts.epoch_rows_by_source),
        ("of one epoch, with teachers", counts.taught_rows),
        ("valid votes", counts.valid),
    ]


def training_rows(config: TrainConfig, counts: TrainingCounts) -> list[tuple[str, Any]]:
    optimizer, lora, text = config.optimizer, config.lora, config.text
    return [
        ("steps", counts.steps),
        ("pairs of a step", config.pairs_per_step),
        ("orders", config.orders),
        ("tokens of an order, at most", text.max_tokens),
        ("truncation", text.truncation),
        ("LoRA", f"r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g} on {', '.join(lora.targets)}"),
        ("head", f"{config.head.kind}, {config.head.precision}"),
        ("optimizer", f"{optimizer.kind}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}"),
        ("learning rate of the head", optimizer.head_learning_rate),
        ("label smoothing", config.objective.label_smoothing or None),
        ("length balance", config.objective.length_balance or None),
        ("swap consistency", config.objective.swap_consistency_weight or None),
        ("seed", str(config.seed)),
    ]


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """What the valid set says of the checkpoint, with intervals."""
    if "valid_accuracy" not in metrics:
        return f"Of step {metrics['step']:,}, the last one. There was no valid set, so nothing was measured."
    low, high = metrics["valid_accuracy_ci95"]
    rows = [
        ("accuracy (95 % interval)", f"{metrics['valid_accuracy']:.4f} ({low:.4f} to {high:.4f})"),
        ("log loss, nats", f"{metrics['valid_log_loss']:.4f}"),
        ("votes", metrics["valid_rows"]),
    ]
    return (
        f"Of step {metrics['step']:,} on the valid votes. The step was chosen by its log loss on them, so "
        f"the figures are a little too good; a test set of other votes says more.\n\n{table(rows)}"
    )


def temperature_text(manifest: Manifest) -> str:
    if manifest.temperature == 1:
        return ""
    return f", and divide log-odds by the temperature {manifest.temperature:g}"
