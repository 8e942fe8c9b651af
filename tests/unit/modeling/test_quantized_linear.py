"""Products in 8 bit: near the exact ones, also where a few columns are far larger than the others."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from wsdm_ray.modeling.quantized_linear import hadamard, hadamard_rotate, linear, pack_weight


def error(x: Tensor, weight: Tensor, precision: str) -> float:
    """How far the products are from exact ones, relative to these."""
    exact = x @ weight.t()
    return float((linear(x, pack_weight([weight], [], precision)) - exact).norm() / exact.norm())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("columns", "block"), [(576, 64), (640, 128), (14_336, 128), (48, 16), (7, 1)])
def test_blocks_fill_the_columns(columns, block):
    matrix = hadamard(torch.empty(1, columns))
    assert len(matrix) == block
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(matrix @ matrix.t(), block * torch.eye(block))
    x, weight = normal(3, columns), normal(5, columns)
    spread = hadamard_rotate(x, matrix) @ hadamard_rotate(weight, matrix).t() / block
    torch.testing.assert_close(spread, x @ weight.t(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("precision", "near"), [("none", 1e-6), ("w8a8-int8", 0.02), ("w8a8-fp8", 0.05)])
def test_large_columns_leave_the_others_what_they_are(precision, near):
    x, weight = normal(40, 256), normal(96, 256)
    assert error(x, weight, precision) < near
    x[:, 7] *= 100
    weight[:, 7] /= 100
    assert error(x, weight, precision) < 3 * near


def test_several_weights_are_one():
    x, parts, biases = normal(6, 32), [normal(8, 32), normal(16, 32)], [normal(8), normal(16)]
    for precision, near in (("none", 1e-5), ("w8a8-int8", 0.3), ("w8a8-fp8", 1.0)):
        found = linear(x, pack_weight(parts, biases, precision))
        expected = torch.cat([x @ part.t() + bias for part, bias in zip(parts, biases, strict=True)], 1)
        torch.testing.assert_close(found, expected, atol=near, rtol=0)


@pytest.mark.parametrize("precision", ["none", "w8a8-int8", "w8a8-fp8"])
def test_one_weight_at_a_time_is_held_as_it_came(precision):
    earlier: list[weakref.ref[Tensor]] = []

    def made():
        for _ in range(3):
            gc.collect()
            assert not any(each() is not None for each in earlier)
            weight = normal(16, 32).double()
            earlier.append(weakref.ref(weight))
            yield weight
            del weight

    pack_weight(made(), [], precision)
    assert len(earlier) == 3
