"""The GEMM kernel of 8-bit rows, compiled for Hopper GPUs anywhere; `test_norm_kernels` runs it."""

import re
from typing import Any

import pytest

from tests.unit.modeling.hopper import Kernel, compiled_for_hopper, rows_type

pytest.importorskip("triton", reason="there is no Triton for this system, and so no kernel to test")


def kernel_of(dtype: str, activation: str) -> Kernel:
    from wsdm_ray.modeling import gemm_kernel as module

    types = {
        "x_desc": rows_type(dtype, module.BLOCK_M, module.BLOCK_K),
        "w_desc": rows_type(dtype, module.BLOCK_N, module.BLOCK_K),
        "out_desc": rows_type("bf16", module.BLOCK_M, module.BLOCK_N // 2),
        **dict.fromkeys(("x_scale", "w_scale"), "*fp32"), "bias": "*bf16",
        **dict.fromkeys(("M", "N", "K"), "=i32"),
    }  # fmt: skip
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "NUM_STAGES", "GROUP_M")
    options = {name: getattr(module, name) for name in names}
    options |= {"HAS_BIAS": activation == "none", "ACTIVATION": activation}
    return Kernel("gemm_kernel", types, options, module.NUM_WARPS)


def test_it_compiles_for_hopper():
    """In one process: to start it takes longer than to compile."""
    for each in compiled_for_hopper(
        [kernel_of("i8", "none"), kernel_of("i8", "gelu_pytorch_tanh"), kernel_of("fp8e4nv", "silu")]
    ):
        check(each)


def check(found: dict[str, Any]) -> None:
    assert "0 bytes spill stores, 0 bytes spill loads" in found["assembler"]
    assert "serialized" not in found["assembler"], "a step is multiplied while the next is waited for"
    assert found["shared"] + 1024 <= 228 * 1024
    arrivals = re.findall(r"mbarrier\.arrive\.shared", found["ptx"])
    after_all = re.findall(
        r"bar\.sync\s+0, 256;(?:(?!wgmma|mbarrier).)*mbarrier\.arrive\.shared", found["ptx"], re.DOTALL
    )
    assert len(arrivals) == len(after_all) == 2, "both groups of warps are done with what is given back"
