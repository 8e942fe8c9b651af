"""Kernels in Gluon without a Hopper GPU: compiled all the same, and with their docstrings in their place.

Triton's interpreter knows no Gluon, and a process that interprets compiles nothing.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

__all__ = ["AsWritten", "Kernel", "compiled_for_hopper", "rows_type"]


class Kernel(NamedTuple):
    """A kernel with the name of its module, and what it is compiled for."""

    name: str
    types: dict[str, str]
    """Of all but `options`; pointers, and integers that start with `=`, are multiples of 16."""
    options: dict[str, Any]
    warps: int


def compiled_for_hopper(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Of each kernel: `shared` memory in bytes, `ptx`, what the `assembler` says."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # No GPU plays a part, as the target is given, nor what other processes have compiled.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, __file__, json.dumps(kernels)]
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # libraries may print before it


def compile_for_hopper(
    name: str, types: dict[str, str], options: dict[str, Any], warps: int
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = getattr(import_module(f"wsdm_ray.modeling.{name}"), name.split(".")[-1])
    signature = {each: kind.removeprefix("=") for each, kind in types.items()}
    aligned = [number for number, kind in enumerate(types.values()) if kind[0] in "*="]
    hints: Any = {(number,): [["tt.divisibility", 16]] for number in aligned}
    source = GluonASTSource(kernel, signature | dict.fromkeys(options, "constexpr"), options, hints)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(made.asm["ptx"])
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    return {"shared": made.metadata.shared, "ptx": made.asm["ptx"], "assembler": said}


def rows_type(kind: str, rows: int, columns: int) -> str:
    """The type of a descriptor of rows, copied so many rows and columns at a time."""
    from triton.experimental.gluon import language as gl

    bits = 16 if kind == "bf16" else 8
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=bits, rank=2)
    return f"tensordesc<{kind}[{rows},{columns}],{layout!r}>"


class AsWritten:
    """A kernel that does what its docstring says, by a function of the grid and of what it is given."""

    def __init__(self, kernel: Any, function: Callable[[tuple[int, ...], Any], None]):
        self.signature, self.function = inspect.signature(kernel.fn), function

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, num_warps: int, **named: Any) -> None:
            given = self.signature.bind(*arguments, **named)
            self.function(grid, SimpleNamespace(**given.arguments))

        return run


if __name__ == "__main__":
    print(json.dumps([compile_for_hopper(*kernel) for kernel in json.loads(sys.argv[1])]))
