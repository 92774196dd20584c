"""Carries out a plan, one layer in memory at a time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ...kernels.capabilities import refusals
from ...kernels.lasting import lasting
from ..codec import DTYPES, EncodedTensor, all_finite
from ..config import SeDialectConfig
from ..errors import ModelError
from ..formatbook import Formatbook
from ..formatbook.matching import find_book
from ..inspection import TokenLayout
from ..linear import SeDialectLinear
from ..plan.layers import LayerPlan, Plan
from ..plan.rules import make_plan
from ..progress import Watch, following
from .checks import check_attention, check_untouched
from .products import check_products, settle_products
from .unfinished import swapping
from .weights import Calibration, WeightEncoder, groups_of

ENCODING_BYTES = (
    16  # of free GPU memory an element, before a weight is sent there to be encoded: float32 copies fit, and more
)


@lasting()
def prepare(module: nn.Module, config: SeDialectConfig | None = None, token_layout: TokenLayout | None = None) -> Plan:
    """The plan, after a look at everything that could fail. Nothing is changed.

    Raises:
        ModelError: nothing can be quantized, or weights are not in memory or not finite.
        ConfigError: the GPU that the weights lie on lacks the units that `products` names.
    """
    config = config or SeDialectConfig()
    try:
        plan = make_plan(module, config, token_layout, linear_types=_linear_types(module, config))
        check_attention(plan.config)
        for place in {module.get_submodule(layer.name).weight.device for layer in plan.quantized}:
            assert isinstance(place, torch.device)
            check_products(place, plan.config.products)
        _check_weights(module, plan)
    except ModelError:
        if not config.attention_alone:
            check_untouched(type(module).__name__, module)  # of layers that a thread swaps meanwhile, all else says less
        raise
    return plan


@lasting()
def quantize_layers(
    module: nn.Module,
    config: SeDialectConfig | None = None,
    token_layout: TokenLayout | None = None,
    *,
    plan: Plan | None = None,
    progress: bool | Watch = False,
    keep: Callable[[str, nn.Linear], None] | None = None,
    calibration: Calibration | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """Plan, and rewrite the layers in place, one in memory at a time; `sedialect.quantize_model` is the public face.

    Args:
        plan: what `prepare` gave for this module and these settings, if it was asked before.
        progress: show a progress bar, or tell a watch how many weights are done.
        keep: called with each name and original layer before it is let go.
        calibration: what the layers read, by which weights are encoded; the plan that is returned says where.
        device: where weights are encoded, one at a time; they come back to where they lay. None: where they lie; from the
            CPU on torch's current GPU, if it has the kernels and memory to spare.

    Raises:
        ModelError: as of `prepare`; or another thread is quantizing the module. Nothing has been changed then.
        FormatbookError: there is no such formatbook. Nothing has been changed then.
        ConfigError: as of `prepare`. Nothing has been changed then.
    """
    plan = plan or prepare(module, config, token_layout)
    if not plan.quantized:  # attention alone
        return plan
    with following(progress if isinstance(progress, Watch) else None, bool(progress)) as watch, swapping(module):
        book, name, notes = find_book(module, plan.config.formatbook, plan.config.block_size)
        plan = replace(plan, config=plan.config.override(formatbook=name), notes=(*plan.notes, *notes))
        watch.on_phase(f"Quantizing {plan.model}", sum(layer.weights for layer in plan.quantized), "w")
        done: dict[str, LayerPlan] = {}
        encoder = WeightEncoder(book, plan.config.candidates, calibration)

        def weight_of(layer: LayerPlan) -> torch.Tensor:
            weight = _linear(module, layer.name).weight.detach()
            return weight.to(_encoding_device(weight, device, calibrated=calibration is not None))

        for group in groups_of(plan.quantized):
            for layer, encoded in encoder.encode(group, weight_of):
                _swap(module, layer, encoded, book, plan, keep)
                done[layer.name] = layer
                watch.on_count(sum(layer.weights for layer in done.values()))
    return settle_products(module, replace(plan, layers=tuple(done.get(layer.name, layer) for layer in plan.layers)))


def _swap(
    module: nn.Module,
    layer: LayerPlan,
    encoded: EncodedTensor,
    book: Formatbook,
    plan: Plan,
    keep: Callable[[str, nn.Linear], None] | None,
) -> None:
    """Put a quantized layer in the place of a linear one."""
    linear = _linear(module, layer.name)
    encoded = encoded.to(linear.weight.device)
    if keep is not None:
        keep(layer.name, linear)
    new = SeDialectLinear.from_linear(
        linear,
        encoded=encoded,
        precision=layer.precision,
        block_size=layer.block_size,
        formatbook=book,
        candidates=plan.config.candidates,
        rotation=layer.rotation,
    )
    new.calibrated = layer.calibrated
    set_submodule(module, layer.name, new)


def _linear_types(module: nn.Module, config: SeDialectConfig) -> tuple[type[nn.Module], ...]:
    """What counts as a linear: torch's own; where attention alone is changed, other quantizers' as well."""
    if not config.attention_alone:
        return (nn.Linear,)
    return tuple({type(part) for part in module.modules() if isinstance(part, nn.Linear)} | {nn.Linear})


def _encoding_device(weight: torch.Tensor, wanted: torch.device | str | None, *, calibrated: bool) -> torch.device:
    """Kernels give the bits that the CPU would. The products of calibration differ in their roundings, so they stay."""
    if wanted is not None:
        return torch.device(wanted)
    if weight.device.type == "cpu" and not calibrated and torch.cuda.is_available():
        gpu = torch.device("cuda", torch.cuda.current_device())
        free, _ = torch.cuda.mem_get_info(gpu)
        if not any(refusals(gpu)[:2]) and free > ENCODING_BYTES * weight.numel():
            return gpu
    return weight.device


def _linear(module: nn.Module, name: str) -> nn.Linear:
    linear = module.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


@lasting()
def dequantize_layers(model: nn.Module) -> None:
    """Put 16-bit layers with the quantized values in place, one at a time.

    Raises:
        ModelError: weights are not in memory, as under sequential offloading.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SeDialectLinear)}
    if lost := [name for name, layer in layers.items() if layer.weight.device.type == "meta"]:
        raise ModelError(f"{lost[0]}.weight is not in memory (device meta); switch offloading off, then dequantize")
    for name, layer in layers.items():
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.dequantize(), requires_grad=False)
        linear.bias = layer.bias  # type: ignore[assignment]  # torch declares it a Parameter, and sets None
        set_submodule(model, name, linear.train(layer.training))


def set_submodule(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule called `name`, and wherever else in the model that same one stands."""
    old = module.get_submodule(name)
    for parent in list(module.modules()):
        for child, part in parent._modules.items():
            if part is old:
                parent._modules[child] = new


def _check_weights(module: nn.Module, plan: Plan) -> None:
    """Look at every weight before the first is touched: an error must leave the model as it was."""
    for layer in plan.quantized:
        weight = module.get_submodule(layer.name).weight
        assert isinstance(weight, torch.Tensor)
        if weight.device.type == "meta":
            raise ModelError(
                f"{layer.name}.weight is not in memory (device meta), as under sequential or disk offloading; "
                "quantize first, then enable offloading"
            )
        if weight.dtype not in DTYPES:
            raise ModelError(
                f"{layer.name}.weight is {weight.dtype}; quantize from float32, float16 or bfloat16 weights, before "
                "layerwise casting or another quantizer"
            )
        if not all_finite(weight):
            raise ModelError(f"{layer.name}.weight holds NaN or Inf; load a sound checkpoint or add the layer to `skip`")
