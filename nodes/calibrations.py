"""Calibrations that diffusers' side has made, for a network of ComfyUI with the same weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ..sedialect_core.calibrated import Calibration, InputStatistics
from ..sedialect_core.calibration.cache import CalibrationCache
from ..sedialect_core.errors import ModelError
from ..sedialect_core.formatbook.matching import named_digest
from ..sedialect_core.wan_keys import names_of_authors, to_diffusers


class Found(NamedTuple):
    """What the layers read, by ComfyUI's names, and when and how that was seen."""

    layers: Calibration
    says: str


class _Renamed(Mapping[str, InputStatistics]):
    """A calibration by the authors' names of its layers."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __getitem__(self, layer: str) -> InputStatistics:
        return self._calibration[to_diffusers(layer)]

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("layers are asked for by name")

    def __len__(self) -> int:
        return len(self._calibration)


def calibration_for(network: nn.Module, folder: Path) -> Found:
    """The calibration in a folder for this network.

    Raises:
        InputError: it is of other weights, not finished, or damaged.
        ModelError: the network is not Wan: of others, diffusers has other names.
    """
    parameters = dict(network.named_parameters())
    if not names_of_authors(parameters):
        raise ModelError(
            f"calibrations are read for Wan only, and this is a {type(network).__name__}: calibrate it in diffusers and "
            "load the quantized model with SeDialect Load, or leave calibration at none"
        )
    cache = CalibrationCache.load(folder)
    component = cache.component_of(named_digest((to_diffusers(name), tensor) for name, tensor in parameters.items()))
    return Found(_Renamed(cache.component(component)), cache.describe())
