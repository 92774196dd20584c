"""Which adapters of PEFT work on quantized layers, as data. PEFT itself is not imported.

`tests/core/integrations/test_adapters.py` goes through every tuner of PEFT, and holds each to what is said here.
"""

from typing import Any

from torch import nn

ADAPTERS = frozenset(
    (  # noqa: SIM905  # a list of forty strings is harder to read
        "adalora adamss beft boft c3a deft delora fourierft glora gralora hira hra ia3 lily loha lokr lora miss oft osf "
        "peanut poly psoft pvera randlora road shira supertuning tinylora unilora vblora vera waveft"
    ).split()
)
"""Tuners that work, by the names of PEFT's folders: what they give is what they give on the decoded weight."""

BEFORE = "add it to the 16-bit model, and quantize then"
BEFORE_ONLY = {"frod": f"FRoD takes the weights of all layers apart before it is added; {BEFORE}"}
"""Tuners that work where they were there before the model was quantized."""

REFUSED = {
    "ln_tuning": "LN tuning trains a copy of the layer, and packed codes cannot be trained; name norms in target_modules",
    "trainable_tokens": "trainable tokens are rows of an embedding; name an embedding in target_modules",
}
REFUSED_LORA = "KaSA cuts singular values off the weight while it runs, which codes cannot follow; use a plain LoRA"
CHANGING = ("pissa", "olora", "corda", "loftq")  # beginnings of `init_lora_weights` that take a part out of the weight


def adapter_refusal(tuner: str) -> str | None:
    """Why this tuner of PEFT does not work around a quantized layer, and what to do instead; None where it works."""
    if tuner in ADAPTERS or tuner in BEFORE_ONLY:
        return None
    known = ", ".join(sorted(ADAPTERS))
    return REFUSED.get(
        tuner, f"{tuner} has not been tried on 4-bit layers, and may read their codes as numbers; use one of {known}"
    )


def adding_refusal(config: Any) -> str | None:
    """The same for an adapter, a `PeftConfig`, that is about to be added to quantized layers."""
    tuner = tuner_of_config(config)
    if tuner == "lora":
        if getattr(config, "kasa_config", None):
            return REFUSED_LORA
        init = config.init_lora_weights
        if isinstance(init, str) and init.lower().startswith(CHANGING):
            return f"init_lora_weights={init!r} takes its part out of the weight, which 4 bit would round; {BEFORE}"
    return BEFORE_ONLY.get(tuner) or adapter_refusal(tuner)


def tuner_of_config(config: Any) -> str:
    """The name of PEFT's folder for this configuration."""
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()


def tuner_of(adapter: nn.Module) -> str | None:
    """The name of PEFT's folder that a layer's class comes from; None where it is none of PEFT's adapters."""
    package, _, rest = type(adapter).__module__.partition(".tuners.")
    return rest.split(".")[0] if package == "peft" and "base_layer" in adapter._modules else None


def reason_around(adapter: nn.Module) -> str | None:
    """Why the linear inside this adapter cannot be quantized; None where it can, or where this is no adapter."""
    tuner = tuner_of(adapter)
    if tuner is None:
        return None
    return adapter_refusal(tuner) or (REFUSED_LORA if _has_kasa(adapter) else None)


def _has_kasa(module: nn.Module) -> bool:
    variants: Any = getattr(module, "lora_variant", None) or {}
    return any(type(variant).__name__.startswith("Kasa") for variant in variants.values())


def innermost(module: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """The layer under all adapters, and the adapter around it; None where there is none."""
    owner: nn.Module | None = None
    while isinstance(inner := module._modules.get("base_layer"), nn.Module):
        owner, module = module, inner
    return owner, module
