"""The speeds in the package are those of the benchmarks' files."""

import ast
import json
from pathlib import Path

import pytest

from wsdm_ray.preflight.estimate import speed_of
from wsdm_ray.preflight.measured import MEASURED, MODELS, SIZES, Measured

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.mark.parametrize("measured", MEASURED, ids=lambda each: f"{each.source} {each.way}")
def test_each_speed_is_in_the_file_that_it_names(measured: Measured):
    report = json.loads((RESULTS / measured.source).read_text())
    [row] = [row for row in report["results"]["speed"] if row["way"] == measured.way]
    assert measured.tokens_per_second == round(row["tokens_per_second"]["median"])
    assert {measured.gpu} == set(report["hardware"]["gpus"])
    assert measured.model == report["settings"]["shape"]
    assert measured.memory_gib == report["settings"].get("memory_gib")
    assert measured.source.startswith(measured.job)
    named = {"fp8": "w8a8-fp8", "int8": "w8a8-int8"}.get(measured.way.split()[0], measured.way.split()[0])
    assert measured.precision == named


def test_models_are_those_that_the_benchmarks_make():
    tree = ast.parse((BENCHMARKS / "synthetic.py").read_text())
    [shapes] = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value]
    made = {name: sizes for name, (_, sizes) in ast.literal_eval(shapes).items()}
    for name, sizes in SIZES.items():
        assert sizes == {key: made[name][key] for key in sizes}
        assert {"head_dim", "num_key_value_heads"} & set(made[name]) <= set(sizes)


def test_no_speed_is_there_twice():
    keys = [(each.job, each.gpu, each.model, each.precision, each.memory_gib) for each in MEASURED]
    assert len(set(keys)) == len(keys)


def test_estimates_between_models_that_were_timed_are_near_what_was_measured():
    """What `speed_of` would say of each model, had it not been timed itself."""
    for each in MEASURED:
        others = [other for other in MEASURED if other.model != each.model]
        speed = speed_of(each.job, each.gpu, each.precision, MODELS[each.model], others)
        if speed.tokens_per_second is not None and each.memory_gib in (None, 79):
            apart = speed.tokens_per_second / each.tokens_per_second - 1
            assert abs(apart) < (0.05 if each.job == "score" else 0.4), (each, speed)
