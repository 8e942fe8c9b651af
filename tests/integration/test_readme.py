"""What the README shows works: its Python lines give our probabilities, its command lines parse."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro

from wsdm_ray import config
from wsdm_ray.modeling.loading import load_classifier
from wsdm_ray.modeling.scorers import TransformersScorer
from wsdm_ray.schema import Ordering
from wsdm_ray.scoring.engine import log_odds
from wsdm_ray.scoring.probabilities import to_probability
from wsdm_ray.text.encoding import PairEncoder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line.split("#")[0] for line in text.splitlines() if "python -m jobs." in line]


def test_the_loading_lines_give_the_probability_that_score_gives(classifier, int8_base, tmp_path):
    (tmp_path / "base").symlink_to(int8_base)
    (tmp_path / "model").symlink_to(classifier)
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    network, manifest = load_classifier(str(classifier), precision="bnb-int8")
    pair = re.search(r'= "(.*)", "(.*)", "(.*)"\n', code)
    assert pair
    encoded = PairEncoder(str(classifier), manifest.text).encode(*([text] for text in pair.groups()))
    with torch.inference_mode():
        scores = log_odds(
            TransformersScorer(network), encoded, (Ordering.AB,), layout="padded", token_budget=1024
        )
    assert float(done.stdout.split()[-1]) == pytest.approx(
        float(to_probability(scores.log_odds_NO)[0, 0]), abs=1e-5
    )


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_parses(line: str):
    job, options = re.search(r"python -m jobs\.(\w+) (.*)", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert importlib.util.find_spec(f"jobs.{job}")
    tyro.cli(getattr(config, f"{job.capitalize()}Config"), args=shlex.split(options))


def test_every_job_stands_in_the_tree():
    jobs = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")}
    tree = README.split("jobs/               thin")[1].splitlines()[1]
    assert jobs == set(tree.split())


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\bQS_|TODO|<!--", README)
