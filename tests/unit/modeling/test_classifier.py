"""The classifier: every layout gives what the stock model gives for one sequence."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.modeling.sequences import random_pairs
from wsdm_ray.config import HeadConfig
from wsdm_ray.modeling.classifier import (
    load_network,
    ordering_logits,
)
from wsdm_ray.modeling.families import FAMILIES
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.plan import pair_tokens
from wsdm_ray.packing.ragged import Ragged

LAYOUTS = ("padded", "packed", "shared")


WINDOW = 16


TOLERANCE = 1e-5
"""float32: sums over keys are taken in another order where a row holds other tokens as well."""


@pytest.fixture(scope="module")
def network_of(family_model: Callable[[str], Path]) -> Callable[[str], Any]:
    @functools.cache
    def load(family: str) -> Any:
        network = load_network(
            str(family_model(family)),
            HeadConfig(),
            seed=0,
            device="cpu",
            dtype=torch.float32,
            quantization="none",
        )
        return sharpened(network)

    return load


def sharpened(network: Any) -> Any:
    """With larger projections, so that attention is uneven and a token that must not be seen is felt."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
                parameter.mul_(10)
    return network


@torch.no_grad()
def one_at_a_time(network: Any, prefix: Ragged, suffixes: list[Ragged]) -> torch.Tensor:
    """Logits of each ordering by the stock forward on one sequence: float32 [pairs * orderings, 2]."""
    logits = []
    for pair in range(len(prefix)):
        for suffix in suffixes:
            ids = torch.from_numpy(np.concatenate([prefix[pair], suffix[pair]]).astype(np.int64))
            logits.append(network(input_ids=ids[None], use_cache=False).logits[0])
    return torch.stack(logits)


@torch.no_grad()
def assert_layouts_agree(network: Any, sizes: list[tuple[int, int]], seed: int) -> None:
    prefix, suffixes = random_pairs(sizes, seed)
    expected = one_at_a_time(network, prefix, suffixes)
    for kind in LAYOUTS:
        found = ordering_logits(network, lay_out(kind, prefix, suffixes, np.arange(len(sizes))))
        torch.testing.assert_close(
            found, expected, rtol=0, atol=TOLERANCE, msg=lambda text, kind=kind: f"{kind}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths(network_of, family, sizes, seed):
    assert_layouts_agree(network_of(family), sizes, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_that_matter(network_of, family):
    network = network_of(family)
    for sizes in (
        [
            (3 * WINDOW, 4 * WINDOW),
            (2, 5 * WINDOW),
            (5 * WINDOW, 1),
        ],  # beyond the sliding window on either side
        [(0, 20), (1, 1), (0, 1), (30, 3)],  # no prompt
        [(WINDOW, WINDOW), (WINDOW - 1, 1), (WINDOW, 1), (1, WINDOW)],  # at the window's edge
        [(200, 700)],  # one pair alone, as where it fills the budget
    ):
        assert_layouts_agree(network, sizes, seed=1)


def test_a_pair_that_fills_the_budget(network_of):
    network = network_of("gemma2")
    budget = 256
    prefix, suffixes = random_pairs([(56, 100)], 3)
    assert pair_tokens("shared", prefix.lengths, suffixes[0].lengths, 2).tolist() == [budget]
    layout = lay_out("shared", prefix, suffixes, np.array([0]), row_tokens=budget)
    assert layout.num_tokens == layout.tokens_BT.size == budget
    with torch.no_grad():
        found = ordering_logits(network, layout)
    torch.testing.assert_close(found, one_at_a_time(network, prefix, suffixes), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_to_a_fixed_width_changes_nothing(network_of, family):
    network = network_of(family)
    prefix, suffixes = random_pairs([(20, 10), (3, 30)], 4)
    expected = one_at_a_time(network, prefix, suffixes)
    for kind in LAYOUTS:
        layout = lay_out(kind, prefix, suffixes, np.arange(2), row_tokens=150)
        with torch.no_grad():
            torch.testing.assert_close(ordering_logits(network, layout), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_these_models_feel_a_wrong_mask(network_of, family):
    """Without which the tests above would say little."""
    network = network_of(family)
    prefix, suffixes = random_pairs([(20, 10), (3, 30)], 4)
    expected = one_at_a_time(network, prefix, suffixes)
    layout = lay_out("shared", prefix, suffixes, np.arange(2))
    for name, wrong in (
        ("branches_BT", np.zeros_like(layout.branches_BT)),
        ("groups_BT", np.zeros_like(layout.groups_BT)),
        ("positions_BT", np.arange(layout.tokens_BT.size)[None]),
    ):
        with torch.no_grad():
            found = ordering_logits(network, type(layout)(**{**vars(layout), name: wrong}))
        assert (found - expected).abs().max() > 100 * TOLERANCE, name


@pytest.mark.parametrize("window", ["gemma2", "gemma3_text"])
def test_the_window_is_narrower_than_these_sequences(network_of, window):
    network = network_of(window)
    prefix, suffixes = random_pairs([(40, 20)], 5)
    expected = one_at_a_time(network, prefix, suffixes)
    old = network.config.sliding_window
    assert old == WINDOW
    network.config.sliding_window = 1_000
    try:
        with torch.no_grad():
            found = ordering_logits(network, lay_out("shared", prefix, suffixes, np.array([0])))
    finally:
        network.config.sliding_window = old
    assert (found - expected).abs().max() > 100 * TOLERANCE


def test_a_qwen2_whose_upper_layers_have_a_window(family_model, tmp_path):
    folder = shutil.copytree(family_model("qwen2"), tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    values |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    values["layer_types"] = ["full_attention", "sliding_attention"]
    (folder / "config.json").write_text(json.dumps(values))
    network = load_network(
        str(folder), HeadConfig(), seed=0, device="cpu", dtype=torch.float32, quantization="none"
    )
    assert_layouts_agree(sharpened(network), [(40, 30), (3, 50), (0, 1)], seed=2)
