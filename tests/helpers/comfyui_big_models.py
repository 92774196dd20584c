"""A Wan of any size with random weights, written to disk tensor by tensor: in 16 bit, in scaled FP8, and a LoRA for it.

Each tensor is drawn from the seed of its name, so that both files hold the same weights, and neither lies in memory whole.
"""

import json
import math
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

TYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8"}
FP8_LARGEST = 448.0
WRITERS = 8  # threads that write, each tensor at its own place in the file
WAITING = 16  # tensors that may lie in memory until they are written
FP8_NOTE = torch.tensor(
    list(b'{"format": "float8_e4m3fn"}     '), dtype=torch.uint8
)  # ComfyUI's note; 32 bytes keep tensors aligned


class Size(NamedTuple):
    """Of a Wan 2.1: 14B is 40 layers of 5120 and 13824."""

    layers: int
    dim: int
    hidden: int
    text: int = 4096


class Drawn(NamedTuple):
    """A tensor that is yet to be drawn: normal around `mean`; `linear` ones are weights of layers in the blocks."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0
    linear: bool = False


def tensors_of(size: Size) -> Iterator[Drawn]:
    """All tensors of a Wan 2.1 by its authors' names."""
    dim = size.dim
    yield Drawn("patch_embedding.weight", (dim, 16, 1, 2, 2), 1 / 8)
    yield Drawn("patch_embedding.bias", (dim,), 0.02)
    for name, inputs, outputs in (
        ("text_embedding.0", size.text, dim),
        ("text_embedding.2", dim, dim),
        ("time_embedding.0", 256, dim),
        ("time_embedding.2", dim, dim),
        ("time_projection.1", dim, 6 * dim),
        ("head.head", dim, 64),
    ):
        yield Drawn(f"{name}.weight", (outputs, inputs), 1 / math.sqrt(inputs))
        yield Drawn(f"{name}.bias", (outputs,), 0.02)
    yield Drawn("head.modulation", (1, 2, dim), 1 / 16)
    for number in range(size.layers):
        block = f"blocks.{number}"
        for name, inputs, outputs in linears_of(size):
            yield Drawn(f"{block}.{name}.weight", (outputs, inputs), 1 / math.sqrt(inputs), linear=True)
            yield Drawn(f"{block}.{name}.bias", (outputs,), 0.02)
        for part in ("self_attn", "cross_attn"):
            for norm in ("norm_q", "norm_k"):
                yield Drawn(f"{block}.{part}.{norm}.weight", (dim,), 0.02, 1.0)
        yield Drawn(f"{block}.norm3.weight", (dim,), 0.02, 1.0)
        yield Drawn(f"{block}.norm3.bias", (dim,), 0.02)
        yield Drawn(f"{block}.modulation", (1, 6, dim), 1 / 16)


def linears_of(size: Size) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of the linear layers of a block."""
    attention = [(f"{part}.{leaf}", size.dim, size.dim) for part in ("self_attn", "cross_attn") for leaf in "qkvo"]
    return [*attention, ("ffn.0", size.dim, size.hidden), ("ffn.2", size.hidden, size.dim)]


def draw(one: Drawn, device: str) -> torch.Tensor:
    """The tensor, bfloat16."""
    random = torch.Generator(device).manual_seed(zlib.crc32(one.name.encode()))
    return (torch.randn(one.shape, generator=random, device=device) * one.deviation + one.mean).to(torch.bfloat16)


def stored(one: Drawn, device: str, fp8: bool) -> dict[str, torch.Tensor]:
    """What a file holds of a tensor: in FP8 a layer's weight has a scale, and ComfyUI's note."""
    tensor = draw(one, device)
    if not (fp8 and one.linear):
        return {one.name: tensor}
    scale = tensor.float().abs().max() / FP8_LARGEST
    codes = (tensor.float() / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    layer = one.name.removesuffix(".weight")
    return {one.name: codes, f"{one.name}_scale": scale, f"{layer}.comfy_quant": FP8_NOTE}


def _shapes(one: Drawn, fp8: bool) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    if not (fp8 and one.linear):
        return {one.name: (torch.bfloat16, one.shape)}
    layer = one.name.removesuffix(".weight")
    found = {one.name: (torch.float8_e4m3fn, one.shape), f"{one.name}_scale": (torch.float32, ())}
    return {**found, f"{layer}.comfy_quant": (torch.uint8, tuple(FP8_NOTE.shape))}


def write_wan(path: Path, size: Size, device: str, fp8: bool = False) -> Path:
    """Write the model, and return its path."""
    drawn = list(tensors_of(size))
    header, end = {}, 0
    for one in drawn:
        for name, (dtype, shape) in _shapes(one, fp8).items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f"{path.name}.part")  # what a killed run leaves is not taken for a model
    with part.open("wb") as file, ThreadPoolExecutor(WRITERS) as writers:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        waiting, written = threading.Semaphore(WAITING), []

        def write(tensor: torch.Tensor, place: int) -> None:
            try:
                _write(file.fileno(), tensor, place)
            finally:
                waiting.release()

        for one in drawn:
            for name, tensor in stored(one, device, fp8).items():
                waiting.acquire()
                written.append(writers.submit(write, tensor, 8 + len(text) + header[name]["data_offsets"][0]))
        for each in written:
            each.result()
    return part.rename(path)


def _write(file: int, tensor: torch.Tensor, place: int) -> None:
    data = memoryview(tensor.contiguous().flatten().view(torch.uint8).cpu().numpy())
    while data:
        count = os.pwrite(file, data, place)
        data, place = data[count:], place + count


def write_lora(path: Path, size: Size, rank: int, device: str) -> Path:
    """A LoRA on every layer of the blocks that changes each weight by about a tenth."""
    from safetensors.torch import save_file

    found = {}
    for number in range(size.layers):
        for name, inputs, outputs in linears_of(size):
            key = f"diffusion_model.blocks.{number}.{name}"
            down = draw(Drawn(f"{key}.down", (rank, inputs), 1 / math.sqrt(inputs)), device)
            up = draw(Drawn(f"{key}.up", (outputs, rank), 0.1 / math.sqrt(rank)), device)
            found |= {f"{key}.lora_down.weight": down.cpu(), f"{key}.lora_up.weight": up.cpu()}
    save_file(found, path)
    return path


def bytes_of(size: Size) -> int:
    """Bytes of the 16-bit file."""
    return sum(math.prod(one.shape) for one in tensors_of(size)) * 2
