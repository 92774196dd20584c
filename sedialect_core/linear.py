"""The layer. A subclass of `torch.nn.Linear` whose weight is stored in the dialects and decoded when it is used.

Why a subclass with plain uint8 Parameters, rather than a tensor subclass or buffers: PEFT, accelerate's and diffusers'
offloading, layerwise casting and safetensors all handle it without knowing it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ..kernels import derivatives, ops
from ..kernels.guidance import UNGUIDED, RowGuidance
from ..kernels.reference import EncodedRows
from ..kernels.transform import UNCHANGED, InputTransform
from .codec import EncodedTensor, encode
from .errors import ModelError
from .formatbook import Formatbook
from .shared_input import Encoded, SharedInput

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
CODE = "sedialect"  # in the metadata of state dictionaries
DIALECT_MASK = 31  # of a byte of `weight_meta`
ACTIVATION_BITS = {"w4a4": 4, "w4a8": 8, "w4a16": 16}


class Guide(Protocol):
    """Tells a layer about its rows, from the input [..., K] itself or from what was seen before."""

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for this input, which is changed by `transform` before it is encoded."""


class SeDialectLinear(nn.Linear):
    """y = x @ W.T + bias with 4-bit W, and x in 4, 8 or 16 bits.

    Parameters (none is trained):
        weight        uint8 [N, K/2]: codes, element 2i in the low nibble
        weight_meta   uint8 [N, K/B]: delta << 5 | dialect
        weight_scale  uint8 [N, 4]: the bits of the float32 row scale, in bytes because loaders cast floats
        weight_equalizer  int8 [K] or None: column k of the input is multiplied by 2^-e[k] before it is encoded, and the
                          codes are of a weight whose column k is multiplied by 2^e[k]
        bias          [N] in the dtype of the layer it replaced, or None
    """

    bias: nn.Parameter | None  # type: ignore[assignment]  # torch declares it a Parameter, and sets None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        precision: str = "w4a4",
        block_size: int = 16,
        formatbook: Formatbook | None = None,
        candidates: str = "max",
        rotation: int = 0,
        equalized: bool = False,
        products: str = "auto",
        compute_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        """An empty layer, to be filled by loading a checkpoint; `from_linear` makes a full one.

        Args:
            equalized: whether there is a `weight_equalizer`.
            products: which matrix units multiply, as of `InputTransform`.
        """
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate a float weight
        self.in_features = in_features
        self.out_features = out_features
        self.precision = precision
        self.block_size = block_size
        self.formatbook = formatbook or Formatbook.builtin()
        self.candidates = candidates
        self.rotation = rotation  # size of the Hadamard blocks by which weight and activations are rotated; 0: they are not
        self.products = products
        self._rounding_loss: float | None = None
        self.calibrated = False  # whether its weight was encoded with the layer's inputs in view; files do not tell
        self.shared_input: SharedInput | None = None  # with the layers that read the same input
        self.reader = 0  # which of them it is
        self.guide: Guide | None = None
        self.compute_dtype = compute_dtype  # read by PEFT for its adapters, and by models that ask a layer for its dtype

        def stored(columns: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(out_features, columns, dtype=torch.uint8, device=device), requires_grad=False)

        self.weight = stored(in_features // 2)
        self.weight_meta = stored(in_features // block_size)
        self.weight_scale = stored(4)
        self.weight_equalizer: nn.Parameter | None = None
        if equalized:
            exponents = torch.zeros(in_features, dtype=torch.int8, device=device)
            self.weight_equalizer = nn.Parameter(exponents, requires_grad=False)
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=compute_dtype, device=device), requires_grad=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, name: str = "weight", encoded: EncodedTensor | None = None, **settings: Any
    ) -> "SeDialectLinear":
        """Encode a float layer, on the device it lies on. `settings` are those of the constructor.

        Args:
            encoded: its weight, where it is encoded already.

        Raises:
            EncodeError: its weight holds NaN or Inf, or K is not a multiple of the block size; the error calls it `name`.
        """
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        new = cls(*shape, compute_dtype=linear.weight.dtype, device="meta", **settings)
        if encoded is None:
            encoded = new.encode_weight(linear.weight.detach(), name)
        new.store(encoded)
        if linear.bias is not None:
            bias = linear.bias.detach()
            # What inference mode made cannot be wrapped anew outside of it, and is forbidden to autograd.
            new.bias = nn.Parameter(bias.clone() if bias.is_inference() else bias, requires_grad=False)
        for hooks in HOOKS:  # the very dictionaries: whoever hooked the layer can still unhook it
            setattr(new, hooks, getattr(linear, hooks))
        return new.train(linear.training)

    def encode_weight(self, weight: torch.Tensor, name: str = "weight") -> EncodedTensor:
        """A float weight [N, K] as this layer stores it, by its own equalizer, on the device it lies on.

        Raises:
            EncodeError: it holds NaN or Inf, or K is not a multiple of the block size; the error calls it `name`.
        """
        settings: dict[str, Any] = {"block_size": self.block_size, "rotation": self.rotation, "name": name}
        equalizer = None if self.weight_equalizer is None else self.weight_equalizer.detach().to(weight.device)
        return encode(weight, formatbook=self.formatbook, equalizer=equalizer, **settings)

    def store(self, encoded: EncodedTensor) -> None:
        """Make `encoded` the weight."""
        for suffix, part in encoded.stored.items():
            setattr(self, f"weight{suffix}", nn.Parameter(part, requires_grad=False))
        if encoded.equalizer is None:
            self.weight_equalizer = None
        self._rounding_loss = None
        self.prepare()

    def prepare(self) -> None:
        """Make the lookup tables where the layer lies. A graph that is traced before they are there is compiled twice."""
        if self.weight.device.type != "meta":
            self.formatbook.tables(self.weight.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "SeDialectLinear":
        """As of nn.Module: what `.to()`, `.cuda()` and their like do."""
        super()._apply(fn, recurse)
        self.prepare()
        return self

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As any module does, which is also what assigning a parameter does; but keep the codes from other quantizers.

        They look for `nn.Linear` and would round codes as if they were weights: xDiT's `--gemm_quantization` and torchao's
        `quantize_` put a tensor of their own class in the weight's place, or take it away to replace the layer.

        Raises:
            ModelError: the weight was to become such a tensor, or none.
        """
        held = self.__dict__.get("_parameters", {}).get(name)
        if name == "weight" and held is not None and not type(param).__module__.startswith("torch."):
            kind = type(param)
            what = "taken away" if param is None else f"replaced by {kind.__module__.split('.')[0]}'s {kind.__name__}"
            raise ModelError(
                f"the weight of a layer that sedialect quantized ({self.in_features} to {self.out_features}) was to be "
                f"{what}: another quantizer takes its codes for a weight; leave that off (xDiT: --gemm_quantization none; "
                "torchao: a filter_fn without SeDialectLinear), or give it the 16-bit model"
            )
        super().register_parameter(name, param)

    @property
    def rounding_loss(self) -> float:
        """What INT8 units would add to the squared error of the weight's code, as a part of that; told once."""
        if self._rounding_loss is None:
            self._rounding_loss = self.encoded.rounding_loss
        return self._rounding_loss

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # beside the tensors, as torch's versions of modules are: no key of its own
            destination._metadata.setdefault(prefix[:-1], {})[CODE] = self._code

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        """Codes of another formatbook or transform are no codes of this layer, though they have its shapes."""
        mine, others = self._code, metadata.get(CODE, self._code)
        found = [f"{key} {others.get(key)} there, {value} here" for key, value in mine.items() if others.get(key) != value]
        dialects, meta = len(self.formatbook.dialects), state.get(f"{prefix}weight_meta")
        if not found and dialects <= DIALECT_MASK and meta is not None and meta.numel() and meta.device.type != "meta":
            most = int((meta & DIALECT_MASK).max())
            found = [f"dialect {most}, of {dialects} here"] * (most >= dialects)
        if found:
            errors.append(
                f"{prefix[:-1]}: the codes are of other settings ({'; '.join(found)}); quantize both models alike, or load "
                "the folder of the other with from_pretrained()"
            )
            return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)

    @property
    def _code(self) -> dict[str, Any]:
        """What decides, beside the stored tensors, which weight the codes mean."""
        settings = {"block size": self.block_size, "rotation": self.rotation, "equalized": self.weight_equalizer is not None}
        return {"formatbook": self.formatbook.digest[:12], **settings}

    @property
    def row_scale(self) -> torch.Tensor:
        """Row scales of the weight, float32 [N]."""
        return self.weight_scale.view(torch.float32).squeeze(1)

    @property
    def encoded(self) -> EncodedTensor:
        """The weight as the codec's value; shares the layer's storage."""
        stored = [part.detach() for part in (self.weight, self.weight_meta, self.weight_scale)]
        settings: dict[str, Any] = {"block_size": self.block_size, "rotation": self.rotation}
        equalizer = None if self.weight_equalizer is None else self.weight_equalizer.detach()
        return EncodedTensor.of_stored(stored, self.formatbook, equalizer=equalizer, **settings)

    @property
    def transform(self) -> InputTransform:
        """How the input becomes operands."""
        return InputTransform(self.weight_equalizer, self.rotation, self.products)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight as floats, [N, K], in `compute_dtype` unless told otherwise; without the layer's transform."""
        return self.encoded.dequantize(dtype or self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x.dtype, freshly allocated and contiguous.

        Raises:
            ModelError: x has another width or no floats; or something has been put in the place of the codes.
        """
        self._check(x)
        if derivatives.transformed():
            y = self._transformed(x)
        elif torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            y = self._differentiable(x)
        else:
            operand, row_scale, salient = self._encoded(x)
            y = ops.matmul(operand, row_scale, self._rows, self.bias, self._tables(x), x.dtype, salient)
        return y.view(*x.shape[:-1], self.out_features)

    def _check(self, x: torch.Tensor) -> None:
        """Refuse what would give numbers that mean nothing, or an error of another place."""
        if torch.jit.is_tracing():
            raise ModelError("torch.jit cannot record quantized layers; use torch.export or torch.compile")
        if "weight" not in self._parameters or self.weight.dtype != torch.uint8:
            raise ModelError(
                "something stands in the place of a quantized layer's codes, such as a pruned, cast or re-parametrized "
                "weight, and codes are no numbers; change the 16-bit model and quantize then"
            )
        if not x.is_floating_point() or x.shape[-1:] != (self.in_features,):
            raise ModelError(
                f"a quantized layer was given {list(x.shape)} {x.dtype}; it reads floats of [..., {self.in_features}]: "
                "check the inputs of the model"
            )

    def _encoded(self, x: torch.Tensor) -> Encoded:
        """What `_encode` gives, once for all layers that read x."""
        if self.shared_input is None:
            return self._encode(x)
        return self.shared_input.encoded(x, lambda: self._encode(x), self.reader)

    def _encode(self, x: torch.Tensor) -> Encoded:
        rows, bits = x.reshape(-1, self.in_features), ACTIVATION_BITS[self.precision]
        transform = self.transform
        if bits == 16 and not transform.rotation and transform.equalizer is None:
            return Encoded(rows, None, None)
        guidance = UNGUIDED if self.guide is None else self.guide(x, transform)
        operand, row_scale = ops.encode(rows, self._tables(x), self.block_size, bits, self.candidates, guidance, transform)
        return Encoded(operand, row_scale, guidance.salient)

    def _transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The same under a transform of `torch.func`, or with forward-mode derivatives; nothing is kept for other layers."""
        guidance = UNGUIDED if self.guide is None else self.guide(x, self.transform)
        fixed = derivatives.Fixed.of(self._rows, self.transform, self._tables(x))
        bits, rows = ACTIVATION_BITS[self.precision], x.reshape(-1, self.in_features)
        return derivatives.linear(rows, self.bias, fixed, bits, self.candidates, guidance)

    def _differentiable(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one operator, which knows its gradient."""
        guidance = UNGUIDED if self.guide is None else self.guide(x, self.transform)
        bits, rows = ACTIVATION_BITS[self.precision], x.reshape(-1, self.in_features)
        return ops.linear(rows, self._rows, self.bias, self._tables(x), bits, self.candidates, guidance, self.transform)

    @property
    def _rows(self) -> EncodedRows:
        """The weight as kernels take it."""
        return EncodedRows(self.weight, self.weight_meta, self.row_scale)

    def _tables(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.formatbook.tables(x.device).operands

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"precision={self.precision}, block_size={self.block_size}, formatbook={self.formatbook.name}"
        )


def has_quantized_layers(model: nn.Module) -> bool:
    """Whether sedialect has quantized layers of a model."""
    return any(isinstance(module, SeDialectLinear) for module in model.modules())
