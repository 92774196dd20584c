"""Teaches the bundled denoiser to take four steps without guidance, as a LoRA.

The teacher is the bundled model as users run it: 20 steps of its own solver, with guidance. Its ODE is deterministic,
so what it does between two noise levels is a function of the latents, and a student can be fitted to it by least
squares: first segment by segment on the teacher's own latents (piecewise straight flow: PeRFlow, arXiv 2405.07510),
then along whole runs of its own from the same noise, so that it meets what it will meet.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .averaging import Average
from .captions import sample_spec, write_caption
from .denoiser import ShortTextAttention, use_training_attention
from .progress import Log, Progress
from .text import encode_text, padding_bias, tokenize

TARGETS = r"(condition_embedder\.time_proj|blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2)))"
ADAPTER = "few_steps"


@dataclass(frozen=True)
class Distillation:
    """The numbers of a run."""

    seed: int = 20261128
    rank: int = 8
    steps: int = 4
    teacher_steps: int = 20
    guidance: float = 2.0
    size: int = 128
    frames: int = 33
    trajectories: int = 8192
    held_out: int = 128
    teacher_batch: int = 128
    segment_updates: int = 2400
    segment_batch: int = 128
    run_updates: int = 500
    run_batch: int = 32
    rate: float = 1e-3
    run_rate: float = 3e-4
    average: float = 0.99
    text_length: int = 56
    padded_length: int = 512


def smoke_distillation() -> Distillation:
    """Walks through everything on a CPU in seconds; its student has learnt nothing."""
    return Distillation(
        rank=2,
        teacher_steps=4,
        size=32,
        frames=5,
        trajectories=6,
        held_out=2,
        teacher_batch=4,
        segment_updates=3,
        segment_batch=4,
        run_updates=2,
        run_batch=2,
    )


class Deadline:
    """When work must be over, and how much of the time up to there is spent."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds

    def spent(self) -> float:
        """0 at the start, 1 and more when the time is over."""
        return (time.monotonic() - self.start) / self.seconds


@dataclass(frozen=True)
class Schedule:
    """The student's noise levels, steps + 1 of them and the last one 0, and the timesteps of all but the last."""

    sigmas: tuple[float, ...]
    timesteps: tuple[int, ...]

    def widths(self) -> Tensor:
        """What each step takes off the noise level, [steps]."""
        levels = torch.tensor(self.sigmas)
        return levels[:-1] - levels[1:]


@dataclass(frozen=True)
class Runs:
    """The teacher's runs: latents at the student's noise levels, half precision [run, steps + 1, C, T, H, W]; token ids."""

    states: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def split(self, held_out: int) -> "tuple[Runs, Runs]":
        """All but the last runs, and those."""
        return Runs(self.states[:-held_out], self.ids[:-held_out]), Runs(self.states[-held_out:], self.ids[-held_out:])


class Denoiser:
    """The model with its text encoder: velocities of latents, padded captions weighted as the pipeline pads them."""

    def __init__(self, pipe: Any, settings: Distillation, device: torch.device) -> None:
        self.model, self.encoder = pipe.transformer.to(device), pipe.text_encoder.to(device)
        self.settings, self.device = settings, device
        self.attention: ShortTextAttention = use_training_attention(self.model)
        self.model.requires_grad_(False)
        self.encoder.requires_grad_(False)

    def velocity(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Of latents [B, C, T, H, W] at timesteps [B] under captions [B, tokens], float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            with torch.no_grad():
                states = encode_text(self.encoder, ids)
            self.attention.bias = padding_bias(ids, self.settings.padded_length)
            output: Tensor = self.model(latents, timesteps, states, return_dict=False)[0]
        return output.float()


def schedule_of(pipe: Any, steps: int) -> Schedule:
    """The noise levels that the pipeline's scheduler takes in so few steps."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return Schedule(tuple(scheduler.sigmas.tolist()), tuple(scheduler.timesteps.tolist()))


@torch.no_grad()
def teach(pipe: Any, denoiser: Denoiser, settings: Distillation, log: Log, deadline: Deadline, share: float) -> Runs:
    """Runs of the teacher from fresh noise under fresh captions; fewer than asked for when `share` of the time is spent."""
    device = denoiser.device
    words, noise = random.Random(settings.seed), torch.Generator(device).manual_seed(settings.seed)
    shape = (16, (settings.frames - 1) // 4 + 1, settings.size // 8, settings.size // 8)
    empty = tokens_of(pipe, [""], settings).to(device)
    states, captions = [], []
    done = 0
    while done < settings.trajectories:
        if done > settings.held_out and deadline.spent() > share:
            log(f"teacher: time is short, {done} of {settings.trajectories} runs")
            break
        count = min(settings.teacher_batch, settings.trajectories - done)
        lines = [write_caption(sample_spec(words), words) for _ in range(count)]
        ids = tokens_of(pipe, lines, settings).to(device)
        start = torch.randn(count, *shape, generator=noise, device=device)
        states.append(guided_run(pipe, denoiser, settings, start, ids, empty).half())
        captions.append(ids)
        done += count
        if len(states) % 8 == 0 or done == settings.trajectories:
            log(f"teacher: {done} of {settings.trajectories} runs")
    return Runs(torch.cat(states), torch.cat(captions))


def tokens_of(pipe: Any, captions: list[str], settings: Distillation) -> Tensor:
    """Token ids [B, tokens] of captions."""
    return tokenize(pipe.tokenizer, captions, settings.text_length).long()


def guided_run(pipe: Any, denoiser: Denoiser, settings: Distillation, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
    """Latents at the student's noise levels, [B, steps + 1, ...]: the start, and every so many steps of the teacher."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(settings.teacher_steps)
    both = torch.cat([ids, empty.expand_as(ids)])
    kept = [latents]
    for number, timestep in enumerate(scheduler.timesteps, start=1):
        times = torch.full((len(both),), float(timestep), device=latents.device)
        conditional, unconditional = denoiser.velocity(torch.cat([latents, latents]), times, both).chunk(2)
        guided = unconditional + settings.guidance * (conditional - unconditional)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        if number % (settings.teacher_steps // settings.steps) == 0:
            kept.append(latents)
    return torch.stack(kept, 1)


class Student:
    """The denoiser with a LoRA that is trained, and what it does with noise."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, settings: Distillation) -> None:
        from peft import LoraConfig

        self.denoiser, self.schedule, self.settings = denoiser, schedule, settings
        config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=TARGETS, init_lora_weights=True)
        denoiser.model.add_adapter(config, adapter_name=ADAPTER)
        self.weights = nn.ParameterList(p for p in denoiser.model.parameters() if p.requires_grad)
        self.times = torch.tensor(schedule.timesteps, dtype=torch.float32, device=denoiser.device)
        self.widths = schedule.widths().to(denoiser.device)

    def segment_loss(self, runs: Runs) -> Tensor:
        """How far the velocities of random steps are from the teacher's mean velocity there; wide steps weigh more."""
        device, batch = self.denoiser.device, self.settings.segment_batch
        chosen = torch.randint(len(runs), (batch,), device=device)
        step = torch.randint(self.settings.steps, (batch,), device=device)
        before, after = runs.states[chosen, step].float(), runs.states[chosen, step + 1].float()
        width = self.widths[step].view(-1, 1, 1, 1, 1)
        velocity = self.denoiser.velocity(before, self.times[step], runs.ids[chosen])
        errors = (velocity - (before - after) / width).square().mean(dim=(1, 2, 3, 4))
        return (errors * self.widths[step] / self.widths.mean()).mean()

    def run_loss(self, runs: Runs) -> Tensor:
        """How far a run of its own is from the teacher's after each step, the last one counting most."""
        chosen = torch.randint(len(runs), (self.settings.run_batch,), device=self.denoiser.device)
        wanted = runs.states[chosen].float()
        made = self.run(wanted[:, 0], runs.ids[chosen])
        errors = [(latents - wanted[:, step]).square().mean() for step, latents in enumerate(made, start=1)]
        return torch.stack(errors[:-1]).mean() + 2 * errors[-1]

    def run(self, latents: Tensor, ids: Tensor) -> Iterator[Tensor]:
        """The latents after each step, from noise."""
        for time_now, width in zip(self.times, self.widths, strict=True):
            velocity = self.denoiser.velocity(latents, time_now.expand(len(latents)), ids)
            latents = latents - width * velocity
            yield latents

    @torch.no_grad()
    def distance(self, runs: Runs) -> float:
        """Of the last latents to the teacher's, relative, on runs that were held out."""
        found = []
        for start in range(0, len(runs), self.settings.run_batch):
            rows = slice(start, start + self.settings.run_batch)
            wanted = runs.states[rows].float()
            *_, last = self.run(wanted[:, 0], runs.ids[rows])
            apart = (last - wanted[:, -1]).flatten(1).norm(dim=1) / wanted[:, -1].flatten(1).norm(dim=1)
            found += apart.tolist()
        return sum(found) / len(found)

    def train(
        self, loss_of: Callable[[], Tensor], name: str, updates: int, rate: float, log: Log, deadline: Deadline
    ) -> None:
        """Updates with a rate that rises at once and falls to nothing; the weights become their average at the end.

        The rate follows the updates or, where the time is shorter, the time; then there are fewer updates.
        """
        optimizer = torch.optim.AdamW(list(self.weights), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        progress, average = Progress(name, updates, log, stretches=20), Average(self.weights, self.settings.average)
        begun = deadline.spent()
        for number in range(1, updates + 1):
            done = max(number / updates, (deadline.spent() - begun) / max(1e-6, 1 - begun))
            if done > 1:
                log(f"{name}: time is over after {number - 1} of {updates} updates")
                break
            optimizer.param_groups[0]["lr"] = rate * min(1.0, number / 50) * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            optimizer.step()
            average.update(self.weights)
            progress.add(number, loss.detach())
        average.copy_to(self.weights)
