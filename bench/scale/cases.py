"""What is measured: transformers as wide as Wan's and HunyuanVideo's at the token counts of their pipelines, arms, and ways
to split a sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...sedialect_core.config import PRESETS, SeDialectConfig
from ...sedialect_core.errors import InputError
from ..speed.block_kinds import wan_config
from ..speed.shapes import HUNYUAN_720P, WAN_480P, WAN_720P, Video

BASELINE = "BF16"
DEFAULT_ARMS = (BASELINE, "default", "quality", "plain")
EIGHT_BIT = ", attention 8bit"
CHANNELS = 16
QUICK_TOKENS = 128
WAN, HUNYUAN = "wan", "hunyuan"
TITLES = {WAN: "Wan-14B", HUNYUAN: "HunyuanVideo"}
VIDEOS = {
    WAN: {WAN_480P.tokens: WAN_480P, WAN_720P.tokens: WAN_720P},
    HUNYUAN: {HUNYUAN_720P.tokens: HUNYUAN_720P},
}
QUICK_VIDEO = Video(128, 128, 5)


@dataclass(frozen=True)
class Case:
    """One transformer and one video. `tokens`: of `VIDEOS`, or `QUICK_TOKENS`; `model`: `WAN` or `HUNYUAN`."""

    layers: int
    tokens: int
    width: int = 5120
    hidden: int = 13_824
    head_size: int = 128
    text: int = 512
    text_width: int = 4096
    model: str = WAN

    @property
    def tiny(self) -> bool:
        """Whether it is made to test the command."""
        return self.tokens == QUICK_TOKENS

    @property
    def shape(self) -> str:
        """In words."""
        title = (
            f"{TITLES[self.model].partition('-')[0]}-shaped, {self.width} wide"
            if self.tiny
            else f"{TITLES[self.model]}-shaped"
        )
        return f"{title}, {self.layers} layer{'s' * (self.layers > 1)}, {self.tokens:,} tokens"

    @property
    def pair_layers(self) -> int:
        """Of HunyuanVideo's layers those with weights of their own for video and text: a third, as in the whole model."""
        return max(1, self.layers // 3)

    @property
    def weights(self) -> int:
        """Of all layers, less those of modulation."""
        if self.model == WAN:
            return self.layers * (8 * self.width**2 + 2 * self.width * self.hidden)
        once = 4 * self.width**2 + 2 * self.width * self.hidden
        return (self.layers + self.pair_layers) * once

    @property
    def attention(self) -> str:
        """diffusers' backend on GPUs. Ring wants one that tells its log-sum-exp; HunyuanVideo has a mask."""
        return "_native_cudnn" if self.model == WAN else "native"

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Arguments of a forward, the same in every process."""
        video = QUICK_VIDEO if self.tiny else VIDEOS[self.model][self.tokens]
        frames, height, width = video.grid
        kind: Any = {"device": device, "dtype": dtype_on(device)}
        torch.manual_seed(1)
        given = {
            "hidden_states": torch.randn(1, CHANNELS, frames, 2 * height, 2 * width, **kind),
            "timestep": torch.full((1,), 500, device=device),
            "encoder_hidden_states": torch.randn(1, self.text, self.text_width, **kind),
            "return_dict": False,
        }
        if self.model == HUNYUAN:
            given["pooled_projections"] = torch.randn(1, 768, **kind)
            given["encoder_attention_mask"] = (torch.arange(self.text, device=device) < self.text // 2)[None].long()
            given["guidance"] = torch.full((1,), 6000.0, **kind)
        return given

    def build(self, device: torch.device) -> Any:
        """The transformer at random weights, the same in every process; in bfloat16 but for what diffusers keeps wider, on
        CPUs in float32."""
        import diffusers

        torch.manual_seed(0)
        with device:
            model = getattr(diffusers, CLASSES[self.model])(**self._config()).eval().requires_grad_(False)
        kept = set(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not kept & set(name.split(".")):
                parameter.data = parameter.data.to(dtype_on(device))
        return model

    def _config(self) -> dict[str, Any]:
        if self.model == WAN:
            config = wan_config(self.width, self.hidden, self.head_size)
            return config | {"num_layers": self.layers, "text_dim": self.text_width}
        return {
            "num_attention_heads": self.width // self.head_size,
            "attention_head_dim": self.head_size,
            "num_layers": self.pair_layers,
            "num_single_layers": self.layers - self.pair_layers,
            "num_refiner_layers": 1,
            "mlp_ratio": self.hidden / self.width,
            "text_embed_dim": self.text_width,
            "rope_axes_dim": (4, 6, 6) if self.tiny else (16, 56, 56),
        }


CLASSES = {WAN: "WanTransformer3DModel", HUNYUAN: "HunyuanVideoTransformer3DModel"}


def dtype_on(device: torch.device) -> torch.dtype:
    """bfloat16; on CPUs, where only equality is looked at, float32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def case_of(model: str, layers: int = 0, tokens: int = 0, quick: bool = False) -> Case:
    """A case by what the command line says; 0: the default.

    Raises:
        InputError: there is no such video of this model, or too few layers.
    """
    if quick:
        return Case(1 if model == WAN else 3, QUICK_TOKENS, 128, 256, 16, 16, 64, model)
    tokens = tokens or next(iter(VIDEOS[model]))
    layers = layers or LAYERS[model]
    if tokens not in VIDEOS[model]:
        raise InputError(f"--tokens is {tokens}; {TITLES[model]} has {' and '.join(map(str, VIDEOS[model]))}")
    least = 1 if model == WAN else 3
    if layers < least:
        raise InputError(f"--layers is {layers}; it must be at least {least}")
    return Case(layers, tokens) if model == WAN else Case(layers, tokens, 3072, 12_288, text=256, model=HUNYUAN)


LAYERS = {WAN: 8, HUNYUAN: 3}


@dataclass(frozen=True)
class Way:
    """How a sequence is split over all processes: by heads within `ulysses` of them, around a ring of `ring`."""

    ulysses: int
    ring: int = 1

    @property
    def name(self) -> str:
        """In words."""
        parts = [f"Ring {self.ring}"] * (self.ring > 1) + [f"Ulysses {self.ulysses}"] * (self.ulysses > 1)
        return " x ".join(parts)

    def mesh(self, device: torch.device) -> Any:
        """The processes in rings and in groups of Ulysses, for all models that are split this way."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device.type, (self.ring, self.ulysses), mesh_dim_names=("ring", "ulysses"))

    def config(self, mesh: Any) -> Any:
        """For diffusers."""
        from diffusers import ContextParallelConfig

        return ContextParallelConfig(ulysses_degree=self.ulysses, ring_degree=self.ring, mesh=mesh)


def ways_of(processes: int, model: str = WAN) -> tuple[Way, ...]:
    """Ulysses over all; and Ring 2, with Ulysses over the rest, where the attention has no mask."""
    if processes == 1:
        return ()
    rings = processes % 2 == 0 and model == WAN
    return (Way(processes), Way(processes // 2, 2)) if rings else (Way(processes),)


def check(case: Case, processes: int, arms: Iterable[str]) -> None:
    """Refuse what cannot be measured, before anything is.

    Raises:
        InputError: tokens or heads cannot be split evenly, or there is no such arm.
    """
    counts = {"tokens": case.tokens, "heads": case.width // case.head_size}
    if case.model == HUNYUAN:
        counts["text tokens"] = case.text
    for what, count in counts.items():
        if count % processes:
            raise InputError(f"{count} {what} cannot be split evenly over {processes} processes; choose another --gpus")
    for arm in arms:
        if arm != BASELINE and arm.removesuffix(EIGHT_BIT) not in PRESETS:
            known = ", ".join((BASELINE, *PRESETS))
            raise InputError(f"no arm {arm!r}; there are {known}, and presets with {EIGHT_BIT!r} after them")


def enable(arm: str, model: nn.Module) -> None:
    """Make of a 16-bit model what the arm is."""
    from ...sedialect_core.integrations.models import quantize_model

    if arm == BASELINE:
        return
    attention = "8bit" if arm.endswith(EIGHT_BIT) else "16bit"
    quantize_model(model, SeDialectConfig.preset(arm.removesuffix(EIGHT_BIT), attention=attention))
