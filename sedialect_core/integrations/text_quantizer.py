"""sedialect as a quantizer of the transformers library: text encoders quantized while they load, and loaded and saved.

transformers builds the model without weights, lets the quantizer put its layers in place, and hands it one tensor at a time.
Keys in our files are the model's own names: transformers' renamings of older checkpoints do not touch them.
"""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from ..checkpoint.format import SCALE, Contents, check_contents, check_settings, named_book, place_layers, read_contents
from ..checkpoint.integrity import DigestCheck
from ..checkpoint.record import RECORD, Record
from ..codec import DTYPES
from ..config import SeDialectConfig
from ..errors import EncodeError, InputError, ModelError
from ..formatbook import Formatbook
from ..linear import SeDialectLinear
from ..plan.layers import Plan
from ..plan.rules import make_plan, recorded_plan
from ..plan.text_models import weights_only
from ..quantize.apply import dequantize_layers
from ..quantize.products import settle_products
from ..quantize.weights import WeightEncoder
from .grouped_weights import GroupedWeights
from .savable import check_savable, sealed_state
from .state import Enabled, bytes_unquantized, mark_plain, mark_quantized

LOADED = "_is_hf_initialized"  # transformers' mark on a parameter that needs no random numbers


class SeDialectTextQuantizer(HfQuantizer):
    """One of these belongs to each quantized model of transformers, as `model.hf_quantizer`."""

    requires_calibration = False
    is_trainable = False
    is_compileable = True

    def __init__(self, quantization_config: SeDialectConfig, **kwargs: Any) -> None:
        """Made by transformers, with `pre_quantized`.

        Raises:
            FormatbookError: there is no such formatbook.
        """
        super().__init__(weights_only(quantization_config), **kwargs)
        self.quantization_config: SeDialectConfig = self.quantization_config
        self.compute_dtype = torch.float32
        self.record: Record | None = None
        self.plan: Plan | None = None
        self._loading: _Loading | None = None
        self._digests: DigestCheck | None = None
        self._model: weakref.ref[nn.Module] | None = None
        if not self.pre_quantized:
            self._use_book(named_book(self.quantization_config))

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> "SeDialectTextQuantizer":
        """The quantizer of a model that `plan` was carried out on."""
        layers = [module for module in model.modules() if isinstance(module, SeDialectLinear)]
        new = cls(plan.config, pre_quantized=True)
        new._use_book(layers[0].formatbook)
        new.plan, new.record = plan, Record.of(plan, layers[0].formatbook)
        new.compute_dtype = layers[0].compute_dtype
        new._model = weakref.ref(model)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles forget the model, and what only loading needs."""
        return self.__dict__ | {"_model": None, "_loading": None, "_digests": None}

    def _use_book(self, book: Formatbook) -> None:
        self.quantization_config = replace(self.quantization_config, formatbook=book.name, formatbook_digest=book.digest)

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a device map that would put 16-bit weights on disk, where nobody quantizes them.

        Raises:
            ModelError: that is so.
        """
        device_map = kwargs.get("device_map")
        if not self.pre_quantized and isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ModelError(
                "the device map puts layers on disk, where they cannot be quantized; quantize without it, save the result, "
                "and load that with this device map"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that was asked for.

        Raises:
            ModelError: layers cannot compute in it.
        """
        if dtype not in DTYPES:
            raise ModelError(f"dtype is {dtype}; layers compute in bfloat16, float16 or float32: pass one of these")
        self.compute_dtype = dtype
        return dtype

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any) -> list[Any]:
        """None for our own files, whose keys are the model's names."""
        return [] if self.pre_quantized else list(weight_conversions)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether it is a weight to be quantized when it comes."""
        return self._loading is not None and param_name in self._loading.awaited

    def get_quantize_ops(self) -> Any:
        """What takes a weight that has come."""
        return _Encode(self)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.pre_quantized:
            self._expect_codes(model, kwargs.get("checkpoint_files") or [])
        else:
            self._expect_weights(model, kwargs.get("checkpoint_files") or [])
        for module in model.modules():
            if isinstance(module, SeDialectLinear):
                setattr(module, LOADED, True)  # no random numbers for codes that are missing: that is an error of ours
        return model

    def _expect_codes(self, model: Any, files: list[str]) -> None:
        """Compare the files with the model, and put empty layers in place.

        Raises:
            InputError: the files are damaged, no checkpoint of sedialect's, or contradict config.json.
            ModelError: they are of another model.
        """
        contents: Contents = read_contents(files)
        check_settings(contents, self.quantization_config)
        self.record = contents.record
        self._use_book(self.record.formatbook)
        check_contents(contents, model, model._keys_to_ignore_on_load_unexpected or (), tied_keys(model))
        _ignore(model, RECORD)
        self._digests = DigestCheck(self.record, contents.file_of)
        self.plan = recorded_plan(
            model,
            self.quantization_config,
            self.record.block_size,
            self.record.precisions,
            self.record.rotations,
            self.record.equalized,
        )
        place_layers(model, self.record, self.quantization_config.candidates, self.compute_dtype)

    def _expect_weights(self, model: nn.Module, files: list[str]) -> None:
        """Put layers in place that wait for a float weight."""
        book = named_book(self.quantization_config)
        self.plan = make_plan(model, self.quantization_config)
        self.record = Record.of(self.plan, book)
        self._loading = _Loading(self.plan, WeightEncoder(book, self.quantization_config.candidates))
        place_layers(model, replace(self.record, equalized={}), self.quantization_config.candidates, self.compute_dtype)
        for layer in self.plan.quantized:
            weight = torch.empty(layer.out_features, layer.in_features, dtype=self.compute_dtype, device="meta")
            model.get_submodule(layer.name).weight = nn.Parameter(weight, requires_grad=False)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Mark the model.

        Raises:
            EncodeError: a weight holds NaN or Inf.
            ModelError: a tensor never came.
            InputError: one is not the one that was written.
        """
        assert self.plan is not None
        if self._digests is not None:
            self._digests.finish()
        if self._loading is not None:
            self.plan = self._loading.finish(model, self.plan)
            layers = (module for module in model.modules() if isinstance(module, SeDialectLinear))
            self.record = Record.of(self.plan, next(layers).formatbook)
        self._loading = self._digests = None
        self.plan = settle_products(model, self.plan)
        self.pre_quantized = True
        self._model = weakref.ref(model)
        mark_quantized(model, Enabled(self.plan, bytes_unquantized(model), loaded=True), self)
        return model

    def register(self, model: Any) -> None:
        """Enter the settings into the model's config, from where `save_pretrained` writes them."""
        model.config.quantization_config = self.quantization_config
        model._weight_conversions = []  # keys are saved as they are

    def unregister(self, model: Any) -> None:
        """Take them out again."""
        for owner, name in ((model.config, "quantization_config"), (model, "_weight_conversions")):
            owner.__dict__.pop(name, None)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Asked before anything is written, and so the place to refuse.

        Raises:
            ModelError: a LoRA is loaded, or weights are not in memory.
        """
        model = self._model() if self._model is not None else None
        if model is not None:
            check_savable(model.state_dict(), model)
        return True

    def get_state_dict_and_metadata(self, model: nn.Module, *args: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """What is written: the tensors, our record, and the metadata.

        Raises:
            ModelError: the keys are those of no model.
        """
        assert self.record is not None
        left_out = tied_keys(model) | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        state = {key: tensor for key, tensor in model.state_dict().items() if key not in left_out}
        return sealed_state(self.record, state)

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """Put 16-bit layers with the quantized values in place; see `dequantize_layers`, also for what it raises."""
        dequantize_layers(model)
        mark_plain(model)
        return model


class _Loading:
    """The weights that are awaited, and the first error among those that came: transformers would log it and go on."""

    def __init__(self, plan: Plan, encoder: WeightEncoder) -> None:
        self.awaited = {f"{layer.name}.weight" for layer in plan.quantized}
        self.gathering = GroupedWeights(plan, encoder)
        self.failure: Exception | None = None

    def take(self, model: nn.Module, name: str, weight: torch.Tensor) -> None:
        """Quantize a weight, with those that read the same input once all of them have come."""
        self.awaited.discard(f"{name}.weight")
        try:
            if weight.dtype not in DTYPES:
                raise ModelError(f"{name}.weight is {weight.dtype}; quantize from float32, float16 or bfloat16 weights")
            for plan, encoded in self.gathering.add(name, weight):
                layer = model.get_submodule(plan.name)
                assert isinstance(layer, SeDialectLinear)
                layer.store(encoded)
                for parameter in layer.parameters(recurse=False):
                    setattr(parameter, LOADED, True)
        except (EncodeError, ModelError) as error:
            self.failure = self.failure or error

    def finish(self, model: nn.Module, plan: Plan) -> Plan:
        """The plan as it was carried out.

        Raises:
            EncodeError: a weight held NaN or Inf.
            ModelError: a tensor never came.
        """
        if self.failure is not None:
            raise self.failure
        lost = sorted(self.awaited)
        for layer in plan.quantized:
            bias = model.get_submodule(layer.name).bias
            if isinstance(bias, nn.Parameter) and not getattr(bias, LOADED, False):
                lost.append(f"{layer.name}.bias")
        if lost:
            raise ModelError(
                f"the checkpoint lacks {lost[0]!r} ({len(lost)} keys in all); it is another model's, or incomplete"
            )
        return self.gathering.carried_out(plan)


class _Encode(ConversionOps):
    """Takes one weight out of transformers' hands. It stores the codes itself, for they come by groups of layers."""

    def __init__(self, quantizer: SeDialectTextQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], *args: Any, model: Any, missing_keys: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Nothing is left for transformers to put into the model.

        Raises:
            InputError: transformers joins weights here, which is not known of any text encoder.
        """
        loading = self.quantizer._loading
        assert loading is not None
        for key, value in input_dict.items():
            name = key.removesuffix(".weight")
            (weight,) = value if isinstance(value, list) else [value]
            if f"{name}.weight" not in loading.awaited:
                raise InputError(f"{key} is not a weight that is awaited; load the model in 16 bit, then quantize it")
            loading.take(model, name, weight)
            for end in (".weight", ".weight_meta", SCALE):
                if missing_keys is not None:
                    missing_keys.discard(name + end)
        return {}


def tied_keys(model: nn.Module) -> set[str]:
    """Keys of the weights that are another's, and stand under that other's key in files."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied)


def _ignore(model: Any, key: str) -> None:
    """Have transformers take the key for nothing unexpected; in this very model, not in its class."""
    known = model._keys_to_ignore_on_load_unexpected  # a set today, a list in transformers 5.0
    model._keys_to_ignore_on_load_unexpected = {*known, key} if isinstance(known, set) else [*(known or ()), key]
