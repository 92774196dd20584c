"""`sedialect` as a quantization method of vLLM and vLLM-Omni. Imported by `registration.py` alone, where both are installed.

A layer of vLLM's has its parameters, which vLLM's own loaders slice and fill. What is computed with them is our layer's own
forward: the method holds a `SeDialectLinear` that has the very same parameters and is no part of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.utils import set_weight_attrs

from ..checkpoint.integrity import check_scale
from ..codec import DTYPES
from ..config import SeDialectConfig
from ..errors import ConfigError, ModelError
from ..formatbook import Formatbook
from ..linear import SeDialectLinear
from ..settings.table import LIVE
from .joined import AXES, Joined

NAME = "sedialect"
MIN_CAPABILITY = 75  # older GPUs have neither matrix units for 16-bit products of use, nor Triton


class Loaded(Protocol):
    """What is done once, when the weights of a model are there."""

    def finish(self, device: torch.device) -> None:
        """Do it, for a model that runs on `device`."""


class SeDialectServed(QuantizationConfig):
    """What vLLM-Omni knows of a quantized model: from the start its settings, and the rest once its files are found.

    Args:
        settings: the whole `quantization_config` of a config.json; or, without "version", other values of live settings.
    """

    is_checkpoint_quantized = True  # vLLM-Omni asks: nothing is left to quantize while loading

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = dict(settings or {})

    @classmethod
    def of_keywords(cls, **settings: Any) -> "SeDialectServed":
        """As vLLM-Omni builds it from a config.json or a command line.

        Raises:
            ConfigError: there is no such setting, or a value is not possible, or cannot be chosen for a saved model.
        """
        made = cls(settings)
        if "version" not in settings:
            for name in settings:
                if name not in LIVE:
                    SeDialectConfig().override(**settings)
                    raise ConfigError(f"{name} cannot be changed in a quantized model; there are {', '.join(LIVE)}")
        return made

    def applied_to(self, saved: SeDialectConfig) -> SeDialectConfig:
        """The settings of a saved model with what is chosen for serving."""
        return saved if "version" in self.settings else saved.override(**self.settings)

    def get_name(self) -> str:
        """See vLLM."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """See vLLM."""
        return list(DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        """See vLLM."""
        return MIN_CAPABILITY

    @staticmethod
    def get_config_filenames() -> list[str]:
        """See vLLM: the settings stand in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SeDialectServed":
        """As vLLM itself builds it, which serves none of our models.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "vLLM alone loads no model that is quantized by sedialect; a video model's folder is served by vLLM-Omni: "
            "vllm serve FOLDER --omni"
        )

    def get_quant_method(self, layer: nn.Module, prefix: str) -> "SeDialectLinearMethod | None":
        """A method for a linear; whether it is quantized at all is known once the files are."""
        return SeDialectLinearMethod(self, prefix) if isinstance(layer, LinearBase) else None


@dataclass(frozen=True)
class Sizes:
    """What vLLM says of a layer's sizes when it is made: here, and over all processes."""

    columns: int
    rows: list[int]
    all_columns: int
    all_rows: int
    dtype: torch.dtype
    attributes: Mapping[str, Any]

    def hold(self, saved: list[int]) -> bool:
        """Whether layers with so many rows fit: processes have parts of each, or, of few key heads, all the same."""
        processes = self.all_rows // sum(self.rows)
        if len(saved) != len(self.rows):
            return sum(saved) == self.all_rows
        pairs = zip(saved, self.rows, strict=True)
        return all(not whole % here and whole // here <= processes for whole, here in pairs)


class SeDialectLinearMethod(LinearMethodBase):
    """One layer's parameters, and the forward of our own layer."""

    def __init__(self, config: SeDialectServed, prefix: str = "") -> None:
        self.config = config
        self.prefix = prefix
        self.sizes: Sizes | None = None
        self.linear: SeDialectLinear | None = None
        self.joined: Joined | None = None
        self.loaded: Loaded | None = None
        self.checked = False

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Note the sizes. The parameters come with `settle`; until then an empty one tells the device."""
        columns, rows = input_size_per_partition, list(output_partition_sizes)
        self.sizes = Sizes(columns, rows, input_size, output_size, params_dtype, extra_weight_attrs)
        layer.register_parameter("weight", nn.Parameter(torch.empty(0, dtype=params_dtype), requires_grad=False))

    @property
    def settled(self) -> bool:
        """Whether its files were found."""
        return self.linear is not None

    def settle(
        self, layer: Any, joined: Joined, formatbook: Formatbook, candidates: str, loaded: Loaded | None = None
    ) -> SeDialectLinear:
        """Give a layer its parameters, to be loaded.

        Args:
            joined: the saved layers that it is made of.
            loaded: what is to be done when all weights are there.

        Raises:
            ModelError: its shape is another one, or its part of the columns would cut blocks.
        """
        assert self.sizes is not None
        sizes, device = self.sizes, layer.weight.device
        rows_of = [entry.out_features for entry in joined.entries]
        if joined.first.in_features != sizes.all_columns or not sizes.hold(rows_of):
            raise ModelError(
                f"{joined.names} is saved with {joined.first.in_features} inputs and {sum(rows_of)} outputs, and "
                f"{type(layer).__name__} {self.prefix!r} has {sizes.all_columns} and {sizes.all_rows}; the folder is of "
                "another model"
            )
        joined.check_columns(sizes.columns)
        bias, rows = getattr(layer, "bias", None), sum(sizes.rows)
        made: dict[str, Any] = {"formatbook": formatbook, "candidates": candidates, "compute_dtype": sizes.dtype}
        linear = SeDialectLinear(sizes.columns, rows, bias is not None, **made, **joined.settings, device=device)
        linear.weight_scale.zero_()  # so that one that is never loaded is found out
        linear.bias = bias
        del layer.weight
        for name, axes in AXES.items():
            parameter = getattr(linear, name)
            if parameter is not None:
                layer.register_parameter(name, parameter)
                set_weight_attrs(parameter, self._attributes(axes))
        self.linear, self.joined, self.loaded = linear.requires_grad_(False).eval(), joined, loaded
        return linear

    def _attributes(self, axes: tuple[int | None, int | None]) -> dict[str, Any]:
        """By which vLLM's loaders slice a stored tensor."""
        assert self.sizes is not None
        rows, columns = axes
        attributes = dict(self.sizes.attributes) | {"is_checkpoint_required": True, "ignore_warning": True}
        if rows is not None:
            attributes["output_dim"] = rows
        if columns is not None:
            attributes["input_dim"] = columns
        return attributes

    def leave(self, layer: Any) -> None:
        """Make a layer the 16-bit one that vLLM would have made."""
        assert self.sizes is not None
        sizes, device = self.sizes, layer.weight.device
        del layer.weight
        layer.quant_method = UnquantizedLinearMethod()
        with device:
            layer.quant_method.create_weights(
                layer, sizes.columns, sizes.rows, sizes.all_columns, sizes.all_rows, sizes.dtype, **sizes.attributes
            )
        if hasattr(layer, "update_param_tp_status"):
            layer.update_param_tp_status()

    def process_weights_after_loading(self, layer: Any) -> None:
        """Look at what was loaded.

        Raises:
            ModelError: the layer's files were never found.
            InputError: a row scale was not loaded, or a tensor is not the one that was written.
        """
        linear = self._linear()
        check_scale(layer.weight_scale, f"the layer {self.prefix!r}, as loaded: 'weight_scale'")
        self._bind(linear, layer, linear.bias)
        linear.prepare()
        if self.loaded is not None:
            self.loaded.finish(layer.weight.device)
        self.checked = True

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[..., K] -> [..., N], by our own layer.

        Raises:
            ModelError: its weights came on a way that does not look at them.
        """
        linear = self._linear()
        if not self.checked:
            raise ModelError(
                f"the weights of {self.prefix!r} were not loaded by vLLM-Omni's ordinary loader, so nobody has looked at "
                "them; do without distributed layerwise offloading"
            )
        self._bind(linear, layer, bias)
        result: torch.Tensor = linear(x)
        return result

    def _linear(self) -> SeDialectLinear:
        if self.linear is None:
            raise ModelError(
                f"the layer {self.prefix!r} was made for sedialect, but no quantized folder belongs to it; serve a folder "
                "that `sedialect quantize` or save_pretrained() wrote"
            )
        return self.linear

    def _bind(self, linear: SeDialectLinear, layer: nn.Module, bias: torch.Tensor | None) -> None:
        """Have our layer compute with the parameters that vLLM's has now: offloading may have put others in place."""
        for name in AXES:
            now = getattr(layer, name, None)
            if getattr(linear, name) is not now:
                setattr(linear, name, now)
        if linear.bias is not bias:
            linear._parameters["bias"] = bias  # type: ignore[assignment]  # a layer without columns of its own adds none
