"""The GPU and the peers' versions, to stand beside every number."""

from typing import Any

import torch

from ...kernels.dispatch import implementation
from ...sedialect_core.environment import gpu_facts, package_versions

PEERS = ("triton", "torchao", "bitsandbytes", "gguf", "sdnq")


def machine(device: torch.device) -> dict[str, Any]:
    """What `environment()` does not say: the GPU's units, and versions of Triton and of the peers."""
    facts: dict[str, Any] = {"peers": package_versions(PEERS), "path": path(device)}
    return {**facts, "gpu": gpu_facts(device)} if device.type == "cuda" else facts


def path(device: torch.device) -> str:
    """Which implementation our layers run on, and whether a kernel has failed meanwhile."""
    name, reason = implementation(device)
    return f"{name}: {reason}"
