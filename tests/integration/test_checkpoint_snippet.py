"""The lines of docs/checkpoint-folder.md, with transformers and peft alone, give our probabilities."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import NO_COMPILER
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.scorers import TransformersScorer
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.probabilities import to_probability
from wsdm_ray.text.encoding import PairEncoder

PAGE = Path(__file__).parents[2] / "docs" / "checkpoint-folder.md"


def test_the_loading_lines_give_the_probability_that_score_gives(classifier, int8_base, tmp_path):
    (tmp_path / "base").symlink_to(int8_base)
    (tmp_path / "model").symlink_to(classifier)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | NO_COMPILER,
    )
    network, manifest = load_classifier(str(classifier), precision="bnb-int8")
    pair = re.search(r'= "(.*)", "(.*)", "(.*)"\n', code)
    assert pair
    encoded = PairEncoder(str(classifier), manifest.text).encode(*([text] for text in pair.groups()))
    with torch.inference_mode():
        scorer = TransformersScorer(network)
        scores = log_odds(scorer, encoded, (Ordering.AB,), layout="padded", token_budget=1024)
    ours = float(to_probability(scores.log_odds_NO)[0, 0])
    assert float(done.stdout.split()[-1]) == pytest.approx(ours, abs=1e-5)
