"""Compiles every kernel for one compute capability, without a GPU: `python compiled_kernels.py 90` prints what it made."""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sedialect.kernels import (
    triton_add,
    triton_attention,
    triton_attention_operands,
    triton_decode,
    triton_encode,
    triton_int8,
    triton_weights,
)
from sedialect.kernels.reference_attention import INTEGERS, KEY_BLOCK, LIFT, SMALLEST

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


STRIDES = {f"{what}_{of}": "i64" for what in ("query", "key", "value", "output") for of in ("sample", "head", "token")}
ATTENTION = dict.fromkeys(("heads", "rows", "keys", "padded"), "i32") | STRIDES
ATTENTION |= {f"{what}_ptr": "*bf16" for what in ("query", "key", "value", "output")}
ATTENTION |= {f"{what}_ptr": "*fp32" for what in ("sum", "top", "scale", "offset", "centre", "inverse", "lse")}
ATTENTION |= {f"{what}_scale_ptr": "*fp32" for what in ("query", "key", "value")}
ATTENTION |= {"order_ptr": "*i64", "count_ptr": "*i32", "integer_ptr": "*i8", "softmax_scale": "fp32", "score_scale": "fp32"}


def attention_cases(capability: int):
    """The kernels of attention in 8 bit: kernel, types, constants, and the options of the tile."""
    fp8, width = capability >= 89, 128
    tile = triton_attention.tile_for((capability // 10, capability % 10), fp8)
    values = f"[{width}, {tile.keys}]" if fp8 else f"[{tile.keys}, {width}]"
    kinds = {
        **ATTENTION,
        "operand_ptr": "*fp8e4nv" if fp8 else "*bf16",
        "keys_of": f"tensordesc<i8[{tile.keys}, {width}]>",
        "values_of": f"tensordesc<{'fp8e4nv' if fp8 else 'bf16'}{values}>",
    }
    shape = {"D": 120, "WIDTH": width}
    limits = {"INTEGERS": INTEGERS, "SMALLEST": SMALLEST}
    yield triton_attention_operands.statistics_kernel, kinds, {**shape, "CHUNK": 512, "STEP": 64, "ORDERED": True}, {}
    yield triton_attention_operands.query_kernel, kinds, {**shape, **limits, "ROWS": 64, "OFFSET": True}, {}
    block = {**shape, **limits, "BLOCK": KEY_BLOCK, "ORDERED": True, "FP8": fp8}
    yield triton_attention_operands.key_value_kernel, kinds, block, {"num_warps": 8}
    main = {**shape, "LIFT": LIFT, "KEY_BLOCK": KEY_BLOCK, "ROWS": tile.rows, "KEYS": tile.keys, "FP8": fp8, "LSE": True}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    yield triton_attention.attention_kernel, {**kinds, "query_ptr": "*i8"}, main, options


def int8_case(capability: int):
    """The INT8 product with the tile of many rows."""
    tile = triton_int8.tile_for((capability // 10, capability % 10), 4096)
    kinds = {"row_scale_ptr": "*fp32", "scale_ptr": "*fp32", "bias_ptr": "*bf16", "product_ptr": "*bf16"}
    kinds |= dict.fromkeys(("rows", "outputs", "inputs"), "i32")
    kinds |= {"operand_of": f"tensordesc<i8[{tile.rows}, {tile.inputs}]>"}
    kinds |= {"weight_of": f"tensordesc<i8[{tile.outputs}, {tile.inputs}]>"}
    sizes = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "BAND": triton_int8.BAND, "BIAS": True}
    return triton_int8.int8_kernel, kinds, sizes, {"num_warps": tile.warps, "num_stages": tile.stages}


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
    others = [(*case, {}) for case in cases(operand)]
    for kernel, kinds, constants, options in [*others, *attention_cases(capability), int8_case(capability)]:
        signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
        target = GPUTarget("cuda", capability, 32)
        made = triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
        print(kernel.__name__, len(made.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
