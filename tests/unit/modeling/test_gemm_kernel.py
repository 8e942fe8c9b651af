"""The kernel for products of 8-bit rows, compiled for Hopper GPUs anywhere; `test_kernels` runs it."""

import re

import pytest

from tests.unit.modeling.hopper import compiled_for_hopper, rows_type

pytest.importorskip("triton", reason="there is no Triton for this system, and so no kernel to test")


@pytest.mark.parametrize(("kind", "gate"), [("i8", "none"), ("i8", "gelu"), ("fp8e4nv", "silu")])
def test_it_compiles_for_hopper(kind, gate):
    from wsdm_ray.modeling import gemm_kernel as module

    types = {
        "x_desc": rows_type(kind, module.ROWS, module.DEPTH),
        "w_desc": rows_type(kind, module.COLUMNS, module.DEPTH),
        "out_desc": rows_type("bf16", module.ROWS, module.COLUMNS // 2),
        **dict.fromkeys(("x_scale", "w_scale"), "*fp32"), "bias": "*bf16",
        **dict.fromkeys(("rows", "columns", "depth"), "=i32"),
    }  # fmt: skip
    names = ("ROWS", "COLUMNS", "DEPTH", "STAGES", "GROUP")
    options = {name: getattr(module, name) for name in names} | {"BIAS": gate == "none", "GATE": gate}
    found = compiled_for_hopper("gemm_kernel", types, options, module.WARPS)
    assert "0 bytes spill stores, 0 bytes spill loads" in found["assembler"]
    assert "serialized" not in found["assembler"], "a step is multiplied while the next is waited for"
    assert found["shared"] + 1024 <= 228 * 1024
    arrivals = re.findall(r"mbarrier\.arrive\.shared", found["ptx"])
    after_all = re.findall(
        r"bar\.sync\s+0, 256;(?:(?!wgmma|mbarrier).)*mbarrier\.arrive\.shared", found["ptx"], re.DOTALL
    )
    assert len(arrivals) == len(after_all) == 2, "both groups of warps are done with what is given back"
