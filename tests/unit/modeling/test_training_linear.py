"""Linear layers for training: adapters beside a frozen weight, and what is kept for the backward pass."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from wsdm_ray.modeling.quantized_linear import hadamard, quantize_weight
from wsdm_ray.modeling.training_linear import AdaptedLinear, Adapter, FrozenWeight, adapted_linear

OUT, IN, RANK = 24, 16, 2


def adapter_at(start: int, rows: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*shape, generator=generator) for shape in ((RANK, IN), (rows, RANK)))
    return Adapter(A.requires_grad_(), B.requires_grad_(), 0.5 + seed, start)


def layer_of(*places: tuple[int, int]) -> AdaptedLinear:
    """A layer with adapters of `(start, rows)` of its output."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(9))
    adapters = tuple(adapter_at(*place, seed) for seed, place in enumerate(places))
    return AdaptedLinear(FrozenWeight(weight, None, None, False, False, (OUT, IN)), None, adapters, 0.0)


def as_defined(x: Tensor, layer: AdaptedLinear) -> Tensor:
    out = F.linear(x, layer.weight.values)
    for A, B, scale, start in layer.adapters:
        out = out + F.pad(scale * (x @ A.t() @ B.t()), (start, OUT - start - len(B)))
    return out


@pytest.mark.parametrize(
    "places",
    [(), ((0, OUT),), ((0, 8), (8, 4), (12, 12)), ((4, 8),), ((0, 4), (20, 4)), ((2, 3), (9, 5))],
    ids=str,
)
def test_adapters_change_their_own_part_of_the_output(places):
    layer = layer_of(*places)
    trained = [factor for adapter in layer.adapters for factor in adapter[:2]]
    x = torch.randn(5, IN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for run in (adapted_linear, lambda *given: as_defined(*given[:2])):
        out = run(x, layer, None)
        gradients = torch.autograd.grad(out.square().sum(), [x, *trained])
        if run is adapted_linear:
            found = [out, *gradients]
        else:
            torch.testing.assert_close(found, [out, *gradients], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(adapted_linear(x, layer, None), found[0])


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_a_4_bit_weight_is_dequantized_again_for_the_backward_pass():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    size = (OUT * 8, IN * 8)
    values, state = bitsandbytes.functional.quantize_4bit(torch.randn(size), quant_type="nf4")
    weight = FrozenWeight(values, state.absmax, None, False, False, size)
    layer = AdaptedLinear(weight, None, (), 0.0)
    kept: list[Tensor] = []
    compiled = torch.compile(
        lambda x: adapted_linear(x * 2, layer, None), backend="aot_eager_decomp_partition"
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        compiled(torch.randn(5, size[1], requires_grad=True)).sum().backward()
    assert kept
    assert max(each.numel() for each in kept) < size[0] * size[1]


def test_8_bit_rows_are_near_the_weight_they_hold():
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    values, scale = quantize_weight(weight, torch.int8)
    held = FrozenWeight(values, scale, hadamard(weight), False, True, (OUT, IN))
    x = torch.randn(64, IN).requires_grad_()
    out = adapted_linear(x, AdaptedLinear(held, None, (), 0.0), None)
    exact = F.linear(x, weight)
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (out, exact)]
    for found, expected in ((out, exact), gradients):
        assert (found - expected).norm() < 0.03 * expected.norm()
