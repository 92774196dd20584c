"""The bank: clips rendered and encoded once, kept as normalised latents with the tokens of their captions."""

import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .autoencoder import encode_means
from .captions import sample_spec, write_caption
from .clips import render
from .progress import Log
from .settings import Settings
from .text import EOS, PAD, UNK, tokenize


@dataclass
class Bank:
    """`latents` is (clip, 16, frame, height, width) in half precision, `ids` is (clip, wording, token)."""

    latents: Tensor
    ids: Tensor

    def draw(self, count: int, caption_dropout: float) -> tuple[Tensor, Tensor]:
        """A random batch of latents and token ids; some captions are emptied, a few get an unknown word."""
        device = self.latents.device
        index = torch.randint(len(self.latents), (count,), device=device)
        wording = torch.randint(self.ids.shape[1], (count,), device=device)
        ids = self.ids[index, wording].long()
        ids = _with_unknown_words(ids, 0.05)
        empty = torch.full_like(ids[0], PAD)
        empty[0] = EOS
        dropped = torch.rand(count, 1, device=device) < caption_dropout
        return self.latents[index].float(), torch.where(dropped, empty, ids)

    def head(self, count: int) -> "Bank":
        """The first clips as a bank of their own."""
        return Bank(self.latents[:count], self.ids[:count])


def _with_unknown_words(ids: Tensor, share: float) -> Tensor:
    """Replace one word by <unk> in some captions, so that foreign words in a user's prompt do no harm."""
    lengths = (ids != PAD).sum(dim=1) - 1
    where = (torch.rand(len(ids), device=ids.device) * lengths).long()
    chosen = torch.rand(len(ids), device=ids.device) < share
    hit = torch.arange(ids.shape[1], device=ids.device) == where.unsqueeze(1)
    return torch.where(hit & chosen.unsqueeze(1), torch.full_like(ids, UNK), ids)


def latent_statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[Tensor, Tensor]:
    """The configured mean and deviation per channel, shaped to broadcast over latents."""
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    return mean, torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)


def build_bank(
    vae: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    device: torch.device,
    log: Log,
    clips: int,
    seed: int,
) -> Bank:
    """Render, encode and caption `clips` new clips."""
    rng = random.Random(seed)
    mean, std = latent_statistics(vae, device)
    latents: list[Tensor] = []
    captions: list[str] = []
    while sum(len(part) for part in latents) < clips:
        specs = [sample_spec(rng) for _ in range(settings.bank_batch)]
        video = render(specs, rng, device, settings.frames, settings.size)
        latents.append(((encode_means(vae, video) - mean) / std).half())
        captions += [write_caption(spec, rng) for spec in specs for _ in range(settings.captions_per_clip)]
        if len(latents) % 100 == 0:
            log(f"bank {len(latents) * settings.bank_batch}/{clips}")
    ids = tokenize(tokenizer, captions, settings.text_length)
    return Bank(torch.cat(latents), ids.view(-1, settings.captions_per_clip, settings.text_length).to(device))
