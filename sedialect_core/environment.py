"""The machine and the versions that stand beside every number."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("sedialect", "torch", "diffusers", "transformers")


def environment() -> dict[str, Any]:
    """Machine, versions and date, to stand beside every number."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
