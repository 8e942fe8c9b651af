"""Int8 weights with activations as they are: the product, its gradient, and what it saves."""

from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

from wsdm_ray.modeling.weight_only_int8 import WeightOnlyInt8Linear, dequantized, use_weight_only_int8


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(0)
    made: Any = Linear8bitLt(24, 16, bias=True, has_fp16_weights=False, threshold=6.0)
    made.weight = Int8Params(torch.randn(16, 24), requires_grad=False)
    made.bias.data.uniform_().requires_grad_(False)
    return use_weight_only_int8(made.to("cpu"))


def test_the_product_is_that_of_the_dequantized_weight(layer: Any):
    assert type(layer) is WeightOnlyInt8Linear
    x = torch.randn(3, 5, 24, requires_grad=True)
    x.data[0, 0, 0] = 50.0  # LLM.int8() would multiply this column apart
    found = layer(x)
    weight = dequantized(layer.state.CB, layer.state.SCB, torch.float32)
    expected = torch.nn.functional.linear(x, weight, layer.bias)
    assert torch.equal(found, expected)
    weights = torch.randn(3, 5, 16)
    gradients = [torch.autograd.grad((each * weights).sum(), x)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_127_is_the_largest_value_of_a_row():
    values = torch.tensor([[127, -127, 0], [127, -64, 1]], dtype=torch.int8)
    found = dequantized(values, torch.tensor([0.5, 254.0]), torch.float32)
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.5, 0.0], [254.0, -128.0, 2.0]]))  # float32


def test_a_row_does_not_depend_on_its_neighbours(layer: Any):
    rows = torch.randn(2, 24)
    rows[1] *= 100
    torch.testing.assert_close(layer.eval()(rows)[:1], layer(rows[:1]))  # but for sums in another order


def test_it_computes_in_the_type_of_autocast(layer: Any):
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 24)).dtype == torch.bfloat16
