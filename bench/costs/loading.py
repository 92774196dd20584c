"""What loading a pre-quantized model takes in memory, beside the size of its file.

The model is a Wan transformer with random codes: what is measured does not depend on what they say. It is loaded in a fresh
process, whose peak is compared with its own after the imports.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...sedialect_core.checkpoint.format import place_layers
from ...sedialect_core.checkpoint.record import Record
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.integrations.models import mark_with_quantizer
from ...sedialect_core.integrations.state import Enabled, bytes_unquantized
from ...sedialect_core.linear import SeDialectLinear
from ...sedialect_core.plan.rules import make_plan

BLOCK_WIDTH = 2048
FILE_NAME = "diffusion_pytorch_model.safetensors"
LOAD = """
import pathlib, sys, time
import sedialect, torch
from diffusers import WanTransformer3DModel
from diffusers.quantizers import auto

def peak():  # the process's own; getrusage would begin with its parent's
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before, start = peak(), time.perf_counter()
model = WanTransformer3DModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
touched = [p.view(torch.uint8).flatten()[::4096].sum() for p in model.parameters()]  # the file is mapped: read every page
print(peak() - before, time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Loading:
    """Bytes of the file, bytes that the process grew by at its peak, and seconds."""

    file_bytes: int
    peak_bytes: int
    seconds: float

    def __str__(self) -> str:
        ratio = self.peak_bytes / self.file_bytes
        sizes = f"file {self.file_bytes / 1e6:.0f} MB, peak of the process {self.peak_bytes / 1e6:.0f} MB"
        return f"{sizes}: {ratio:.2f} times the file, in {self.seconds:.1f} s"


def measure_loading(gigabytes: float) -> Loading:
    """Write a random pre-quantized model of about this size, and load it in a process of its own.

    Raises:
        InputError: this is no Linux, or the process failed; its last line is in the message.
    """
    if not Path("/proc/self/status").is_file():
        raise InputError("peak memory is read from /proc/self/status, which only Linux has; run this bench there")
    with tempfile.TemporaryDirectory(prefix="sedialect-loading-") as folder:
        model = random_model(gigabytes)
        model.save_pretrained(folder, max_shard_size="100GB")
        del model
        size = (Path(folder) / FILE_NAME).stat().st_size
        done = subprocess.run([sys.executable, "-P", "-c", LOAD, folder], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"loading failed: {done.stderr.strip().splitlines()[-1]}")
    peak, seconds = done.stdout.split()
    return Loading(size, int(peak), float(seconds))


def random_model(gigabytes: float) -> Any:
    """A quantized Wan transformer whose file has about this many gigabytes; it never exists in 16 bit."""
    from diffusers import WanTransformer3DModel

    per_block = 12 * BLOCK_WIDTH**2 * 4.5 / 8  # four projections twice, and a feed-forward of twice the width
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=BLOCK_WIDTH // 128,
            attention_head_dim=128,
            ffn_dim=2 * BLOCK_WIDTH,
            num_layers=max(1, round(gigabytes * 1e9 / per_block)),
        ).to(torch.bfloat16)
    book = Formatbook.builtin()
    plan = make_plan(model, SeDialectConfig())
    place_layers(model, Record.of(plan, book), "max", torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        _fill(parameter)
    for layer in model.modules():
        if isinstance(layer, SeDialectLinear):
            layer.row_scale.fill_(2.0**-8)
    mark_with_quantizer(model, Enabled(plan, bytes_unquantized(model), loaded=True))
    return model


def _fill(parameter: nn.Parameter) -> None:
    if parameter.is_floating_point():
        nn.init.constant_(parameter, 0.01)
    else:
        parameter.data.random_(0, 16 if parameter.dtype == torch.int8 else 256)  # exponents go up to 15


def describe(loading: Loading, where: dict[str, Any]) -> str:
    """The result with machine, versions and date."""
    return f"{loading}\n{json.dumps(where)}"
