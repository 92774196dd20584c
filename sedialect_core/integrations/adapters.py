"""Adapters of PEFT on quantized layers, LoRA aside: each works as on the decoded weight, or is refused when it is added.

What PEFT takes for the weight of a layer are our packed codes. So three things are wrapped:

* adding: while an adapter is made, an ordinary linear layer with the decoded weight stands in the quantized layer's place;
* running: `get_base_layer()`, by which every tuner reaches the weight, gives such a layer to the tuner's own methods alone;
* merging: the adapter merges into such a layer, and the result is encoded. What was stored before is kept (`lora.py`).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..inspection.adapters import adding_refusal, innermost, tuner_of, tuner_of_config
from ..linear import SeDialectLinear, has_quantized_layers
from .lora import check_in_memory, fuse_decoded, unfuse

OWN = "peft.tuners.lora."  # LoRA has its own way, in lora.py, which needs no weight to be decoded
MARK = "_sedialect_wrapped"
PLAIN_INITS = (True, False, "gaussian")  # of a LoRA's matrices: they do not depend on the weight
SHAPE_ONLY = ("loha", "lokr", "unilora", "c3a")  # these ask the weight for its shape, dtype and device alone


class _Running(threading.local):
    """Whether a tuner's own method is running in this thread, and what it has been given for a layer meanwhile."""

    def __init__(self) -> None:  # once a thread; torch 2.11 compiles a class's attribute in place of what is set over it
        self.depth = 0
        self.seen: dict[int, nn.Linear] | None = None


RUNNING = _Running()


def extend_tuners(module: Any) -> None:
    """Wrap what adds, runs and merges adapters, in `peft.tuners.tuners_utils`. Calling it again changes nothing."""
    tuner, layer = module.BaseTuner, module.BaseTunerLayer
    if hasattr(tuner.inject_adapter, MARK):
        return
    tuner.inject_adapter = _marked(tuner.inject_adapter, _inject)
    layer.get_base_layer = _marked(layer.get_base_layer, _get_base_layer)
    known = list(layer.__subclasses__())
    while known:
        cls = known.pop()
        _extend_layer(cls)
        known += cls.__subclasses__()
    layer.__init_subclass__ = classmethod(lambda cls, **kwargs: _extend_layer(cls))


def _extend_layer(cls: type) -> None:
    if cls.__module__.startswith(OWN):
        return
    for name, function in list(vars(cls).items()):
        special = name.startswith(("__", "unload", "get_base_layer", "set_base_weight"))
        if isinstance(function, FunctionType) and not special and not hasattr(function, MARK):
            setattr(cls, name, _marked(function, {"merge": _merge, "unmerge": _unmerge}.get(name, _read)))


def _marked(function: Callable[..., Any], way: Callable[..., Any]) -> Callable[..., Any]:
    """`function(self, ...)` by way of `way(function, self, ...)`. A plain function: torch.compile reads through it."""

    @wraps(function)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return way(function, self, *args, **kwargs)

    setattr(wrapped, MARK, True)
    return wrapped


# Adding


def _inject(
    function: Callable[..., Any], tuner: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
) -> None:
    if not has_quantized_layers(model):
        function(tuner, model, adapter_name, *args, **kwargs)
        return
    config = tuner.peft_config[adapter_name]
    state = kwargs.get("state_dict", args[2] if len(args) > 2 else None)
    touched: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        _check_addable(tuner, model, config, adapter_name, state)
        if _reads_weight(config):
            tuner.__dict__["_create_and_replace"] = _creating(tuner._create_and_replace, touched)
        function(tuner, model, adapter_name, *args, **kwargs)
    except ModelError:
        _take_back(model, adapter_name, touched)
        raise
    finally:
        tuner.__dict__.pop("_create_and_replace", None)


def _reads_weight(config: Any) -> bool:
    """Whether making the adapter may look at the weight: a plain LoRA does not, and is spared the decoding."""
    if tuner_of_config(config) != "lora" or config.init_lora_weights not in PLAIN_INITS:
        return True
    return any(getattr(config, name, None) for name in ("velora_config", "use_bdlora", "use_qalora", "monteclora_config"))


def _check_addable(tuner: Any, model: nn.Module, config: Any, adapter_name: str, state: Any) -> None:
    """Refuse an adapter on quantized layers before anything is changed, where it is known not to work.

    Raises:
        ModelError: that is so; the message says why, and what to do.
    """
    targeted = [name for name, _ in _ours(model) if _is_target(tuner, config, name, state)]
    if targeted and (why := adding_refusal(config)):
        raise ModelError(f"adapter {adapter_name!r} on {targeted[0]} ({len(targeted)} quantized layers in all): {why}")
    if targeted and _reads_weight(config):
        check_in_memory(model.get_submodule(targeted[0]), "add the adapter before offloading")
    for name, _ in _ours(model):
        for wanted in getattr(config, "target_parameters", None) or ():
            if any(f"{name}.{part}" == wanted or f"{name}.{part}".endswith(f".{wanted}") for part in ("weight", "bias")):
                raise ModelError(
                    f"adapter {adapter_name!r} has target_parameters {wanted!r}, which would add numbers to the packed "
                    f"codes of {name}; name the layer in target_modules instead"
                )
        for wanted in getattr(config, "modules_to_save", None) or ():
            if any(part.endswith(wanted) for part in _parents(name)):
                raise ModelError(
                    f"adapter {adapter_name!r} has modules_to_save {wanted!r}, and {name} in it is quantized: packed codes "
                    "cannot be trained; add it to `skip` when quantizing, or use target_modules"
                )


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _ours(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names under which PEFT finds quantized layers, and what stands there: such a layer, or adapters around it."""
    outer = ""
    for name, module in model.named_modules():
        if outer and name.startswith(outer):
            continue
        found = isinstance(module, SeDialectLinear)
        if not found and hasattr(module, "base_layer"):
            outer = f"{name}."
            found = isinstance(innermost(module)[1], SeDialectLinear)
        if found:
            yield name, module


def _is_target(tuner: Any, config: Any, name: str, state: Any) -> bool:
    if state is not None:
        return any(key.startswith(f"{name}.") for key in state)
    if getattr(config, "target_modules", None) == "all-linear":
        return True
    return bool(getattr(config, "target_modules", None)) and bool(tuner._check_target_module_exists(config, name))


def _creating(function: Callable[..., None], touched: list[Any]) -> Callable[..., None]:
    """A tuner's `_create_and_replace`, for which quantized layers look like ordinary ones with the decoded weight."""

    def create(
        config: Any, adapter_name: str, target: nn.Module, name: str, parent: nn.Module, *args: Any, **more: Any
    ) -> None:
        touched.append((parent, name, target))
        owner, base = innermost(target)
        if not isinstance(base, SeDialectLinear):
            function(config, adapter_name, target, name, parent, *args, **more)
            return
        linear = decoded_linear(base, base.compute_dtype)
        places = [(parent, name)] if owner is None else [(owner, "base_layer")]
        places[0][0]._modules[places[0][1]] = linear
        try:
            function(config, adapter_name, linear if owner is None else target, name, parent, *args, **more)
        finally:
            made = parent._modules[name]
            assert made is not None
            places += [(module, key) for module in made.modules() for key, part in module._modules.items() if part is linear]
            for module, key in places:
                if module._modules.get(key) is linear:
                    module._modules[key] = base
        if not torch.equal(linear.weight, base.dequantize()):
            raise ModelError(
                f"adapter {adapter_name!r} changes the weight of {more.get('current_key', name)} when it is added, which "
                "4 bit would round: add it to the 16-bit model, and quantize then"
            )

    return create


def _take_back(model: nn.Module, adapter_name: str, touched: list[tuple[nn.Module, str, nn.Module]]) -> None:
    """Undo the part of an adapter that was added before it was refused."""
    for parent, name, before in reversed(touched):
        parent._modules[name] = before
        delete: Any = getattr(before, "delete_adapter", None)
        if delete is not None:
            delete(adapter_name)
    getattr(model, "peft_config", {}).pop(adapter_name, None)
    if getattr(model, "_hf_peft_config_loaded", False) and not getattr(model, "peft_config", None):
        model._hf_peft_config_loaded = False  # type: ignore[assignment]  # diffusers sets it before anything is added


# Running


def _read(function: Callable[..., Any], adapter: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(innermost(adapter)[1], SeDialectLinear):
        return function(adapter, *args, **kwargs)
    RUNNING.depth += 1
    try:
        return function(adapter, *args, **kwargs)
    finally:
        RUNNING.depth -= 1
        if not RUNNING.depth:
            RUNNING.seen = None


def _get_base_layer(function: Callable[..., Any], adapter: Any) -> Any:
    base = function(adapter)
    if not RUNNING.depth or not isinstance(base, SeDialectLinear):
        return base
    if torch.compiler.is_compiling():  # the compiler sees by itself what is decoded twice
        return _seen(adapter, base)
    if RUNNING.seen is None:
        RUNNING.seen = {}
    if id(base) not in RUNNING.seen:
        RUNNING.seen[id(base)] = _seen(adapter, base)
    return RUNNING.seen[id(base)]


def _seen(adapter: Any, base: SeDialectLinear) -> nn.Linear:
    return _shaped(base) if tuner_of(adapter) in SHAPE_ONLY else decoded_linear(base, base.compute_dtype)


def decoded_linear(base: SeDialectLinear, dtype: torch.dtype) -> nn.Linear:
    """An ordinary layer with the weight that a quantized one decodes to, and its very bias."""
    return _linear(base, base.dequantize(dtype))


def _shaped(base: SeDialectLinear) -> nn.Linear:
    """The same without numbers: NaN, so that nobody who reads them goes unnoticed."""
    nothing = torch.full((), torch.nan, dtype=base.compute_dtype, device=base.weight.device)
    return _linear(base, nothing.expand(base.out_features, base.in_features))


def _linear(base: SeDialectLinear, weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    # Past `register_parameter`, which PEFT redirects to the meta device while it loads.
    linear._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    linear._parameters["bias"] = base.bias
    return linear.train(base.training)


# Merging


def _merge(function: Callable[..., Any], adapter: Any, *args: Any, **kwargs: Any) -> None:
    owner, base = innermost(adapter)
    if not isinstance(base, SeDialectLinear):
        function(adapter, *args, **kwargs)
        return
    check_in_memory(base, "merge adapters before offloading")
    before = list(adapter.merged_adapters)
    linear = _copied(base)
    try:
        with _in_place(owner, base, linear):
            function(adapter, *args, **kwargs)
        names = adapter.merged_adapters[len(before) :]
        if names:
            merged = linear.weight.detach()
            adapter.merged_adapters[:] = before
            fuse_decoded(adapter, base, names, base.dequantize(torch.float32), merged, linear.bias)
    except BaseException:
        adapter.merged_adapters[:] = before
        raise


def _unmerge(function: Callable[..., Any], adapter: Any, *args: Any, **kwargs: Any) -> None:
    owner, base = innermost(adapter)
    if not isinstance(base, SeDialectLinear) or not adapter.merged:
        function(adapter, *args, **kwargs)
        return
    names = list(adapter.merged_adapters)
    linear = _copied(base)
    with _in_place(owner, base, linear):
        function(adapter, *args, **kwargs)  # for what it keeps beside the weight
    adapter.merged_adapters[:] = names
    unfuse(adapter)


def _copied(base: SeDialectLinear) -> nn.Linear:
    """A decoded layer in float32 that may be changed: its bias is its own."""
    linear = decoded_linear(base, torch.float32)
    if base.bias is not None:
        linear._parameters["bias"] = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    return linear


@contextmanager
def _in_place(owner: nn.Module | None, base: SeDialectLinear, linear: nn.Linear) -> Iterator[None]:
    assert owner is not None
    owner._modules["base_layer"] = linear
    try:
        yield
    finally:
        owner._modules["base_layer"] = base
