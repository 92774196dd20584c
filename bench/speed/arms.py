"""What is measured against what: 16 bit, ours, and peers that are installed. Each turns the same linears into its own."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ...kernels.flash3 import attention_bf16
from ...kernels.guidance import RowGuidance
from ...kernels.transform import UNCHANGED, InputTransform
from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import InputError
from ...sedialect_core.integrations.models import quantize_model
from ...sedialect_core.linear import SeDialectLinear
from ...sedialect_core.plan.layers import LayerPlan
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.quantize.apply import set_submodule
from ...sedialect_core.semantics.attending import Attending, Call
from ...sedialect_core.semantics.probe import Treatment, treat_module, watch_torch_and_diffusers
from ...sedialect_core.semantics.state import Flags
from ...sedialect_core.shared_input import share_inputs
from ..peers import layers as peer_layers

BASELINE = "BF16"
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Arm:
    """A way to run linears."""

    name: str
    layer: Callable[[nn.Linear], nn.Module]
    """What it makes of one linear, whose weight it may take over."""
    config: SeDialectConfig | None = None
    """Of our arms; whole models are then quantized as users do it."""
    salient_ratio: float = 0.0
    attention: Run | str | None = None
    """How long self-attention of whole models runs: as a setting has it, or by this function; None: as torch does."""
    preset: bool = False
    """Whether its settings decide everything, as users have it: second terms are found, not told."""
    tunes_itself: bool = False
    """Compiles and tunes at the first call of each shape, for tens of seconds: it is measured last, and not everywhere."""

    @property
    def has_layers(self) -> bool:
        """Whether there is anything in it about single layers."""
        return self.attention is None and not self.preset

    def together(self, linears: list[nn.Linear], rows: int) -> nn.Module:
        """Linears that read the same input of so many rows, as one module."""
        layers = [self.layer(linear) for linear in linears]
        ours = [layer for layer in layers if isinstance(layer, SeDialectLinear)]
        if self.config is not None and self.config.precision != "w4a16":
            share_inputs(("input", layer) for layer in ours)
        guide = self._guide(rows, linears[0].weight.device)
        for layer in ours:
            layer.guide = guide
        return layers[0] if len(layers) == 1 else Readers(layers)

    def model(self, model: nn.Module, rows: dict[str, int]) -> None:
        """Replace the linears that ours quantizes, in place, and run attention as the arm does.

        Args:
            rows: of the streams "video" and "joint".
        """
        if callable(self.attention):
            attend_by(model, self.attention)
        if self.preset and self.config is not None:
            quantize_model(model, self.config)
        elif self.config is not None:
            self._guided(model, quantize_model(model, self.config).quantized, rows)
        elif self.layer is not unchanged:
            for layer in make_plan(model, SeDialectConfig()).quantized:
                linear = model.get_submodule(layer.name)
                assert isinstance(linear, nn.Linear)
                set_submodule(model, layer.name, self.layer(linear))

    def _guided(self, model: nn.Module, layers: Iterable[LayerPlan], rows: dict[str, int]) -> None:
        """Text tokens stay without residuals: they are a hundredth of the rows."""
        device = next(model.parameters()).device
        guides = {stream: self._guide(count, device) for stream, count in rows.items()}
        for entry in layers:
            layer = model.get_submodule(entry.name)
            if isinstance(layer, SeDialectLinear) and entry.precision == "w4a4":
                layer.guide = guides.get(entry.stream)

    def _guide(self, rows: int, device: torch.device) -> "FixedRows | None":
        return FixedRows(rows, self.salient_ratio, device) if self.salient_ratio else None


class Readers(nn.Module):
    """Linears that read the same input, such as queries, keys and values."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[..., K] -> that many [..., N]."""
        return tuple(layer(x) for layer in self.layers)


class FixedRows:
    """A layer's guide for timing: always the same share of the rows is salient, evenly spread (docs/semantics.md).

    What it costs to find salient tokens is not in it.
    """

    def __init__(self, rows: int, ratio: float, device: torch.device) -> None:
        count = math.ceil(ratio * rows)
        self.salient = (torch.arange(count, device=device) * rows // count).int()

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        return RowGuidance(salient=self.salient)


def unchanged(linear: nn.Linear) -> nn.Linear:
    """A linear as it is."""
    return linear


def attend_by(model: nn.Module, run: Run) -> None:
    """Have a model's long self-attention run by a function of queries, keys and values [B, H, N, D]."""
    plan = make_plan(model, SeDialectConfig(precision="16bit", attention="fp8"))
    watch_torch_and_diffusers()
    for entry in plan.attentions:
        if entry.runs == "fp8":
            treat_module(model.get_submodule(entry.name), Treatment(attending=ByFunction("fp8", Flags(), function=run)))


@dataclass
class ByFunction(Attending):
    """Attention by any function; what cannot be said in 8 bit, it is not asked either."""

    function: Run | None = None

    def __call__(self, call: Call) -> torch.Tensor | None:
        """What the function gives, where FlashAttention-3 could; None elsewhere."""
        if self.function is None or self.refusal(call):
            return None
        return self.function(call.query, call.key, call.value)


def _preset(name: str, attention: str) -> Arm:
    config = SeDialectConfig.preset(name, attention=attention)
    kind = None if attention == "16bit" else attention
    return Arm(f"preset {name}" + (f", attention {kind}" if kind else ""), unchanged, config, attention=kind, preset=True)


def _attention_alone(attention: str) -> Arm:
    config = SeDialectConfig(precision="16bit", attention=attention)
    return Arm(f"{BASELINE}, attention {attention}", unchanged, config, attention=attention, preset=True)


def _ours(precision: str, block_size: int = 16, ratio: float = 0.0, products: str = "auto") -> Arm:
    name = precision + (f", B={block_size}" if block_size != 16 else "") + (f" + {ratio:.0%} decomposed" if ratio else "")
    name += f", {products} products" if products != "auto" else ""
    layer = partial(SeDialectLinear.from_linear, precision=precision, block_size=block_size, products=products)
    return Arm(name, layer, SeDialectConfig(precision=precision, block_size=block_size, products=products), ratio)


# In the order of measuring: where seconds run out, the last ones are not measured.
ARMS = (
    Arm(BASELINE, unchanged),
    _ours("w4a4"),
    _ours("w4a8"),
    _ours("w4a4", products="int8"),
    _ours("w4a8", products="int8"),
    Arm("torch INT8 rows", peer_layers.Int8Rows),
    Arm("torchao FP8 rows", peer_layers.torchao_fp8),
    Arm("bitsandbytes NF4", peer_layers.bitsandbytes_nf4),
    Arm("GGUF Q4_0", peer_layers.gguf_q4),
    _ours("w4a4", ratio=0.1),
    _ours("w4a16"),
    _ours("w4a4", ratio=0.25),
    _ours("w4a4", 32),
    Arm(f"{BASELINE}, attention FlashAttention-3", unchanged, attention=attention_bf16),
    *(_attention_alone(kind) for kind in ("8bit", "fp8")),
    *(_preset(name, kind) for name in ("quality", "default") for kind in ("16bit", "8bit", "fp8")),
    Arm("SDNQ uint4", partial(peer_layers.sdnq, dtype="uint4"), tunes_itself=True),
    Arm("SDNQ int8", partial(peer_layers.sdnq, dtype="int8"), tunes_itself=True),
)


def choose_arms(names: Iterable[str] | None) -> tuple[Arm, ...]:
    """Arms by name, in their order and with the baseline first; all of them for None.

    Raises:
        InputError: there is no arm of a name.
    """
    if names is None:
        return ARMS
    wanted = set(names)
    unknown = wanted - {arm.name for arm in ARMS}
    if unknown:
        raise InputError(f"no arm {unknown.pop()!r}; there are {', '.join(repr(arm.name) for arm in ARMS)}")
    return tuple(arm for arm in ARMS if arm.name in wanted | {BASELINE})
