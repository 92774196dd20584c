"""One video out of any diffusers video pipeline, with the time that its transformers took."""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError, SeDialectError, first_line, shortened, shown
from ..inspection.denoisers import denoisers
from ..progress import Watch as Watch
from ..progress import following
from .compute_dtype import DtypeChoice
from .mp4 import Frames, to_bytes

# In bfloat16 these lose detail, so diffusers' documents load them in float32 beside a bfloat16 transformer.
FLOAT32_AUTOENCODERS = ("AutoencoderKLWan",)
CHOICE = "_sedialect_dtype"  # on a pipeline that was loaded here


@dataclass(frozen=True)
class Request:
    """What to generate. None leaves a setting to the pipeline."""

    prompt: str
    seed: int = 0
    steps: int = 20
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty; say what the video shows, as in --prompt 'a red ball moves to the left'")
        if any("\ud800" <= sign <= "\udfff" for text in (self.prompt, self.negative_prompt or "") for sign in text):
            raise InputError("a prompt holds half a character, or bytes that are no UTF-8; write it as UTF-8")
        for name in ("steps", "height", "width", "num_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise InputError(f"guidance_scale is {self.guidance_scale}; give a number")
        if not -(2**63) <= self.seed < 2**64:
            raise InputError(f"the seed is {shown(self.seed)}; give an integer of at most 64 bits")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a pipeline's call, without the generator."""
        optional = ("negative_prompt", "guidance_scale", "height", "width", "num_frames")
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        return {"prompt": self.prompt, "num_inference_steps": self.steps, **given}


@dataclass(frozen=True)
class Sample:
    """A generated video [T, H, W, 3] and the seconds that the transformers took for one step."""

    frames: Frames
    seconds_per_step: float


def sample(pipe: Any, models: dict[str, nn.Module], request: Request, label: str, watch: Watch | None = None) -> Sample:
    """Generate. The noise depends on the seed alone, whatever the device: it is drawn on the CPU.

    Args:
        watch: follows the run, in place of a progress bar.

    Raises:
        InputError: the pipeline refuses the request's size or arguments.
    """
    with following(watch) as follow:
        follow.on_stage(label)
        with _timed(models, follow) as seconds:
            frames = generate(pipe, request, label, watch=follow).frames[0]
        return Sample(to_bytes(frames), sum(seconds) / request.steps)


def generate(
    pipe: Any,
    request: Request,
    label: str,
    output_type: str = "np",
    progress: bool = True,
    watch: Watch | None = None,
) -> Any:
    """What the pipeline returns for a request; `output_type="latent"` leaves the decoding out.

    Args:
        watch: is told what the pipeline is at, and its steps where it tells them; a progress bar where it is None.

    Raises:
        InputError: the pipeline refuses the request's size or arguments.
    """
    arguments = request.arguments()
    known = inspect.signature(pipe.__call__).parameters.keys()
    unknown = sorted(arguments.keys() - known)
    if unknown:
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(unknown)}; leave it out")
    generator = torch.Generator("cpu").manual_seed(request.seed)
    with following(watch, progress) as follow:
        tells = "callback_on_step_end" in known
        pipe.set_progress_bar_config(desc=label, disable=tells or watch is not None or not progress)
        if tells:
            arguments["callback_on_step_end"] = _step_callback(follow)
        try:
            with _phases(pipe, label, request.steps if tells else None, follow):
                return pipe(**arguments, generator=generator, output_type=output_type)
        except SeDialectError:  # also a ValueError; it says what it means already
            raise
        except ValueError as error:
            raise InputError(f"{type(pipe).__name__} refuses this request: {first_line(error)}") from error


@contextmanager
def _phases(pipe: Any, label: str, steps: int | None, watch: Watch) -> Iterator[None]:
    """Tell, while the block calls the pipeline, when it encodes the prompt, samples and decodes."""
    sampling = False

    def begin(*_: object) -> None:
        nonlocal sampling
        if not sampling:
            sampling = True
            watch.on_phase(label, steps)

    watch.on_phase(f"{label}: encoding the prompt")
    handles = [model.register_forward_pre_hook(begin) for model in denoisers(pipe).values()]
    try:
        with _told_of_decoding(getattr(pipe, "vae", None), lambda: watch.on_phase(f"{label}: decoding")):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _told_of_decoding(vae: Any, tell: Callable[[], None]) -> Iterator[None]:
    """`tell` is called before `vae.decode`, which is no forward that a hook would see."""
    if not hasattr(vae, "decode"):
        yield
        return
    own, decode = vars(vae).get("decode"), vae.decode

    def telling(*args: Any, **kwargs: Any) -> Any:
        tell()
        return decode(*args, **kwargs)

    vae.decode = telling
    try:
        yield
    finally:
        if own is None:
            del vae.decode
        else:
            vae.decode = own


def load_pipeline(model: str | Path, dtype: DtypeChoice | torch.dtype, device: str) -> Any:
    """A diffusers pipeline from a folder or from the Hub, on `device`; some autoencoders in float32 whatever the dtype.

    Raises:
        InputError: there is no such pipeline, or it cannot be loaded.
    """
    path = Path(model)
    if os.path.exists(path) and not (path / "model_index.json").is_file():
        raise InputError(f"{path} is no diffusers pipeline: it has no model_index.json; pass the folder that holds one")
    try:
        from diffusers import DiffusionPipeline
    except ImportError:
        raise InputError("pipelines need diffusers; install it: pip install 'sedialect[demo]'") from None
    choice = dtype if isinstance(dtype, DtypeChoice) else DtypeChoice(dtype, "asked for")
    try:
        autoencoder = DiffusionPipeline.load_config(str(model)).get("vae") or (None, None)
        wanted: Any = choice.dtype
        if autoencoder[1] in FLOAT32_AUTOENCODERS:
            wanted = {"default": choice.dtype, "vae": torch.float32}
        pipe = DiffusionPipeline.from_pretrained(str(model), torch_dtype=wanted).to(device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot load the pipeline {shown(str(model), 200)}: {shortened(error, 300)}") from error
    setattr(pipe, CHOICE, choice)
    return pipe


def computed_in(pipe: Any) -> dict[str, str]:
    """The dtypes that a pipeline computes in, for results: `dtype`, `dtype_reason`, and `vae_dtype` where it has one."""
    choice = getattr(pipe, CHOICE, None)
    transformer, vae = next(iter(denoisers(pipe).values())), getattr(pipe, "vae", None)
    dtype = str(transformer.dtype).removeprefix("torch.")
    reason = choice.reason if isinstance(choice, DtypeChoice) and choice.name == dtype else "as the pipeline was given"
    found = {"dtype": dtype, "dtype_reason": reason}
    return found if vae is None else {**found, "vae_dtype": str(vae.dtype).removeprefix("torch.")}


def in_words(computed: dict[str, str]) -> str:
    """What `computed_in` gives, as a line for people."""
    vae = computed.get("vae_dtype", computed["dtype"])
    other = "" if vae == computed["dtype"] else f"; the autoencoder in {vae}"
    return f"{computed['dtype']} ({computed['dtype_reason']}){other}"


def pick_device(name: str) -> str:
    """`auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from None
    return name


def _step_callback(watch: Watch) -> Callable[..., dict[str, Any]]:
    """What diffusers calls after each step."""

    def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.on_step(step + 1, tensors["latents"])
        return {}

    return tell


@contextmanager
def _timed(models: dict[str, nn.Module], watch: Watch) -> Iterator[list[float]]:
    """Seconds of every forward of the models while the block runs; `watch` is told before each."""
    seconds: list[float] = []
    started: list[float] = []

    def begin(*_: object) -> None:
        watch.on_forward()
        started.append(_now())

    def end(*_: object) -> None:
        seconds.append(_now() - started.pop())

    handles: list[RemovableHandle] = [model.register_forward_pre_hook(begin) for model in models.values()]
    handles += [model.register_forward_hook(end) for model in models.values()]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
