"""What attention in fewer bits can do: which calls its kernels take, and which kernel runs where and why."""

import torch

from . import flash3
from .attention import HEAD_SIZES, KERNEL
from .capabilities import multiplies_e4m3, refusals
from .dispatch import Implementation, failed

LEAST_TOKENS = 512  # of queries and of keys: shorter attention takes too little time to gain any
FLASH3_STEP, FLASH3_MOST = 16, 256


def head_size_refusal(kind: str, size: int) -> str | None:
    """Why attention of this kind, "8bit" or "fp8", does not run with heads of so many channels; None where it does."""
    if kind == "8bit" and size not in HEAD_SIZES:
        return f"heads of {size} channels; 8 bit takes {', '.join(map(str, HEAD_SIZES))}"
    if kind == "fp8" and (size % FLASH3_STEP or size > FLASH3_MOST):
        return f"heads of {size} channels; FlashAttention-3 takes multiples of {FLASH3_STEP} up to {FLASH3_MOST}"
    return None


def attention_implementation(kind: str, device: torch.device) -> Implementation:
    """What attention of this kind, "8bit" or "fp8", runs on, and why."""
    if kind == "fp8":
        if (problem := flash3.refusal(device)) is not None:
            return Implementation("none", problem)
        return Implementation("FlashAttention-3", f"E4M3 with a scale a head, keys centred, by {flash3.kernel()[1]}")
    if device.type != "cuda":
        return Implementation("reference", "plain torch gives a GPU's numbers, slower than 16 bit")
    refused = refusals(device)
    if refused.triton_products is not None:
        return Implementation("16 bit", f"no Triton kernels: {refused.triton_products}")
    if (said := failed(KERNEL, device)) is not None:
        return Implementation("16 bit", said)
    values = "values in E4M3" if multiplies_e4m3(device) else f"values in 16 bit (no FP8 products: {refused.fp8})"
    return Implementation("triton", f"INT8 scores, {values}")
