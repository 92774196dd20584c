"""The GPU and the peers' versions, to stand beside every number."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ...kernels.dispatch import implementation

PEERS = ("triton", "torchao", "bitsandbytes", "gguf", "sdnq")


def machine(device: torch.device) -> dict[str, Any]:
    """What `environment()` does not say: the GPU's units, and versions of Triton and of the peers."""
    facts: dict[str, Any] = {"peers": {name: _version(name) for name in PEERS}}
    facts["path"] = path(device)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "compute capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "level-2 cache, MB": round(gpu.L2_cache_size / 2**20),
            "memory, GB": round(gpu.total_memory / 1e9),
            "cuda": torch.version.cuda,
        }
    return facts


def path(device: torch.device) -> str:
    """Which implementation our layers run on, and whether a kernel has failed meanwhile."""
    name, reason = implementation(device)
    return f"{name}: {reason}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measured_on(where: dict[str, Any]) -> str:
    """The line below a table: of a machine, versions and a date, what most decides how long torch alone takes."""
    return f"{where['device']}; torch {where['versions']['torch']}; {where['date']}."
