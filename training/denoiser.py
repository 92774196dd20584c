"""Training of the denoiser (diffusers' `WanTransformer3DModel`, small) together with its text encoder.

Flow matching as Wan does it: x_s = (1 - s) x_0 + s * noise, the network predicts noise - x_0 at timestep 1000 s.
"""

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from .averaging import Average
from .bank import Bank
from .graphed import GraphedStep
from .optimizer import build_optimizers, make_update, rate_at, set_rates
from .progress import Log, Progress
from .settings import Settings
from .text import encode_text, padding_bias


def build_denoiser(settings: Settings) -> WanTransformer3DModel:
    """The Wan layout, narrow and shallow, starting as a network whose output is zero."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=settings.heads,
        attention_head_dim=settings.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=settings.text_dim,
        freq_dim=256,
        ffn_dim=settings.ffn_dim,
        num_layers=settings.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
    )
    _initialize(model)
    return model


@torch.no_grad()
def _initialize(model: WanTransformer3DModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, [2, 5]] = 0.1
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.01)
    model.scale_shift_table.zero_()
    nn.init.zeros_(model.proj_out.weight)


class ShortTextAttention:
    """Cross-attention over captions padded to a few rows, weighted as if padded to the pipeline's length.

    Only training uses it; with `bias` set for the batch it computes what diffusers' own processor computes on the
    fully padded rows.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object, **__: object
    ) -> Tensor:
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = (scores.float() + self.bias).softmax(dim=-1).to(value.dtype)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))


class PairwiseSelfAttention:
    """Self-attention equal to diffusers' own, with the rotation written so that the compiler makes fast code of it."""

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, _text: None, _mask: None, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]

        def turned(states: Tensor) -> Tensor:
            first, second = states.unflatten(2, (attn.heads, -1)).float().unflatten(-1, (-1, 2)).unbind(-1)
            pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
            return pairs.flatten(-2).to(hidden_states.dtype).transpose(1, 2)

        query = turned(attn.norm_q(attn.to_q(hidden_states)))
        key = turned(attn.norm_k(attn.to_k(hidden_states)))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2).to(hidden_states.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))


def use_training_attention(model: WanTransformer3DModel) -> ShortTextAttention:
    """Give `model` the processors above and return the one whose bias has to be set for each batch."""
    processor = ShortTextAttention()
    for block in model.blocks:
        block.attn1.set_processor(PairwiseSelfAttention())
        block.attn2.set_processor(processor)
    return processor


def sample_times(count: int, shift: float, device: torch.device) -> Tensor:
    """Noise levels in (0, 1): logit-normal, a tenth uniform for the ends, shifted towards noise."""
    level = torch.sigmoid(torch.randn(count, device=device))
    level = torch.where(torch.rand_like(level) < 0.1, torch.rand_like(level), level)
    return shift * level / (1 + (shift - 1) * level)


class DenoiserTrainer:
    """Holds what one training run needs, so that the loss is the same in training and in validation."""

    def __init__(
        self, model: WanTransformer3DModel, encoder: UMT5EncoderModel, settings: Settings, device: torch.device
    ) -> None:
        self.model, self.encoder = model.to(device), encoder.to(device)
        self.settings, self.device = settings, device
        self.processor = use_training_attention(model)
        if device.type == "cuda":
            model.compile_repeated_blocks(fullgraph=True)

    def loss(self, latents: Tensor, ids: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity."""
        level = times.view(-1, 1, 1, 1, 1)
        mixed = (1 - level) * latents + level * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            states = encode_text(self.encoder, ids)
            self.processor.bias = padding_bias(ids, self.settings.padded_length)
            output = self.model(mixed, times * 1000, states, return_dict=False)[0]
        return F.mse_loss(output.float(), noise - latents)

    def train(self, bank: Bank, log: Log, steps: int) -> list[tuple[int, float]]:
        """Run a whole schedule of `steps`, leave averaged weights in the modules and return the loss curve."""
        settings, modules = self.settings, {"denoiser": self.model, "text": self.encoder}
        optimizers = build_optimizers(
            modules, settings.muon_lr, settings.adam_lr, settings.weight_decay, ("denoiser.blocks",)
        )
        averages = [(Average(module, settings.ema), module) for module in modules.values()]
        update = GraphedStep(make_update(self.loss, list(modules.values()), optimizers), self.device)
        progress = Progress("denoiser", steps, log)
        for step in range(1, steps + 1):
            latents, ids = bank.draw(settings.denoiser_batch, settings.caption_dropout)
            times = sample_times(len(latents), settings.train_shift, self.device)
            set_rates(optimizers, rate_at(step, steps, warmup=200))
            progress.add(step, update(latents, ids, times, torch.randn_like(latents)))
            for average, module in averages:
                average.update(module)
        for average, module in averages:
            average.copy_to(module)
        return progress.curve

    @torch.no_grad()
    def validate(self, bank: Bank) -> float:
        """Loss on clips never trained on, at evenly spread noise levels, the same noise in every run."""
        generator = torch.Generator(self.device).manual_seed(7)
        total, parts = 0.0, 0
        for first in range(0, len(bank.latents), self.settings.denoiser_batch):
            latents = bank.latents[first : first + self.settings.denoiser_batch].float()
            if len(latents) < self.settings.denoiser_batch:
                break
            times = (torch.arange(len(latents), device=self.device) + 0.5) / len(latents)
            noise = torch.randn(latents.shape, device=self.device, generator=generator)
            total += self.loss(latents, bank.ids[first : first + len(latents), 0].long(), times, noise).item()
            parts += 1
        return total / max(1, parts)
