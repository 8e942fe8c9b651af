"""Operators that are registered, and kernels that are compiled once for each kind of argument."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from wsdm_ray.modeling import kernel_launch
from wsdm_ray.modeling.kernel_launch import launch, operator


class KernelOfTriton:
    """Compiles, and says so, at every launch; what it compiled says when it is launched."""

    def __init__(self):
        self.compiled, self.launched = [], []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, num_warps: int) -> "CompiledKernel":
            self.compiled.append((grid, arguments, num_warps))
            return CompiledKernel(self.launched)

        return run


class CompiledKernel:
    def __init__(self, launched: list[Any]):
        self.launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launched.append((grid, arguments))


def descriptor(tensor: Tensor, block: int = 8) -> SimpleNamespace:
    return SimpleNamespace(base=tensor, block_shape=[block, block], layout="a layout")


X = torch.zeros(64)
GIVEN: dict[str, Any] = {
    "grid": (7,), "arguments": (X, 48, 0.5, descriptor(X)), "constants": (3, "gelu"), "num_warps": 4,
}  # fmt: skip


@pytest.fixture
def kernel(monkeypatch) -> KernelOfTriton:
    monkeypatch.setattr(kernel_launch, "COMPILED", {})
    return KernelOfTriton()


def test_the_second_launch_is_of_what_the_first_compiled(kernel):
    launch(kernel, **GIVEN)
    launch(kernel, **GIVEN)
    assert kernel.compiled == [((7,), (*GIVEN["arguments"], 3, "gelu"), 4)]
    assert kernel.launched == [((7, 1, 1), (*GIVEN["arguments"], 3, "gelu"))]


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(32), 48, 0.5, descriptor(X)),
        (X, 64, 0.5, descriptor(X)),
        (X, 48, 0.25, descriptor(X)),
        (X, 48, 0.5, descriptor(torch.ones(32))),
    ],
)
def test_values_and_sizes_do_not_compile_it_anew(kernel, arguments):
    launch(kernel, **GIVEN)
    launch(kernel, **GIVEN | {"arguments": arguments, "grid": (2, 3)})
    assert len(kernel.compiled) == 1
    assert kernel.launched == [((2, 3, 1), (*arguments, 3, "gelu"))]


@pytest.mark.parametrize(
    "change",
    [
        {"constants": (4, "gelu")},
        {"num_warps": 8},
        {"arguments": (X.double(), 48, 0.5, descriptor(X))},
        {"arguments": (X[1:], 48, 0.5, descriptor(X))},  # not at a multiple of 16 bytes
        {"arguments": (X, 1, 0.5, descriptor(X))},
        {"arguments": (X, 49, 0.5, descriptor(X))},
        {"arguments": (X, 48 << 40, 0.5, descriptor(X))},  # of 64 bits
        {"arguments": (X, 48, 0.5, descriptor(X.double()))},
        {"arguments": (X, 48, 0.5, descriptor(X, block=16))},
    ],
)
def test_what_triton_compiles_for_does(kernel, change):
    launch(kernel, **GIVEN)
    launch(kernel, **GIVEN | change)
    launch(kernel, **GIVEN)
    assert len(kernel.compiled) == 2
    assert len(kernel.launched) == 1


def test_every_kernel_is_compiled_for_itself(kernel):
    other = KernelOfTriton()
    for each in (kernel, other):
        launch(each, **GIVEN)
    assert len(kernel.compiled) == len(other.compiled) == 1


@operator()
def halves_for_a_test(x: Tensor) -> Tensor:
    return x / 2


@torch.library.register_fake("wsdm_ray::halves_for_a_test")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@operator(mutates=("x",))
def doubled_for_a_test(x: Tensor) -> None:
    x.mul_(2)


def test_an_operator_is_right_compiled_and_not():
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(halves_for_a_test, (torch.ones(4, 2),), test_utils=checks)

    def both(x: Tensor) -> Tensor:
        y = x + 1
        torch.ops.wsdm_ray.doubled_for_a_test(y)
        return torch.ops.wsdm_ray.halves_for_a_test(y[:1]) + y[1:]

    x = torch.tensor([[1.0], [2.0]])
    assert both(x).tolist() == [[8.0]]
    assert torch.compile(both, fullgraph=True, backend="aot_eager")(x).tolist() == [[8.0]]
