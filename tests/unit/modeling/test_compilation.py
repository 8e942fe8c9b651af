"""What is compiled is compiled with kernels that are chosen by rule."""

from pathlib import Path
from typing import Any

import pytest
import torch

import wsdm_ray
from wsdm_ray.modeling.compilation import compile_deterministic


def total(x: torch.Tensor) -> torch.Tensor:
    return x.sum()


def test_inductor_times_no_sums(monkeypatch):
    given: list[dict[str, Any]] = []

    def compile_fx(graph: Any, inputs: Any, **options: Any) -> Any:
        given.append(options["config_patches"])
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    assert compile_deterministic(total, dynamic=False, fullgraph=True)(torch.ones(3)) == 3
    assert [options["deterministic"] for options in given] == [True]


def test_another_backend_gets_the_graph():
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    assert compile_deterministic(total, backend=backend)(torch.ones(3)) == 3
    assert len(graphs) == 1


def test_nothing_is_compiled_in_another_way():
    package = Path(wsdm_ray.__file__).parent
    found = [path.name for path in package.rglob("*.py") if "torch.compile(" in path.read_text()]
    assert found == ["compilation.py"]


@pytest.fixture(autouse=True)
def _anew() -> None:
    torch._dynamo.reset()
