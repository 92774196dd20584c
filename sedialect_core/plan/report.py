"""What quantizing cost and saved, as rows. Front ends print them; nothing here measures quality."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from ...kernels.attention_support import attention_implementation
from ...kernels.dispatch import Implementation, implementation, refusals
from ..config import SeDialectConfig
from .layers import LayerPlan, Plan

QUALITY_ADVICE = (
    "this GPU has FP8 units: preset quality (8-bit activations) takes no more time here than 4-bit activations, and is "
    "nearer to 16 bit"
)


def in_short(plan: Plan, bytes_before: int, bytes_after: int) -> str:
    """What was made of a model, in one line."""
    made = f"{len(plan.quantized)} of {len(plan.layers)} layers in {plan.config.precision}"
    return f"{made}, {megabytes(bytes_before)} -> {megabytes(bytes_after)} MB"


@dataclass(frozen=True)
class ModelReport:
    """One model before and after. Bits are effective: codes, meta and scales divided by elements."""

    component: str
    plan: Plan
    bytes_before: int
    bytes_after: int
    weight_bits: float
    activation_bits: float
    implementation: str
    advice: str = ""
    attention: tuple[str, ...] = ()
    """How attention runs, where it is asked to in fewer bits."""

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line."""
        model = ("model", f"{self.component}: {self.plan.model} ({self.plan.family})")
        attention = [("attention", said) for said in self.attention]
        if not self.plan.quantized:
            layers = f"{len(self.plan.layers)}, all left as they are"
            return [model, ("layers", layers), *attention, *protected_rows(self.plan)]
        left = len(self.plan.left_alone)
        return [
            model,
            ("layers", f"{len(self.plan.quantized)} in {self.plan.config.precision}, {left} left in 16 bit"),
            ("weights", f"{self.weight_bits:.3f} bits in the quantized layers (block size {self.plan.config.block_size})"),
            ("activations", f"{self.activation_bits:.3f} bits into them"),
            ("memory", f"{megabytes(self.bytes_before)} -> {megabytes(self.bytes_after)} MB for the whole model"),
            *equalized_rows(self.plan),
            *token_rows(self.plan),
            *attention,
            ("formatbook", self.plan.config.formatbook),
            ("runs on", self.implementation),
            *([("advice", self.advice)] if self.advice else []),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows) + f"\n{self.plan}"


def report_of(
    component: str,
    model: nn.Module,
    plan: Plan,
    bytes_before: int,
    runs_on: torch.device | None = None,
    attention_said: tuple[str, ...] = (),
) -> ModelReport:
    """The report of a model that `plan` was carried out on.

    Args:
        runs_on: where a model that is offloaded to the CPU runs.
        attention_said: what more there is to say of attention.
    """
    device = next(model.parameters()).device
    if device.type in ("cpu", "meta") and runs_on is not None:  # offloaded between calls
        device = runs_on
    return ModelReport(
        component=component,
        plan=plan,
        bytes_before=bytes_before,
        bytes_after=model_bytes(model),
        weight_bits=plan.weight_bits,
        activation_bits=plan.activation_bits,
        implementation=implementations(device, plan),
        advice=quality_advice(device, plan.config) or "",
        attention=(*attention_words(plan, device), *attention_said),
    )


def attention_words(plan: Plan, device: torch.device) -> tuple[str, ...]:
    """How attention runs, where it is asked to in fewer bits: how much of it, and on what."""
    if not plan.attentions:
        return ()
    kind = plan.config.attention
    count = sum(one.runs == kind for one in plan.attentions)
    name, reason = attention_implementation(kind, device)
    return (f"{count} of {len(plan.attentions)} in {kind} on {device}, {name}: {reason}",)


def implementations(device: torch.device, plan: Plan) -> str:
    """What the quantized layers run on, in words; which of them on which, where they differ."""
    paths: dict[Implementation, list[LayerPlan]] = {}
    for layer in plan.quantized:
        shape = (layer.out_features, layer.in_features)
        paths.setdefault(implementation(device, layer.precision or "", shape, plan.products_of(layer)), []).append(layer)
    if len(paths) == 1:
        return "".join(f"{device}, {name}: {reason}" for name, reason in paths)
    ordered = sorted(paths.items(), key=lambda path: -len(path[1]))
    told = [
        f"{_named(layers, all_but=number == 0)}: {name}: {reason}" for number, ((name, reason), layers) in enumerate(ordered)
    ]
    return f"{device}; " + "; ".join(told)


def quality_advice(device: torch.device | str, config: SeDialectConfig | None = None) -> str | None:
    """What to say of preset `quality` on this device; None without FP8 products, or where `config` has more bits already."""
    device = torch.device(device)
    if device.type != "cuda" or (config is not None and config.precision != "w4a4"):
        return None
    refused = refusals(device)
    return QUALITY_ADVICE if refused.device is None and refused.fp8 is None else None


def _named(layers: list[LayerPlan], all_but: bool) -> str:
    """How many layers, and their names without the blocks' numbers, unless they are the rest."""
    count = f"{len(layers)} layers"
    return count if all_but else f"{count} ({', '.join(dict.fromkeys(layer.pattern for layer in layers))})"


def equalized_rows(plan: Plan) -> list[tuple[str, str]]:
    """How many layers are equalized, and by what, where any is."""
    counts = Counter(layer.equalized for layer in plan.quantized if layer.equalized)
    told = ", ".join(f"{count} by {statistics}" for statistics, count in sorted(counts.items()))
    return [("equalized", f"{sum(counts.values())} layers have scaled channels: {told}")] if counts else []


def token_rows(plan: Plan) -> list[tuple[str, str]]:
    """What is done for single tokens, where anything is."""
    config = plan.config
    salient = [layer for layer in plan.quantized if layer.salient not in ("", "text")]
    grouped = sum(layer.grouped for layer in plan.quantized)
    window = " x ".join(map(str, config.semantic_window))
    renewed = f"every {config.refresh_every} steps" if config.refresh_every else "never"
    if config.refresh_at:
        renewed = f"at {', '.join(f'{part:.0%}' for part in config.refresh_at)} of the steps"
    rows = []
    if salient:
        rows.append(
            ("second terms", f"{config.salient_ratio:.0%} of the video tokens by {config.salient_by}, {len(salient)} layers")
        )
    if grouped:
        shared = f"a {config.semantic_sharing} for groups in windows of {window} tokens"
        rows.append(("shared", f"{shared}, renewed {renewed}, {grouped} layers"))
    return rows + protected_rows(plan)


def protected_rows(plan: Plan) -> list[tuple[str, str]]:
    """Which steps run in more bits, where any do."""
    first, last = plan.config.protected_steps
    kinds = ["in w4a8"] if plan.quantized else []
    kinds += ["with attention in 16 bit"] if plan.attentions else []
    run = f"the first {first} and the last {last} steps run {' and '.join(kinds)}"
    return [("protected", run)] if (first or last) and kinds else []


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors: dict[int, torch.Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def megabytes(count: int) -> str:
    """Bytes as megabytes (10^6) with one digit."""
    return f"{count / 1e6:.1f}"
