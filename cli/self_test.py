"""`sedialect doctor`: what is installed, what the hardware can do, which path runs and why, and a one-second self-test."""

import platform
import time

import torch

from ..kernels.attention_support import attention_implementation
from ..kernels.dispatch import Implementation, implementation
from ..sedialect_core.codec import encode
from ..sedialect_core.environment import device_name, package_versions
from ..sedialect_core.formatbook import Formatbook, builtin_names
from ..sedialect_core.linear import SeDialectLinear
from ..sedialect_core.plan.report import quality_advice
from ..sedialect_core.quantize.units import compare_units
from ..sedialect_core.settings.table import ATTENTIONS, UNQUANTIZED
from ..sedialect_core.video.compute_dtype import choose_dtype

ATTENTION_LIBRARIES = "fa3-fwd flash-attn-3 flash-attn sageattention xformers"
LIBRARIES = "sedialect torch triton diffusers transformers accelerate peft safetensors huggingface-hub av"
# Relative squared errors of a Gaussian weight: what the reference gives (tests hold it), with room for the draw.
EXPECTED_ERROR = {16: 0.0070, 32: 0.0085}


def examine() -> tuple[list[tuple[str, str]], bool]:
    """Rows of label and finding, and whether the self-test passed on every device."""
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, found or "not installed") for name, found in package_versions(LIBRARIES.split()).items()]
    kernels = package_versions(ATTENTION_LIBRARIES.split()).items()
    rows.append(("attention", ", ".join(f"{name} {found or 'not installed'}" for name, found in kernels)))
    rows.append(("formatbooks", ", ".join(builtin_names())))
    sound = True
    for device in devices():
        verdict, passed = self_test(device)
        compare_units(device)
        name, reason = implementation(device)  # after the test: kernels that fail say so then
        sound &= passed
        computes = str(choose_dtype(device))
        rows += [
            (device, describe(device)),
            ("  path", f"{name}: {reason}"),
            *(("  " + kind, f"attention: {found.name}: {found.reason}") for kind, found in attention_paths(device)),
            ("  dtype", computes),
            ("  self-test", verdict),
        ]
        if advice := quality_advice(device):
            rows.append(("  advice", advice))
    return rows, sound


def attention_paths(device: str) -> list[tuple[str, Implementation]]:
    """What attention in fewer bits would run on, and why, by the setting's values."""
    return [(kind, attention_implementation(kind, torch.device(device))) for kind in ATTENTIONS if kind != UNQUANTIZED]


def devices() -> list[str]:
    """The CPU and every CUDA device."""
    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def describe(device: str) -> str:
    """Name, memory and compute capability."""
    if device == "cpu":
        return device_name(device)
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {capability}"


def self_test(device: str) -> tuple[str, bool]:
    """Encode a weight, decode it, and run a layer; in words, and whether the errors are what they should be."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(512, 256, bias=False)
    weight = torch.randn(256, 512, generator=generator)
    linear.weight.data = weight
    started = time.perf_counter()
    sound = True
    for block_size, limit in EXPECTED_ERROR.items():
        back = encode(weight.to(device), block_size=block_size).dequantize().cpu()
        sound &= float((back - weight).square().sum() / weight.square().sum()) < limit
    layer = SeDialectLinear.from_linear(linear.to(device), precision="w4a16", formatbook=Formatbook.builtin())
    x = torch.randn(64, 512, generator=generator).to(device)
    expected = x.cpu().double() @ layer.dequantize(torch.float32).cpu().double().T
    difference = float((layer(x).cpu() - expected).norm() / expected.norm())
    sound &= difference < (1e-5 if device == "cpu" else 1e-2)
    seconds = time.perf_counter() - started
    return f"{'passed' if sound else 'FAILED'} in {seconds:.1f} s (layer against float64: {difference:.1e})", sound
