"""On a GPU: how much memory decoded weights and encoding take, and what is said when it runs out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from tiny_models import TINY
from torch import nn

from sedialect import SeDialectLinear, encode
from sedialect.sedialect_core.quantize.apply import quantize_layers

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("no_kernel_fails"),
]


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """So much is left to allocate; what other tests have left in the allocator's cache is taken, too."""
    total, held = torch.cuda.get_device_properties(0).total_memory, []
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    for size in (1 << 28, 1 << 24, 1 << 20):
        with suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (megabytes << 20)) / total)
    try:
        yield
    finally:
        held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_running_out_of_memory_says_of_what():
    layer = SeDialectLinear.from_linear(nn.Linear(4096, 4096).cuda().bfloat16())
    x = torch.randn(1 << 16, 4096, device="cuda", dtype=torch.bfloat16)
    with little_memory(300), pytest.raises(torch.OutOfMemoryError, match=r"out of GPU memory while .* MB\. Offload"):
        layer(x)


def test_running_out_of_memory_while_quantizing_says_how_to_quantize():
    weight = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    message = "encoding a weight of 8192 x 8192, 34 MB. Quantize while .* CPU"
    with little_memory(16), pytest.raises(torch.OutOfMemoryError, match=message):
        encode(weight)


def test_decoded_weights_live_for_one_product():
    layers = nn.Sequential(*(SeDialectLinear.from_linear(nn.Linear(2048, 2048).cuda().bfloat16()) for _ in range(8)))
    x = torch.randn(64, 2048, device="cuda").bfloat16()
    with torch.no_grad():
        layers(x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layers(x)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * 2048 * 2048


def test_a_model_on_the_cpu_is_encoded_on_the_gpu_one_layer_at_a_time():
    torch.manual_seed(0)
    model, _ = TINY["WanTransformer3DModel"]()
    model.blocks[0].ffn.net[2] = nn.Linear(8192, 2048)
    model.blocks[1].ffn.net[2] = nn.Linear(8192, 2048)
    twin = copy.deepcopy(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quantize_layers(model)
    peak = torch.cuda.max_memory_allocated() - before
    quantize_layers(twin, device="cpu")
    elements = 8192 * 2048
    assert 4 * elements < peak < 1.25 * 4 * elements, "one float32 weight, and its codes"
    for (name, here), there in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert here.device.type == "cpu" and torch.equal(here, there), name
