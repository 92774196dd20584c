"""sedialect as a quantizer of diffusers: quantizing while loading, and loading and saving what is quantized.

diffusers calls the methods of `SeDialectQuantizer` in a fixed order: settings, headers of the files, the model without
weights, then every tensor. All checks are made before the first tensor.
"""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.utils import logging
from torch import nn

from ..checkpoint.format import (
    SCALE,
    Contents,
    check_contents,
    check_settings,
    named_book,
    place_layers,
    read_contents,
)
from ..checkpoint.integrity import DigestCheck
from ..checkpoint.record import RECORD, Record
from ..codec import DTYPES
from ..config import SeDialectConfig
from ..errors import InputError, ModelError
from ..formatbook import Formatbook
from ..linear import SeDialectLinear
from ..plan.layers import Plan
from ..plan.rules import check_quantizes, make_plan, recorded_plan
from ..quantize.apply import dequantize_layers
from ..quantize.products import settle_products
from ..quantize.weights import WeightEncoder
from .grouped_weights import GroupedWeights
from .savable import check_savable, sealed_state
from .state import CONFIG_KEYS, Enabled, bytes_unquantized, mark_plain, mark_quantized


class SeDialectQuantizer(DiffusersQuantizer):
    """One of these belongs to each quantized model, as `model.hf_quantizer`."""

    use_keep_in_fp32_modules = True
    requires_calibration = False
    is_trainable = False
    is_compileable = True

    def __init__(self, quantization_config: SeDialectConfig, **kwargs: Any) -> None:
        """Made by diffusers, with `pre_quantized`, which `from_single_file` sets too.

        Raises:
            FormatbookError: there is no such formatbook.
        """
        super().__init__(quantization_config, **kwargs)
        self.quantization_config: SeDialectConfig = quantization_config
        self.compute_dtype = torch.bfloat16
        self.book: Formatbook | None = None
        self.record: Record | None = None
        self.plan: Plan | None = None
        self.contents: Contents | None = None
        self._awaited: set[str] = set()
        self._device_map: Mapping[str, Any] = {}
        self._model: weakref.ref[nn.Module] | None = None
        self._bar: Any = None
        self._gathering: GroupedWeights | None = None
        self._digests: DigestCheck | None = None
        if not self.pre_quantized:  # else the book is in the file, and what its settings name is not looked for
            self._use_book(named_book(quantization_config))

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> "SeDialectQuantizer":
        """The quantizer of a model that `plan` was carried out on."""
        layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
        book = layers[0].formatbook
        new = cls(replace(plan.config, formatbook_digest=book.digest), pre_quantized=True)
        new._use_book(book)
        new.plan, new.record = plan, Record.of(plan, book)
        new.compute_dtype = layers[0].compute_dtype
        new._model = weakref.ref(model)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles forget the model, and what only loading needs."""
        return self.__dict__ | {"_model": None, "_bar": None, "_gathering": None, "_digests": None, "contents": None}

    def _use_book(self, book: Formatbook) -> None:
        """The book by name and digest: its path is nobody's business in a config.json or a request header."""
        self.book = book
        self.quantization_config = replace(self.quantization_config, formatbook=book.name, formatbook_digest=book.digest)

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a device map that would put 16-bit weights on disk, where nobody quantizes them.

        Raises:
            ModelError: that is so.
        """
        device_map = kwargs.get("device_map")
        self._device_map = device_map if isinstance(device_map, Mapping) else {}
        if not self.pre_quantized and "disk" in self._device_map.values():
            raise ModelError(
                "the device map puts layers on disk, where they cannot be quantized; quantize with `sedialect quantize` "
                "first and load the result with this device map"
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """bfloat16 where none was asked for; diffusers would take float32.

        Raises:
            ModelError: layers cannot compute in this dtype.
        """
        if torch_dtype is not None and torch_dtype not in DTYPES:
            raise ModelError(f"dtype is {torch_dtype}; layers compute in bfloat16, float16 or float32: pass one of these")
        self.compute_dtype = torch_dtype or torch.bfloat16
        return self.compute_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Look into the files, and hide our record from a loader that would call it unexpected.

        Raises:
            InputError: the files are damaged, no checkpoint of sedialect's, or contradict config.json.
        """
        if self.pre_quantized:
            self.contents = read_contents(checkpoint_files)
            check_settings(self.contents, self.quantization_config)
        elif RECORD in loaded_keys:
            raise InputError(
                f"{checkpoint_files[0]} is quantized by sedialect already, but its config.json has no quantization_config; "
                "take config.json and weights from one place"
            )
        return [key for key in loaded_keys if key != RECORD]

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Refuse a quantized file in `from_single_file`, which takes its keys for those of the original authors' code and
        renames them.

        Raises:
            InputError: it is one.
        """
        if self.contents is None and RECORD in state_dict:
            raise InputError("this single file is quantized by sedialect already; load its folder with from_pretrained()")
        return state_dict

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if "state_dict" in kwargs:  # from_single_file
            self.pre_quantized = False
        if self.pre_quantized:
            self._expect_codes(model)
        else:
            self._expect_weights(model)
        return model

    def _expect_codes(self, model: nn.Module) -> None:
        assert self.contents is not None
        self.record = self.contents.record
        self._use_book(self.record.formatbook)
        check_contents(self.contents, model, getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
        self._digests = DigestCheck(self.record, self.contents.file_of)
        self.plan = recorded_plan(
            model,
            self.quantization_config,
            self.record.block_size,
            self.record.precisions,
            self.record.rotations,
            self.record.equalized,
        )
        place_layers(model, self.record, self.quantization_config.candidates, self.compute_dtype)

    def _expect_weights(self, model: nn.Module) -> None:
        """Put the layers in place with a float weight on the meta device: loaders compare its shape with the file's, and a
        bias may arrive before it or after, in another thread even."""
        if self.book is None:  # as in from_single_file, which says that all is quantized
            self._use_book(named_book(self.quantization_config))
        assert self.book is not None
        self.plan = make_plan(model, self.quantization_config)
        check_quantizes(self.plan)
        self.record = Record.of(self.plan, self.book)
        place_layers(model, replace(self.record, equalized={}), self.quantization_config.candidates, self.compute_dtype)
        for layer in self.plan.quantized:
            weight = torch.empty(layer.out_features, layer.in_features, dtype=self.compute_dtype, device="meta")
            model.get_submodule(layer.name).weight = nn.Parameter(weight, requires_grad=False)
        self._awaited = {f"{layer.name}.weight" for layer in self.plan.quantized}
        self._gathering = GroupedWeights(self.plan, WeightEncoder(self.book, self.quantization_config.candidates))
        weights = sum(layer.weights for layer in self.plan.quantized)
        self._bar = logging.tqdm(total=weights, desc=f"Quantizing {self.plan.model}", unit="w", unit_scale=True)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """What quantizing makes is not missing; whatever else would stay on the meta device is.

        Raises:
            ModelError: such a parameter is missing.
        """
        made = {f"{name.removesuffix('.weight')}{end}" for name in self._awaited for end in (".weight_meta", SCALE)}
        state = model.state_dict()
        missing = sorted(key for key in missing_keys if key not in made)
        if lost := [key for key in missing if state[key].device.type == "meta"]:
            raise ModelError(
                f"the checkpoint lacks {lost[0]!r} ({len(lost)} keys in all); it is another model's, or incomplete"
            )
        return missing

    def get_special_dtypes_update(self, model: nn.Module, torch_dtype: torch.dtype) -> dict[str, Any]:
        """Let a device map be planned by the size that weights will have."""
        from accelerate.utils import CustomDtype

        return dict.fromkeys(self._awaited, CustomDtype.INT4)

    def get_cuda_warm_up_factor(self) -> int:
        """diffusers reserves 2 bytes for so many elements; packed parameters have one byte, awaited weights half a byte."""
        return 2 if self.pre_quantized else 4

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, *args: Any, **kwargs: Any
    ) -> bool:
        """Whether it is a weight to be quantized now."""
        return param_name in self._awaited

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Any,
        param_name: str,
        target_device: Any,
        state_dict: Any = None,
        *args: Any,
        **kw: Any,
    ) -> None:
        """Quantize a weight on its device, from the file's own dtype rather than the one that it was cast to; with those
        that read the same input, once all of them have come.

        Raises:
            ModelError: the file has other than floats here.
            EncodeError: the weight holds NaN or Inf.
        """
        weight = state_dict[param_name] if state_dict is not None else param_value
        if weight.dtype not in DTYPES:
            raise ModelError(f"{param_name} is {weight.dtype}; quantize from float32, float16 or bfloat16 weights")
        assert self._gathering is not None
        for plan, encoded in self._gathering.add(param_name.removesuffix(".weight"), weight.to(target_device)):
            layer = model.get_submodule(plan.name)
            assert isinstance(layer, SeDialectLinear)
            layer.store(encoded)
            self._bar.update(plan.weights)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Mark the model.

        Raises:
            ModelError: a tensor never came.
            InputError: one is not the one that was written.
            ConfigError: the GPU that it lies on lacks the units that `products` names.
        """
        assert self.plan is not None
        if self._digests is not None:
            self._digests.finish()
        if self._bar is not None:
            self._bar.close()
        if self._gathering is not None and self.book is not None:
            self.plan = self._gathering.carried_out(self.plan)
            self.record = Record.of(self.plan, self.book)
        self.plan = settle_products(model, self.plan)
        empty = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
        if empty and "disk" not in self._device_map.values():
            raise ModelError(f"{empty[0]!r} was not in the checkpoint ({len(empty)} keys in all); it is incomplete")
        self._awaited, self.contents, self._bar, self._gathering, self._digests = set(), None, None, None, None
        self.pre_quantized = True
        self._model = weakref.ref(model)
        mark_quantized(model, Enabled(self.plan, bytes_unquantized(model), loaded=True), self)
        return model

    def change(self, model: nn.Module, plan: Plan, settings: Mapping[str, Any]) -> None:
        """Have other settings saved, of those that do not concern the weights."""
        self.plan, self.quantization_config = plan, self.quantization_config.override(**settings)
        self.register(model)

    def register(self, model: nn.Module) -> None:
        """Enter the settings into the model's config, from where `save_pretrained` writes them."""
        values = (self.quantization_config, self.compute_dtype)
        model.register_to_config(**dict(zip(CONFIG_KEYS, values, strict=True)))  # type: ignore[operator]

    @property
    def is_serializable(self) -> bool:
        """Asked before anything is written, and so the place to refuse.

        Raises:
            ModelError: a LoRA is loaded, or projections are fused: the keys would be those of no model.
        """
        model = self._model() if self._model is not None else None
        if model is not None:
            check_savable(model.state_dict(), model)
        return True

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What is written: the tensors, our record, and the metadata.

        Raises:
            ModelError: pickles were asked for, or the keys are those of no model.
        """
        assert self.record is not None
        if not safe_serialization:
            raise ModelError("a quantized model is saved as safetensors only; leave out safe_serialization=False")
        return sealed_state(self.record, state_dict)

    def _dequantize(self, model: nn.Module) -> nn.Module:
        """Put 16-bit layers with the quantized values in place; see `dequantize_layers`, also for what it raises."""
        dequantize_layers(model)
        mark_plain(model)
        model.hf_quantizer = self  # for diffusers to delete
        return model
