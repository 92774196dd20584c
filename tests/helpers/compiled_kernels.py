"""Compiles every kernel for one compute capability, without a GPU: `python compiled_kernels.py 90` prints what it made."""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sedialect.kernels import triton_add, triton_decode, triton_encode, triton_weights

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float8_e4m3fn: "*fp8e4nv"}
ENCODE = {
    "scale_ptr": "*fp32",
    "choices_ptr": "*i64",
    "errors_ptr": "*i64",
    "salient_ptr": "*i32",
    "group_ptr": "*i32",
    "choice_ptr": "*u8",
    "protected_ptr": "*i1",
    "equalizer_ptr": "*i8",
    "rows": "i32",
    "first": "i32",
}
PLAIN = {"RESIDUAL": False, "PROTECTED": False, "EQUALIZED": False, "ROTATION": 0}
DIALECTS = {
    "BLOCK": 16,
    "PIECE": 32,
    "ROWS": 2,
    "SHAPES": 4,
    "BIAS": 961,
    "LIFT": 4,
    "Q_SHIFT": 8,
    "ALL": False,
    "GROUPS": False,
    "SHARED": 0x80,
    "SHARED_MASK": 0xE0,
}
WEIGHT = {"row_blocks": 32, "BLOCK": 16, "TILE": 64, "COUNT": 8, "DIALECTS": 32}


def cases(operand: str):
    """Kernel, types of its arguments, constants."""
    encode = {"x_ptr": "*bf16", "operand_ptr": operand, **ENCODE}
    e4m3 = {name: kind for name, kind in encode.items() if name in triton_encode.e4m3_kernel.arg_names}
    parts = {"K": 1024, "PIECE": 8, "PART": 128, "ROWS": 1}
    everything = {"RESIDUAL": True, "PROTECTED": True, "EQUALIZED": True, "ROTATION": 32}
    yield triton_encode.encode_kernel, encode, {**DIALECTS, "K": 1024, **PLAIN}
    guided = {"ALL": True, "GROUPS": True, "PROTECTED": True, "Q_SHIFT": 0, "BLOCK": 32, "PIECE": 16}
    yield triton_encode.encode_kernel, encode, {**DIALECTS, "K": 480, **PLAIN, **guided}
    yield triton_encode.encode_kernel, encode, {**DIALECTS, "K": 512, **everything, "Q_SHIFT": 0}
    yield triton_encode.e4m3_kernel, e4m3, {**parts, **PLAIN}
    yield triton_encode.e4m3_kernel, e4m3, {**parts, **everything}
    decode = {"codes_ptr": "*u8", "meta_ptr": "*u8", "scale_ptr": "*fp32", "ladders_ptr": "*i32", "operand_ptr": operand}
    decode |= {"lowered_ptr": "*fp32", "rows": "i32", "blocks": "i32", "row_blocks": "i32"}
    for scaled in (False, True):
        yield triton_decode.decode_kernel, decode, {"BLOCK": 16, "TILE": 128, "LIFT": 4, "SCALED": scaled}
    weight = {"multipliers_ptr": "*fp32", "magnitudes_ptr": "*i32", "indices_ptr": "*u8", "codes_ptr": "*u8"}
    weight |= {"meta_ptr": "*u8", "scale_ptr": "*fp32"}
    for dtype in (torch.bfloat16, torch.float32):
        constants = {**WEIGHT, "SPLIT": dtype == torch.float32}
        yield triton_weights.weight_kernel, {"weight_ptr": POINTERS[dtype], **weight}, constants
    rows = {"product_ptr": "*bf16", "extra_ptr": "*bf16", "rows_ptr": "*i32", "N": "i32"}
    yield triton_add.add_kernel, rows, {"TILE": 1024}


def main(capability: int) -> None:
    operand = "*fp8e4nv" if capability >= 89 else "*bf16"
    for kernel, kinds, constants in cases(operand):
        signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
        made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        print(kernel.__name__, len(made.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
