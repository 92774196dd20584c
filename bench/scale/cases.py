"""What is measured: a Wan-shaped transformer at the token counts of its pipelines, arms, and ways to split a sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...sedialect_core.config import PRESETS, SeDialectConfig
from ...sedialect_core.errors import InputError
from ..speed.block_kinds import wan_config
from ..speed.shapes import Video

BASELINE = "BF16"
DEFAULT_ARMS = (BASELINE, "default", "quality", "plain")
EIGHT_BIT = ", attention 8bit"
CHANNELS = 16
QUICK_TOKENS = 128
VIDEOS = {32_760: Video(832, 480, 81), 75_600: Video(1280, 720, 81), QUICK_TOKENS: Video(128, 128, 5)}


@dataclass(frozen=True)
class Case:
    """One transformer and one video. `tokens`: of `VIDEOS`."""

    layers: int
    tokens: int
    width: int = 5120
    hidden: int = 13_824
    head_size: int = 128
    text: int = 512
    text_width: int = 4096

    @property
    def shape(self) -> str:
        """In words."""
        kind = "Wan-14B-shaped" if self.width == 5120 else f"{self.width} wide"
        return f"{kind}, {self.layers} layers, {self.tokens:,} tokens"

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Arguments of a forward, the same in every process."""
        frames, height, width = VIDEOS[self.tokens].grid
        kind: Any = {"device": device, "dtype": torch.bfloat16}
        torch.manual_seed(1)
        return {
            "hidden_states": torch.randn(1, CHANNELS, frames, 2 * height, 2 * width, **kind),
            "timestep": torch.full((1,), 500, device=device),
            "encoder_hidden_states": torch.randn(1, self.text, self.text_width, **kind),
            "return_dict": False,
        }

    def build(self, device: torch.device) -> Any:
        """The transformer at random weights, the same in every process; in bfloat16 but for what diffusers keeps wider."""
        from diffusers import WanTransformer3DModel

        config = wan_config(self.width, self.hidden, self.head_size)
        config |= {"num_layers": self.layers, "text_dim": self.text_width}
        torch.manual_seed(0)
        with device:
            model = WanTransformer3DModel(**config).eval().requires_grad_(False)
        kept = set(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if not kept & set(name.split(".")):
                parameter.data = parameter.data.to(torch.bfloat16)
        return model


QUICK = Case(1, QUICK_TOKENS, 128, 256, 16, 16, 64)


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


def ways_of(processes: int) -> tuple[Way, ...]:
    """Ulysses over all; and Ring 2, with Ulysses over the rest."""
    if processes == 1:
        return ()
    return (Way(processes), Way(processes // 2, 2)) if processes % 2 == 0 else (Way(processes),)


def check(case: Case, processes: int, arms: Iterable[str]) -> None:
    """Refuse what cannot be measured, before anything is.

    Raises:
        InputError: tokens or heads cannot be split evenly, there is no video of so many tokens, or no such arm.
    """
    if case.tokens not in VIDEOS:
        raise InputError(f"--tokens is {case.tokens}; there are {', '.join(map(str, VIDEOS))}")
    if case.layers < 1:
        raise InputError(f"--layers is {case.layers}; it must be at least 1")
    heads = case.width // case.head_size
    for what, count in (("tokens", case.tokens), ("heads", heads)):
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
