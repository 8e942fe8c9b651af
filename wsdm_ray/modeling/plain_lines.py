"""The lines of Python that load a classifier of `train` with transformers and peft alone, for its model card.

docs/checkpoint-folder.md shows those of the default options, where a test runs them.
"""

import json

from wsdm_ray.config import HeadConfig, TextConfig

__all__ = ["plain_lines"]

MLP_HEAD = """\
width = model.config.hidden_size
model.score = nn.Sequential(  # the head; its weights come with the adapter
    nn.Dropout(), nn.Linear(width, width // 2), nn.Dropout(), nn.GELU(), nn.Linear(width // 2, 2)
)
"""
BOS = "[tokenizer.bos_token_id]  # for a tokenizer that begins its texts with one, as Gemma's does"


def plain_lines(head: HeadConfig, text: TextConfig, *, base: str, folder: str, begins_with_bos: bool) -> str:
    """Lines of Python that print a probability of one pair, in one order, without truncation.

    Args:
        base: where the lines look for the base. folder: where for the classifier.
        begins_with_bos: whether the tokenizer begins every text with a token of its own.
    """
    mlp = head.kind == "mlp"
    tags = [json.dumps(tag, ensure_ascii=False) for tag in (text.prompt_tag, text.first_tag, text.second_tag)]
    return f"""\
import torch
from peft import PeftModel
{"from torch import nn" + chr(10) if mlp else ""}\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels=2, dtype=torch.float32)
{MLP_HEAD if mlp else ""}\
model = PeftModel.from_pretrained(model, "{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")

prompt, response_a, response_b = "What is 2 + 2?", "It is 4.", "I do not know."
ids = {BOS if begins_with_bos else "[]"}
for text in ({tags[0]}, prompt, {tags[1]}, response_a, {tags[2]}, response_b):
    ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
model.config.pad_token_id = None  # else the last token is not read where it is the padding, too
logits = model(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits
print(logits.softmax(-1)[0, 0].item())  # the probability that response_a wins, in this order
"""
