"""`bench speed --memory`: what each way needs and takes when the process is held to the memory of a card.

First everything runs unheld, and the peak of each phase is what the way needs; compiling belongs to it. Then the
allocator is held to the smallest card that this leaves room for, and the times are of that run: an allocation beyond it
fails.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...sedialect_core.plan.fit import GIB, RESERVED
from .machine import machine
from .models import TEXT_WIDTH
from .results import Part
from .timing import Clock, collect, synchronize
from .trials import COMPILED, EAGER, Numbers, Trials, fresh_compiler
from .ways import LENGTH, Home, Way, home, make_pipeline, make_vae

PART = "memory"
CARDS = (8, 12, 16, 24)  # GB as they are sold, which is GiB
STEPS = 50
GUIDED = 2  # forwards a step, with classifier-free guidance
DECODING = "decoding, tiled"
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
PHASES = ("encoding", "step", "decoding")


def measure_held(
    cards: Sequence[int],
    ways: Sequence[Way],
    quick: bool,
    seconds: float,
    device: torch.device,
    folder: Path,
    where: dict[str, Any],
) -> Part:
    """Measure these ways; each row is in `folder` as soon as it is measured."""
    if device.type == "cuda":  # with its number, which holding it asks for
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    allocator = os.environ.get(ALLOCATOR) or os.environ.get("PYTORCH_ALLOC_CONF") or "as torch has it"
    part = Part(PART, where | machine(device) | {"cards": list(cards), "allocator": allocator}, folder=folder)
    part.save(folder)
    trials, shape = Trials(part, Clock(seconds), device), home(quick)
    if device.type == "cuda":
        gc.freeze()  # what is loaded already need not be looked through at every collection
    decoding = trials.run(shape.model.name, DECODING, EAGER, partial(_decode_alone, shape, device)).numbers
    for way in ways:
        mode = COMPILED if way.compiled else EAGER
        fresh_compiler()  # it may keep the pipeline before
        trials.run(shape.model.name, way.name, mode, partial(_measure, way, shape, sorted(cards), decoding, device))
        _clean(device)
    return part


def room_of(card: int) -> int:
    """Bytes of a card that the allocator may have: the driver's context and kernels take the rest."""
    return card * GIB - RESERVED


def _decode_alone(shape: Home, device: torch.device) -> Numbers:
    """Seconds and bytes of decoding, the autoencoder's weights among them."""
    vae = make_vae(shape, device)
    latents = torch.randn(shape.latent, device=device)
    with _peaks(device) as peaks:
        seconds = _seconds(lambda: vae.decode(latents, return_dict=False), device)
        peaks("decoding")
    return {"decoding, s": seconds, "decoding bytes": peaks.found["decoding"], "vae bytes": _bytes(vae)}


def _measure(way: Way, shape: Home, cards: list[int], decoding: Numbers, device: torch.device) -> Numbers:
    pipe = make_pipeline(way, shape, device)
    weights = {name: float(_bytes(getattr(pipe, name))) for name in ("transformer", "text_encoder")}
    numbers: Numbers = {f"{name} bytes": count for name, count in weights.items()}
    way.placing(pipe, device)
    _clean(device)
    peaks, unheld = _run(pipe, shape, device)
    resident = max(0.0, float(_allocated(device) - _bytes(pipe.vae))) if way.name.endswith("all on the GPU") else 0.0
    peaks["decoding"] = resident + decoding.get("decoding bytes", 0.0)
    numbers |= {f"{phase} bytes": peaks[phase] for phase in PHASES}
    numbers |= {"needs bytes": max(peaks[phase] for phase in PHASES), "reserved bytes": peaks["reserved"]}
    for card in [card for card in cards if room_of(card) >= numbers["needs bytes"]]:
        with _held(card, device):
            try:
                held, seconds = _run(pipe, shape, device)
            except torch.OutOfMemoryError:  # gaps between blocks of the allocator; the next larger card
                held, seconds = {}, {}
        if seconds:
            numbers["held reserved bytes"] = held["reserved"]
            return numbers | _times(seconds, decoding) | {"card": float(card)}
        pipe.maybe_free_model_hooks()
    return numbers | _times(unheld, decoding)


def _times(seconds: dict[str, float], decoding: Numbers) -> Numbers:
    step = GUIDED * seconds["step"]
    video = seconds["encoding"] + STEPS * step + decoding.get("decoding, s", 0.0)
    return {"encoding, s": seconds["encoding"], "step, s": step, f"video of {STEPS} steps, s": video}


@torch.no_grad()
def _run(pipe: Any, shape: Home, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Encode a prompt and take two steps; peak bytes and seconds of both, of steps those of the second, for which nothing
    has to be brought. Without guidance: a step is one forward."""
    ids = torch.randint(2, 90, (1, LENGTH), device=device)
    frames, rows, columns = shape.model.video.grid
    ticks: list[float] = []

    def tick(_pipe: Any, _number: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        synchronize(device)
        ticks.append(time.perf_counter())
        return values

    found: dict[str, float] = {}
    with _peaks(device) as peaks:
        encode = partial(pipe.text_encoder, input_ids=ids, attention_mask=torch.ones_like(ids))
        seconds = {"encoding": _seconds(encode, device)}
        peaks("encoding")
        text = torch.randn(1, LENGTH, TEXT_WIDTH, device=device, dtype=torch.bfloat16)
        pipe(
            prompt_embeds=text,
            height=16 * rows,
            width=16 * columns,
            num_frames=4 * (frames - 1) + 1,
            num_inference_steps=2,
            guidance_scale=1.0,
            output_type="latent",
            callback_on_step_end=tick,
        )
        peaks("step")
        found = peaks.found
    seconds["step"] = ticks[1] - ticks[0]
    return found, seconds


class _Peaks:
    """Peak bytes of the phases that end one after another."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, float] = {"reserved": 0.0}  # of all phases, gaps between the allocator's blocks among them

    def __call__(self, phase: str) -> None:
        if self.device.type == "cuda":
            self.found[phase] = float(torch.cuda.max_memory_allocated(self.device))
            self.found["reserved"] = max(self.found["reserved"], float(torch.cuda.max_memory_reserved(self.device)))
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.found[phase] = 0.0


@contextmanager
def _peaks(device: torch.device) -> Iterator[_Peaks]:
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield _Peaks(device)


@contextmanager
def _held(card: int, device: torch.device) -> Iterator[None]:
    """The allocator refuses what goes beyond a card of so many GB."""
    if device.type != "cuda":
        yield
        return
    _clean(device)
    torch.cuda.set_per_process_memory_fraction(room_of(card) / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def _bytes(model: torch.nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(_stored(tensor) for tensor in tensors.values())


def _stored(tensor: torch.Tensor) -> int:
    """Of subclasses that hold others, what those hold."""
    parts = getattr(tensor, "__tensor_flatten__", None)
    if parts is None:
        return tensor.numel() * tensor.element_size()
    return sum(_stored(getattr(tensor, name)) for name in parts()[0])


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _clean(device: torch.device) -> None:
    collect(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
