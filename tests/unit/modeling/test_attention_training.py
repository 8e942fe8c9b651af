"""Backends of attention for networks of transformers: which is chosen, and that both say the same."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.modeling.attention_layouts import Config, layout_of
from wsdm_ray.modeling.attention import attention_mask, training_backend
from wsdm_ray.modeling.attention.training import VARLEN, varlen_attention

SOFTCAPPED_CONFIG = Config(
    model_type="gemma2", attn_logit_softcapping=50.0, layer_types=["full_attention"], sliding_window=16
)


def test_soft_capped_scores_and_dropout_are_computed_eagerly():
    for config, implementation in (
        (SOFTCAPPED_CONFIG, "eager"),
        (Config(model_type="gemma2", attn_logit_softcapping=None), VARLEN),
        (Config(attn_logit_softcapping=50.0), VARLEN),  # a family whose code does not read it
        (Config(attention_dropout=0.1), "eager"),
        (Config(attention_dropout=0.0), VARLEN),
        (Config(), VARLEN),
    ):
        assert training_backend(config).implementation == implementation
        assert training_backend(config).supports_varlen == (implementation == VARLEN)


@pytest.mark.parametrize("window", [None, 3])
@given(
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=4),
    padding=st.integers(0, 5),
)
def test_attention_by_bounds_is_attention_by_masks(window, sizes, padding):
    prefixes, suffixes = zip(*sizes, strict=True)
    used = 2 * sum(prefixes) + 2 * sum(suffixes)
    layout = layout_of("packed", list(prefixes), list(suffixes), row_tokens=used + padding)
    arguments = training_backend(Config()).arguments(layout, torch.float32, "cpu")
    assert arguments.pop("attention_mask").numel() == 1
    random = torch.Generator().manual_seed(0)
    tokens = used + padding
    q, k, v = (torch.randn(1, heads, tokens, 8, generator=random, requires_grad=True) for heads in (4, 2, 2))
    module: Any = torch.nn.Identity()
    module.num_key_value_groups = 2
    mask = torch.where(attention_mask(layout, window, "cpu"), 0.0, torch.finfo(torch.float32).min)[:, None]
    expected, _ = varlen_attention(module, q, k, v, mask, scaling=0.3)
    found, _ = varlen_attention(module, q, k, v, None, scaling=0.3, sliding_window=window, **arguments)
    real = torch.from_numpy(layout.groups_BT[0] >= 0)
    # Sums in another order.
    torch.testing.assert_close(found[:, real], expected[:, real], atol=1e-6, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=random) * real[:, None, None]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_attention_goes_by_masks_where_bounds_do_not_tell():
    for layout, config in (
        (layout_of("shared", [2], [2]), Config()),
        (layout_of("padded", [2], [2]), Config()),
        (layout_of("packed", [2], [2]), SOFTCAPPED_CONFIG),
        (layout_of("packed", [2], [2]), Config(attention_dropout=0.1)),
    ):
        assert set(training_backend(config).arguments(layout, torch.float32, "cpu")) == {"attention_mask"}
