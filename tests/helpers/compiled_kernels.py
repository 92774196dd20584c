"""Compiles every kernel for compute capabilities, without a GPU, as they are launched: with sizes and addresses that are
multiples of 16.

python compiled_kernels.py 90        a line for each kernel: name, bytes, registers, spills, shared memory, instructions
python compiled_kernels.py --table   what docs/speed.md shows, for every generation
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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
    triton_rows,
    triton_weights,
)
from sedialect.kernels.reference_attention import INTEGERS, KEY_BLOCK, LIFT, SMALLEST

SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that a program may have
MATRIX_INSTRUCTION = re.compile(r"\b(IMMA|IGMMA|QMMA|QGMMA|HMMA|HGMMA|UTC\w*MMA)\b")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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


def float_of(capability: int) -> str:
    """What 16-bit numbers are there."""
    return "bf16" if capability >= 80 else "fp16"


def attention_cases(capability: int):
    """The kernels of attention in 8 bit: kernel, types, constants, and the options of the tile."""
    half = float_of(capability)
    fp8, width = capability >= 89, 128
    tile = triton_attention.tile_for((capability // 10, capability % 10), fp8)
    values = f"[{width}, {tile.keys}]" if fp8 else f"[{tile.keys}, {width}]"
    kinds = {
        **ATTENTION,
        **{f"{what}_ptr": f"*{half}" for what in ("query", "key", "value", "output")},
        "operand_ptr": "*fp8e4nv" if fp8 else f"*{half}",
        "keys_of": f"tensordesc<i8[{tile.keys}, {width}]>",
        "values_of": f"tensordesc<{'fp8e4nv' if fp8 else half}{values}>",
    }
    shape = {"D": 120, "WIDTH": width}
    limits = {"INTEGERS": INTEGERS, "SMALLEST": SMALLEST}
    yield triton_attention_operands.statistics_kernel, kinds, {**shape, "CHUNK": 512, "STEP": 64, "ORDERED": True}, {}
    yield triton_attention_operands.query_kernel, kinds, {**shape, **limits, "ROWS": 64, "OFFSET": True}, {}
    block = {**shape, **limits, "BLOCK": KEY_BLOCK, "ORDERED": True, "FP8": fp8}
    yield triton_attention_operands.key_value_kernel, kinds, block, {"num_warps": 8}
    main = {**shape, "LIFT": LIFT, "KEY_BLOCK": KEY_BLOCK, "ROWS": tile.rows, "KEYS": tile.keys, "FP8": fp8, "LSE": True}
    main["DESCRIBED"] = triton_rows.is_described((capability // 10, capability % 10))
    if not main["DESCRIBED"]:
        kinds |= {"keys_of": "*i8", "values_of": kinds["operand_ptr"]}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    yield triton_attention.attention_kernel, {**kinds, "query_ptr": "*i8"}, main, options


def int8_case(capability: int, rows: int):
    """The INT8 product with the tile of so many rows."""
    tile = triton_int8.tile_for((capability // 10, capability % 10), rows)
    half = f"*{float_of(capability)}"
    kinds = {"row_scale_ptr": "*fp32", "scale_ptr": "*fp32", "bias_ptr": half, "product_ptr": half}
    kinds |= dict.fromkeys(("rows", "outputs", "inputs"), "i32")
    kinds |= {"operand_of": f"tensordesc<i8[{tile.rows}, {tile.inputs}]>"}
    kinds |= {"weight_of": f"tensordesc<i8[{tile.outputs}, {tile.inputs}]>"}
    sizes = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "BAND": triton_int8.BAND, "BIAS": True}
    sizes |= {"DESCRIBED": triton_rows.is_described((capability // 10, capability % 10)), "EVEN": False}
    if not sizes["DESCRIBED"]:
        kinds |= {"operand_of": "*i8", "weight_of": "*i8"}
    return triton_int8.int8_kernel, kinds, sizes, {"num_warps": tile.warps, "num_stages": tile.stages}


def cases(operand: str, half: str):
    """Kernel, types of its arguments, constants."""
    lift = {"LIFT": triton_rows.lift_of({"*i8": torch.int8, "*fp8e4nv": torch.float8_e4m3fn}.get(operand, torch.bfloat16))}
    dialects = {**DIALECTS, **lift, "Q_SHIFT": 8 if half == "bf16" else 11}
    encode = {"x_ptr": f"*{half}", "operand_ptr": operand, **ENCODE}
    e4m3 = {name: kind for name, kind in encode.items() if name in triton_encode.e4m3_kernel.arg_names}
    parts = {"K": 1024, "PIECE": 8, "PART": 128, "ROWS": 1}
    everything = {"RESIDUAL": True, "PROTECTED": True, "EQUALIZED": True, "ROTATION": 32}
    yield triton_encode.encode_kernel, encode, {**dialects, "K": 1024, **PLAIN}
    guided = {"ALL": True, "GROUPS": True, "PROTECTED": True, "Q_SHIFT": 0, "BLOCK": 32, "PIECE": 16}
    yield triton_encode.encode_kernel, encode, {**dialects, "K": 480, **PLAIN, **guided}
    yield triton_encode.encode_kernel, encode, {**dialects, "K": 512, **everything, "Q_SHIFT": 0}
    yield triton_encode.e4m3_kernel, e4m3, {**parts, **PLAIN}
    yield triton_encode.e4m3_kernel, e4m3, {**parts, **everything}
    decode = {"codes_ptr": "*u8", "meta_ptr": "*u8", "scale_ptr": "*fp32", "ladders_ptr": "*i32", "operand_ptr": operand}
    decode |= {"lowered_ptr": "*fp32", "rows": "i32", "blocks": "i32", "row_blocks": "i32"}
    for scaled in (False, True):
        yield triton_decode.decode_kernel, decode, {"BLOCK": 16, "TILE": 128, **lift, "SCALED": scaled}
    weight = {"multipliers_ptr": "*fp32", "magnitudes_ptr": "*i32", "indices_ptr": "*u8", "codes_ptr": "*u8"}
    weight |= {"meta_ptr": "*u8", "scale_ptr": "*fp32"}
    for kind in (half, "fp32"):
        constants = {**WEIGHT, "SPLIT": kind == "fp32"}
        yield triton_weights.weight_kernel, {"weight_ptr": f"*{kind}", **weight}, constants
    rows = {"product_ptr": f"*{half}", "extra_ptr": f"*{half}", "rows_ptr": "*i32", "N": "i32"}
    yield triton_add.add_kernel, rows, {"TILE": 1024}


class Made(NamedTuple):
    """A kernel as machine code: its bytes, registers of a thread, bytes that a thread spills, bytes of shared memory of a
    program, and its matrix instructions."""

    name: str
    size: int
    registers: int
    spilled: int
    shared: int
    instructions: tuple[str, ...]


def operands_of(capability: int) -> tuple[str, ...]:
    """What encoding and decoding make there: for the units that "auto" takes, and for others."""
    if capability >= 89:
        return "*fp8e4nv", "*i8"
    return "*i8", "*bf16" if capability >= 80 else "*fp32"


def everything(capability: int):
    """All kernels: kernel, types, constants, options."""
    for operand in operands_of(capability):
        yield from ((*case, {}) for case in cases(operand, float_of(capability)))
    attention = list(attention_cases(capability))
    if capability < 80:  # Triton compiles no matrix products
        yield from (case for case in attention if case[0] is not triton_attention.attention_kernel)
        return
    yield from attention
    for rows in (4096, 64):
        yield int8_case(capability, rows)


def compile_case(capability: int, kernel, kinds, constants, options) -> Made:
    """One of them, compiled."""
    signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, kind in enumerate(signature.values())
        if kind.startswith("*") or kind in ("i32", "i64")
    }
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)
    return Made(kernel.__name__, len(made.asm["cubin"]), *look_into(made.asm["cubin"], made.metadata.shared))


def look_into(cubin: bytes, shared: int) -> tuple[int, int, int, tuple[str, ...]]:
    """Registers, spilled bytes, shared memory and matrix instructions, from the machine code itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", file)
        code = _tool("nvdisasm", "-c", file)
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    names = tuple(sorted(set(MATRIX_INSTRUCTION.findall(code))))
    return found["REG"], found["STACK"] + found["LOCAL"], max(shared, found["SHARED"]), names


def _tool(name: str, *arguments: object) -> str:
    return subprocess.run([TOOLS / name, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def table() -> str:
    """Per generation: the kernels' most registers and spilled bytes, and the shared memory of the products."""
    head = ("compute capability", "kernel", "registers", "spilled bytes", "shared memory, KB", "of", "matrix instructions")
    rows = [head, ("---",) * len(head)]
    for capability, limit in SHARED.items():
        found: dict[str, list[Made]] = {}
        for case in everything(capability):
            made = compile_case(capability, *case)
            found.setdefault(made.name.removesuffix("_kernel"), []).append(made)
        for name, group in found.items():
            most = (max(getattr(one, which) for one in group) for which in ("registers", "spilled", "shared"))
            registers, spilled, shared = most
            used = ", ".join(sorted({name for one in group for name in one.instructions}))
            generation = f"{capability // 10}.{capability % 10}"
            rows.append((generation, name, str(registers), str(spilled), f"{shared / 1024:.1f}", str(limit), used))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argument: str) -> None:
    if argument == "--table":
        print(table())
        return
    for case in everything(int(argument)):
        made = compile_case(int(argument), *case)
        print(*made[:5], "+".join(made.instructions) or "none")


if __name__ == "__main__":
    main(sys.argv[1])
