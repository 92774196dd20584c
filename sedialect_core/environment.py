"""The machine and the versions that stand beside every number: found out here, and put into words here."""

import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("sedialect", "torch", "diffusers", "transformers")
ALSO_CALLED = {"triton": ("triton-windows", "pytorch-triton", "triton-rocm", "pytorch-triton-rocm")}
"""Packages that hold the same modules: Windows and other builds of torch have their own."""


def environment() -> dict[str, Any]:
    """Machine, versions and date, to stand beside every number; `machine_line` puts them into words."""
    return {
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "python": platform.python_version(),
        "versions": package_versions(PACKAGES),
        "date": today(),
    }


def machine_line(where: Mapping[str, Any], packages: Iterable[str] | None = None) -> str:
    """Device, versions and date, as they stand below a table: "NVIDIA H100; torch 2.13.0; 2026-11-27.".

    Args:
        where: from `environment()`; what a bench adds is told as well: `gpu`, facts of it, and `peers`, their versions.
        packages: for a short line, those whose versions matter.
    """
    gpu = where.get("gpu", {}) if packages is None else {}
    facts = ", ".join(f"{name} {value}" for name, value in gpu.items())
    known = {**where.get("versions", {}), **where.get("peers", {})}
    listed = ", ".join(f"{name} {known[name]}" for name in (known if packages is None else packages) if known.get(name))
    return "; ".join([f"{where.get('device')}{f' ({facts})' if facts else ''}", listed, f"{where.get('date')}."])


def device_name(device: str | torch.device) -> str:
    """What the machine calls a device; of a CPU, its kind and how many threads compute."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def gpu_facts(device: str | torch.device) -> dict[str, Any]:
    """What a GPU has; of other devices, nothing."""
    if torch.device(device).type != "cuda":
        return {}
    gpu = torch.cuda.get_device_properties(device)
    return {
        "compute capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "level-2 cache, MB": round(gpu.L2_cache_size / 2**20),
        "memory, GB": round(gpu.total_memory / 1e9),
        "cuda": torch.version.cuda,
    }


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed versions by name; None where a package is not installed."""
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    """The installed version of a package, or of another that is imported by its name; None where there is neither."""
    for known in (name, *ALSO_CALLED.get(name, ())):
        try:
            return version(known)
        except PackageNotFoundError:
            continue
    return None


def today() -> str:
    """The date in UTC, as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()
