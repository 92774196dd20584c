"""Encoding keeps elements where they lie: Triton may not bring them, or table entries, to other threads."""

import re

import pytest

triton = pytest.importorskip("triton")

from compiled_kernels import DIALECTS, ENCODE, PLAIN  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sedialect.kernels import triton_encode  # noqa: E402


@pytest.mark.parametrize("equalized", [False, True], ids=["plain", "equalized"])
@pytest.mark.parametrize("width", [1536, 5120])
def test_no_layout_is_converted(width, equalized, tmp_path, monkeypatch):
    """Up to Triton 3.6 entries of tables come as the tiles lie; 3.7 to 3.9 would need some 50 barriers a program."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    span, rows, warps = triton_encode.geometry(width)
    constants = {**DIALECTS, **PLAIN, "K": width, "PIECE": span // 16, "ROWS": rows, "EQUALIZED": equalized}
    kinds = {"x_ptr": "*bf16", "operand_ptr": "*fp8e4nv", **ENCODE}
    names = triton_encode.encode_kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name.endswith("_ptr")}
    source = ASTSource(triton_encode.encode_kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    moved = re.findall(r"ttg\.convert_layout.*tensor<\d+x\d+x\d+x.*", made.asm["ttgir"])
    assert moved == []
