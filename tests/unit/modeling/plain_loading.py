"""How to use a checkpoint folder of `train` or `quantize` with transformers and PEFT alone.

Run as a script, it prints the logits of one pair for each folder named.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig


def load(folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """The model in evaluation mode, its tokenizer, and what `wsdm_ray.json` says."""
    about = json.loads((Path(folder) / "wsdm_ray.json").read_text())
    source = about["base"] if about["kind"] == "adapter" else folder
    options: dict[str, Any] = {"num_labels": 2, "dtype": torch.float32}
    stored = json.loads((Path(source) / "config.json").read_text())
    if (
        about["quantization"] == "bnb-int8" and "quantization_config" not in stored
    ):  # quantized as it was loaded
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForSequenceClassification.from_pretrained(source, **options)
    width = model.config.hidden_size
    model.score = nn.Sequential(  # our head in place of the stock one
        nn.Dropout(0.1),
        nn.Linear(width, width // 2),
        nn.Dropout(0.1),
        nn.GELU(),
        nn.Linear(width // 2, 2),
    )
    if about["kind"] == "adapter":
        model = PeftModel.from_pretrained(model, folder)  # fills the head, too
    else:
        head = {}
        for path in Path(folder).glob("model*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in {f"score.{name}" for name in model.score.state_dict()} & set(file.keys()):
                    head[name.removeprefix("score.")] = file.get_tensor(name)
        model.score.load_state_dict(head)
    return model.eval(), AutoTokenizer.from_pretrained(folder), about


def token_ids(
    tokenizer: Any, text: dict[str, Any], prompt: str, response_a: str, response_b: str
) -> list[int]:
    """One ordering, untruncated: each part is tokenized by itself, and no string in it is a special token."""
    parts = [text["prompt_tag"], prompt, text["first_tag"], response_a, text["second_tag"], response_b]
    ids = [tokenizer.bos_token_id]
    for part in parts:
        ids += tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


@torch.no_grad()
def logits(folder: str, prompt: str, response_a: str, response_b: str) -> list[float]:
    """(response_a wins, response_b wins), as the stock forward gives them."""
    model, tokenizer, about = load(folder)
    ids = token_ids(tokenizer, about["text"], prompt, response_a, response_b)
    return model(input_ids=torch.tensor([ids])).logits[0].tolist()


if __name__ == "__main__":
    pair = json.loads(sys.argv[1])
    print(json.dumps({folder: logits(folder, *pair) for folder in sys.argv[2:]}))
    assert "wsdm_ray" not in sys.modules
