"""ComfyUI's linear layer with an encoded weight."""

from collections.abc import Callable
from typing import Any

import comfy.lora
import comfy.ops
import comfy.quant_ops
import torch

from ...kernels.guidance import UNGUIDED
from ...sedialect_core.linear import Guide
from . import layout
from .adapters import Patch, add_patches

NOT_SAVED = "LoRAs on a quantized MODEL are not saved: they stay beside its weights"


class EncodedLinear:
    """Mixed into ComfyUI's linear: computes with an encoded weight, and leaves a float one to ComfyUI.

    ComfyUI would merge LoRAs into the weight, at once or whenever it is moved, and round the sum to 4 bit. Here they are
    kept beside it instead, the same however the model is loaded: `patches` come from the patcher after each load and
    whenever hooks change them.
    """

    patches: list[Patch]
    patch_key = ""
    guide: Guide | None = None  # tells about the rows of an input

    @property
    def encoded(self) -> bool:
        """Whether the weight is in dialects."""
        return layout.is_encoded(self.weight)

    # What `state_dict` lists beside the weight, for whoever asks for each key as an attribute, as hooks and merges do.
    weight_meta = property(lambda self: self.state_dict()["weight_meta"])
    weight_scale = property(lambda self: self.state_dict()["weight_scale"])
    weight_equalizer = property(lambda self: self.state_dict()["weight_equalizer"])
    comfy_quant = property(lambda self: self.state_dict()["comfy_quant"])

    @property
    def weight_lowvram_function(self) -> Any:
        """Where dynamic VRAM puts LoRAs to be merged; nothing for an encoded weight, whose `patches` have them."""
        return None if self.encoded else self.__dict__.get("_lowvram")

    @weight_lowvram_function.setter
    def weight_lowvram_function(self, function: Any) -> None:
        self.__dict__["_lowvram"] = function

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, local: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        weight = state.pop(f"{prefix}weight", None)
        if weight is not None:
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            if self.encoded:
                self.quant_format, self.layout_type = layout.FORMAT, layout.LAYOUT
        torch.nn.Module._load_from_state_dict(self, state, prefix, local, strict, missing, *rest)
        if weight is not None and f"{prefix}weight" in missing:
            missing.remove(f"{prefix}weight")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move, but keep a parameter that `fn` leaves alone: wrapping it again raises outside of inference mode."""
        for name, parameter in self._parameters.items():
            moved = None if parameter is None else fn(parameter)
            if moved is None or moved is parameter:
                continue
            self._parameters[name] = torch.nn.Parameter(usable(moved), requires_grad=False)
        return self

    def set_weight(self, weight: torch.Tensor, *args: Any, return_weight: bool = False, **kwargs: Any) -> Any:
        """Take what ComfyUI has merged, and let it go: the weight stays as it is, and follows it to its device. Who asks for
        the merged weight gets that, in the float type that it was merged in."""
        if not self.encoded:
            return super().set_weight(weight, *args, return_weight=return_weight, **kwargs)
        if return_weight:
            return weight
        if self.weight.device != weight.device:
            self.weight = torch.nn.Parameter(self.weight.to(weight.device), requires_grad=False)
        return None

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.encoded:
            return super().forward(input, *args, **kwargs)
        comfy.ops.run_every_op()
        functions, self.weight_function = self.weight_function, []
        try:
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=input.device, bias_dtype=input.dtype, offloadable=True
            )
        finally:
            self.weight_function = functions
        try:
            return self._compute(input, weight, bias, functions)
        finally:
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)

    def _compute(self, x: torch.Tensor, weight: Any, bias: torch.Tensor | None, functions: list[Any]) -> torch.Tensor:
        def decoded() -> torch.Tensor:
            return weight.to(dtype=x.dtype).dequantize() if layout.is_encoded(weight) else weight.to(x.dtype)

        wrappers = [function for function in functions if not getattr(function, "is_lowvram_patch", False)]
        # Another node wants to see the weight itself, or ComfyUI has decoded it, as it does for a layer put on the CPU.
        # ModelComputeDtype, for which ComfyUI's own quantized layers cast theirs, names the type of x alone.
        if wrappers or not layout.is_encoded(weight):
            dense = decoded()
            for function in wrappers:
                dense = function(dense)
            y = torch.nn.functional.linear(x, dense, bias)
        else:
            y = layout.multiply(x, weight, bias, UNGUIDED if self.guide is None else self.guide(x, weight._params.transform))
        return add_patches(y, x, self.patches, decoded, self._merge) if self.patches else y

    def merged_weight(self) -> torch.Tensor:
        """The weight [N, K] with all LoRAs and merges, float32: for who wants it as numbers."""
        decoded = self.weight.to(dtype=torch.float32).dequantize()
        return self._merge(self.patches, decoded) if self.patches else decoded

    def _merge(self, patches: list[Patch], weight: torch.Tensor) -> torch.Tensor:
        merged: torch.Tensor = comfy.lora.calculate_weight(patches, weight, self.patch_key, intermediate_dtype=weight.dtype)
        return merged


def encoded_layers(model: torch.nn.Module) -> dict[str, EncodedLinear]:
    """A model's layers with an encoded weight, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EncodedLinear) and module.encoded}


def usable(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of what was loaded in inference mode, outside of it: autograd refuses that."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def operations(compute_dtype: torch.dtype) -> Any:
    """The classes that a model is to be built from; new ones each time, for ComfyUI keeps settings on them."""
    register()
    base = comfy.ops.mixed_precision_ops({}, compute_dtype)

    class Linear(EncodedLinear, base.Linear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.patches = []

    return type("SeDialectOps", (base,), {"Linear": Linear})


def register() -> None:
    """Enter format and layout where ComfyUI looks for them. Calling it again changes nothing."""
    layout.register()
    comfy.quant_ops.QUANT_ALGOS[layout.FORMAT] = {
        "storage_t": torch.uint8,
        "parameters": {"weight_meta", "weight_scale", "weight_equalizer"},
        "comfy_tensor_layout": layout.LAYOUT,
        "quantize_input": False,
    }
