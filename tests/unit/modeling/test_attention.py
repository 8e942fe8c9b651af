"""Masks: who sees whom, by hand and by a loop that follows the rule word for word."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsdm_ray.modeling.attention import attention_implementation, dense_masks, visible
from wsdm_ray.packing.layouts import lay_out
from wsdm_ray.packing.ragged import Ragged


class Config:
    """As much of a model's config as masks need."""

    def __init__(self, **values):
        vars(self).update(values)


def layout_of(kind: str, prefixes: list[int], suffixes: list[int], row_tokens: int = 0):
    """A layout of both orderings of pairs with prefixes and suffixes of these lengths."""
    prefix, suffix = (
        Ragged.from_lists([np.ones(size, np.int32) for size in sizes]) for sizes in (prefixes, suffixes)
    )
    return lay_out(kind, prefix, [suffix, suffix], np.arange(len(prefixes)), row_tokens=row_tokens)


def rows(seen: torch.Tensor) -> list[str]:
    return ["".join(".x"[int(cell)] for cell in row) for row in seen.tolist()]


def test_shared_by_hand():
    # one pair: two prompt tokens, then two tokens of each ordering; a second pair; one of padding
    layout = layout_of("shared", [2, 0], [2, 1], row_tokens=9)
    assert rows(visible(layout, None, "cpu")[0]) == [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xx..x....",
        "xx..xx...",
        "......x..",
        ".......x.",
        "........x",
    ]


def test_shared_with_a_window_by_hand():
    layout = layout_of("shared", [2], [2])
    # The second ordering's first token stands at position 2: it sees the prompt's second, not index 3.
    assert rows(visible(layout, 2, "cpu")[0]) == [
        "x.....",
        "xx....",
        ".xx...",
        "..xx..",
        ".x..x.",
        "....xx",
    ]


def test_packed_by_hand():
    assert rows(visible(layout_of("packed", [1], [1]), None, "cpu")[0]) == ["x...", "xx..", "..x.", "..xx"]


def test_padded_by_hand():
    first, second, third, _ = visible(layout_of("padded", [1, 0], [1, 1]), None, "cpu")
    assert rows(first) == rows(second) == ["x.", "xx"]
    assert rows(third) == ["x.", ".x"], "padding sees padding alone, so that no row is empty"


@pytest.mark.parametrize("kind", ["padded", "packed", "shared"])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 5),
    padding=st.integers(0, 30),
)
def test_the_rule(kind, sizes, window, padding):
    layout = layout_of(kind, [size[0] for size in sizes], [size[1] for size in sizes], padding)
    seen = visible(layout, window, "cpu").numpy()
    groups, branches, positions = layout.groups_BT, layout.branches_BT, layout.positions_BT
    for b, q, k in np.ndindex(seen.shape):
        distance = positions[b, q] - positions[b, k]
        expected = (
            groups[b, q] == groups[b, k]
            and branches[b, k] in (0, branches[b, q])
            and distance >= 0
            and (window is None or distance < window)
        )
        assert seen[b, q, k] == expected
    assert seen.any(axis=2).all(), "softmax over nothing is not a number"


def test_one_mask_for_layers_that_attend_alike():
    mask = dense_masks(layout_of("packed", [1], [1]), Config(), torch.float32, "cpu")
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (1, 1, 4, 4)
    assert mask.dtype == torch.float32
    assert (mask == 0).sum() == 6
    assert mask.min() == torch.finfo(torch.float32).min


def test_a_mask_for_each_kind_of_layer():
    config = Config(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=2)
    layout = layout_of("shared", [3], [2])
    masks = dense_masks(layout, config, torch.bfloat16, "cpu")
    assert isinstance(masks, dict)
    assert sorted(masks) == ["full_attention", "sliding_attention"]
    for kind, window in (("full_attention", None), ("sliding_attention", 2)):
        assert masks[kind].dtype == torch.bfloat16
        assert torch.equal(masks[kind][:, 0] == 0, visible(layout, window, "cpu"))


def test_an_unknown_kind_of_layer():
    with pytest.raises(ValueError, match=r"layers of kind \['linear_attention'\] have no mask here"):
        dense_masks(
            layout_of("packed", [1], [1]), Config(layer_types=["linear_attention"]), torch.float32, "cpu"
        )


def test_soft_capped_scores_are_computed_eagerly():
    assert attention_implementation(Config(attn_logit_softcapping=50.0)) == "eager"
    assert attention_implementation(Config(attn_logit_softcapping=None)) == "sdpa"
    assert attention_implementation(Config()) == "sdpa"
