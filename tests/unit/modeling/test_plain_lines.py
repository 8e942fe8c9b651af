"""The lines for transformers and peft: those of the docs, and those of other heads, tags and tokenizers."""

import re
from pathlib import Path

from wsdm_ray.config import HeadConfig, TextConfig
from wsdm_ray.modeling.plain_lines import plain_lines

PAGE = Path(__file__).parents[3] / "docs" / "checkpoint-folder.md"


def test_the_docs_show_the_lines_of_the_default_options():
    (shown,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert shown == plain_lines(HeadConfig(), TextConfig(), base="base", folder="model", begins_with_bos=True)


def test_lines_of_other_options():
    text = TextConfig(prompt_tag='Question "q": ', first_tag="\n1: ", second_tag="\n\t2: ")
    lines = plain_lines(HeadConfig(kind="linear"), text, base="b", folder="f", begins_with_bos=False)
    compile(lines, "lines", "exec")
    assert "nn." not in lines
    assert "ids = []\n" in lines
    assert (
        r"""for text in ("Question \"q\": ", prompt, "\n1: ", response_a, "\n\t2: ", response_b):""" in lines
    )
    assert 'from_pretrained("b", num_labels=2' in lines
    assert 'PeftModel.from_pretrained(model, "f")' in lines
