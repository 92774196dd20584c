"""How much memory a forward takes beside the weights, by running the real class on the device meta.

Shapes are followed, values are not, so it takes no memory and about a second. What lives at once is summed up as an eager
run would hold it; of blocks that torch.compile compiles, as `fused_memory` has it. Attention counts as on GPUs, where scores
are never stored. For classes whose inputs are not known here there is a rule, and the result says so.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..inspection import layout_of
from .fused_memory import Tape
from .layers import LayerPlan, Plan

Shape = tuple[int, int, int]
OPERAND_BYTES = 2  # of encoded activations and decoded weights on GPUs without FP8 units; with them it is half
IMAGE_TOKENS = 257  # of the image that image-to-video models see through CLIP
# What an eager block holds of every token, in 16-bit numbers: normed and rotated copies in float32 among them. A bound for
# the five families below, which a test holds.
WIDTHS, INNER_WIDTHS = 12, 2
PROMPT_TOKENS = 512  # of a prompt that text encoders read
ENCODING_WIDTHS = 12  # numbers of a token, times the widest layer: a bound for encoders that meta cannot follow
SCORE_BYTES = 12  # of theirs, scores are stored: biases and scores in 16 bit, before and after softmax in float32
# Of torch itself: the name in torch.nn.functional may hold what looks at attention, which calls this in the end.
ATTENTION = torch._C._nn.scaled_dot_product_attention
META_ERRORS = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class Usual:
    """What is usual for a class of transformers: size of the video, samples in a batch, inputs of the forward."""

    height: int
    width: int
    num_frames: int
    space: int = 8
    time: int = 4
    batch: int = 1
    inputs: Callable[[Any, Shape, int], dict[str, Any]] | None = None
    """Of model, latent size and batch."""


def _text(batch: int, tokens: int, width: int) -> torch.Tensor:
    return torch.empty(batch, tokens, width)


def _wan(model: Any, latent: Shape, batch: int) -> dict[str, Any]:
    config = model.config
    inputs = {
        "hidden_states": torch.empty(batch, config.in_channels, *latent),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": _text(batch, 512, config.text_dim),
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = _text(batch, IMAGE_TOKENS, config.image_dim)
    return inputs


def _hunyuan(model: Any, latent: Shape, batch: int) -> dict[str, Any]:
    config = model.config
    return {
        "hidden_states": torch.empty(batch, config.in_channels, *latent),
        "timestep": torch.empty(batch),
        "encoder_hidden_states": _text(batch, 256, config.text_embed_dim),
        "encoder_attention_mask": torch.empty(batch, 256),
        "pooled_projections": torch.empty(batch, config.pooled_projection_dim),
        "guidance": torch.empty(batch) if config.guidance_embeds else None,
    }


def _ltx(model: Any, latent: Shape, batch: int) -> dict[str, Any]:
    config = model.config
    return {
        "hidden_states": torch.empty(batch, math.prod(latent), config.in_channels),
        "encoder_hidden_states": _text(batch, 128, config.caption_channels),
        "timestep": torch.empty(batch),
        "encoder_attention_mask": torch.empty(batch, 128),
        **dict(zip(("num_frames", "height", "width"), latent, strict=True)),
    }


def _cogvideox(model: Any, latent: Shape, batch: int) -> dict[str, Any]:
    config = model.config
    frames, height, width = latent
    tokens = frames * (height // config.patch_size) * (width // config.patch_size)
    angles = torch.empty(tokens, config.attention_head_dim)
    return {
        "hidden_states": torch.empty(batch, frames, config.in_channels, height, width),
        "encoder_hidden_states": _text(batch, config.max_text_seq_length, config.text_embed_dim),
        "timestep": torch.empty(batch),
        "image_rotary_emb": (angles, angles) if config.use_rotary_positional_embeddings else None,
    }


def _mochi(model: Any, latent: Shape, batch: int) -> dict[str, Any]:
    config = model.config
    model.rope._create_rope = _mochi_angles
    return {
        "hidden_states": torch.empty(batch, config.in_channels, *latent),
        "encoder_hidden_states": _text(batch, config.max_sequence_length, config.text_embed_dim),
        "timestep": torch.empty(batch),
        "encoder_attention_mask": torch.empty(batch, config.max_sequence_length, dtype=torch.bool),
    }


def _mochi_angles(frequencies: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mochi's own asks for autocast, which meta has not."""
    angles = torch.einsum("nd,dhf->nhf", positions.float(), frequencies.float())
    return angles.cos(), angles.sin()


# Sizes are the defaults of the pipelines of diffusers; Mochi's is its model card's. Two samples where a pipeline puts the
# prompt and the empty prompt into one batch.
USUAL: Mapping[str, Usual] = {
    "WanTransformer3DModel": Usual(480, 832, 81, inputs=_wan),
    "HunyuanVideoTransformer3DModel": Usual(720, 1280, 129, inputs=_hunyuan),
    "LTXVideoTransformer3DModel": Usual(512, 704, 161, space=32, time=8, batch=2, inputs=_ltx),
    "CogVideoXTransformer3DModel": Usual(480, 720, 49, batch=2, inputs=_cogvideox),
    "MochiTransformer3DModel": Usual(480, 848, 85, time=6, batch=2, inputs=_mochi),
}
ANY_OTHER = Usual(480, 832, 81, batch=2)


def usual(class_name: str) -> Usual:
    """What is usual for a class of transformers."""
    return USUAL.get(class_name, ANY_OTHER)


def sampling_bytes(model: nn.Module, plan: Plan | None, latent: Shape, *, compiled: bool = False) -> tuple[int, bool]:
    """What one forward takes beside the weights, and whether the class was run; else it is the rule's bound.

    Args:
        model: on the device meta, as `outline_of` makes it; its buffers go there, too.
        plan: what is quantized; None: nothing is.
        latent: frames, rows and columns of the latents.
        compiled: whether its repeated blocks are; classes that are not run are not told apart.
    """
    known = usual(type(model).__name__)
    if known.inputs is not None:
        try:
            with torch.device("meta"):
                inputs = tree_map_only(torch.Tensor, _in_16_bit, known.inputs(model, latent, known.batch))
            with _shortened(model):
                return _peak(model, lambda: model(**inputs), plan, compiled), True
        except META_ERRORS:  # another version of diffusers may compute what meta cannot
            pass
    return _by_rule(model, latent, known.batch), False


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """What diffusers' `compile_repeated_blocks` would compile; empty for classes that name no such blocks."""
    names = getattr(model, "_repeated_blocks", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def encoding_bytes(model: nn.Module) -> int:
    """What a text encoder takes beside its weights for one prompt; none of ours is told to keep more than a layer's inputs.

    Args:
        model: on the device meta.
    """
    try:
        with torch.device("meta"):
            ids = torch.empty(1, PROMPT_TOKENS, dtype=torch.long)
        return _peak(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)), None)
    except META_ERRORS:  # masks may depend on values, which meta has not
        widest = max((max(part.weight.shape) for part in model.modules() if isinstance(part, nn.Linear)), default=0)
        config: Any = getattr(model, "config", None)
        heads = getattr(config, "num_attention_heads", 0) or 0
        return ENCODING_WIDTHS * PROMPT_TOKENS * widest * 2 + SCORE_BYTES * heads * PROMPT_TOKENS**2


def decoding_bytes(vae: nn.Module, latent: Shape, video: Shape, *, tiling: bool = True) -> int | None:
    """What decoding takes beside the weights, in tiles where the VAE can; None where the class cannot be followed.

    One tile is decoded, with all frames of it; the decoded tiles, overlaps included, and the whole video are added.
    """
    model: Any = vae
    dtype = next(vae.parameters()).dtype
    pixels = 3 * math.prod(video) * dtype.itemsize
    try:
        if tiling and hasattr(model, "enable_tiling"):
            model.enable_tiling()
        elif hasattr(model, "disable_tiling"):
            model.disable_tiling()
        (rows, columns), overlap = _tile(model, latent, video) if tiling else ((latent[1], latent[2]), 1.0)
        channels = model.config.get("z_dim") or model.config["latent_channels"]
        tile = torch.empty(1, channels, latent[0], rows, columns, dtype=dtype, device="meta")
        more = (torch.empty(1, device="meta", dtype=dtype),) if model.config.get("timestep_conditioning") else ()
        peak = _peak(vae, lambda: model.decode(tile, *more), None)
    except META_ERRORS:
        return None
    return peak + int(pixels * (overlap + 1))


def _tile(vae: Any, latent: Shape, video: Shape) -> tuple[tuple[int, int], float]:
    """Rows and columns of a tile's latents, and by how much the tiles together are larger than the video."""
    sides, overlap = [], 1.0
    for axis, name in ((1, "height"), (2, "width")):
        size = getattr(vae, f"tile_sample_min_{name}", video[axis])
        factor = getattr(vae, f"tile_overlap_factor_{name}", None)
        stride = size * (1 - factor) if factor is not None else getattr(vae, f"tile_sample_stride_{name}", size)
        sides.append(min(latent[axis], size * latent[axis] // video[axis]))
        if sides[-1] < latent[axis]:
            overlap *= size / stride
    return (sides[0], sides[1]), overlap


def _in_16_bit(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _peak(model: nn.Module, forward: Callable[[], Any], plan: Plan | None, compiled: bool = False) -> int:
    model.to("meta")
    planned = {} if plan is None else {layer.name: layer for layer in plan.quantized}
    quantized = {id(part.weight): planned[name] for name, part in model.named_modules() if name in planned}
    ratio = 0.0 if plan is None else plan.config.salient_ratio
    held = [*model.parameters(), *model.buffers()]
    lives = _Lives(held)
    taped = _taped(repeated_blocks(model) if compiled else [], lives)
    with torch.no_grad(), torch.device("meta"), lives, _AsOnGpus(quantized, ratio, lives), taped:
        forward()
    return lives.peak


@contextmanager
def _taped(blocks: list[nn.Module], lives: "_Lives") -> Iterator[None]:
    """Their forwards count as compiled ones."""
    handles = [block.register_forward_pre_hook(lambda *_: lives.open()) for block in blocks]
    handles += [block.register_forward_hook(lambda _module, _inputs, result: lives.close(result)) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _shortened(model: nn.Module) -> Iterator[None]:
    """The first and the last block of each kind: the others hold what these do, one after the other."""
    lists = {name: part for name, part in model.named_children() if isinstance(part, nn.ModuleList) and len(part) > 2}
    try:
        for name, blocks in lists.items():
            short = _Blocks([blocks[0], blocks[-1]])
            # By name, as plans have them: the last keeps its number.
            short._modules = {"0": blocks[0], str(len(blocks) - 1): blocks[-1]}
            model._modules[name] = short
        yield
    finally:
        model._modules.update(lists)


class _Blocks(nn.ModuleList):
    """Iterates over what it has, whatever the numbers."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())


def _by_rule(model: nn.Module, latent: Shape, batch: int) -> int:
    """A bound from the widths of the layers alone."""
    patch = layout_of(model).patch
    tokens = math.prod(size // step for size, step in zip(latent, patch, strict=True)) * batch
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    squares = [layer.in_features for layer in linears if layer.in_features == layer.out_features]
    inner = max(max(layer.in_features, layer.out_features) for layer in linears if not _is_modulation(layer))
    width = max(set(squares), key=squares.count) if squares else inner
    largest = max(layer.weight.numel() for layer in linears)
    return 2 * (tokens * (WIDTHS * width + INNER_WIDTHS * inner) + largest)


def _is_modulation(layer: nn.Linear) -> bool:
    """Of several shifts and scales at once: five times its input, or more."""
    return layer.out_features > 4 * layer.in_features


class _Lives(TorchDispatchMode):
    """Sums up the storages that are alive, and keeps the largest sum. What runs between `open` and `close` is compiled."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.tape: Tape | None = None
        self.depth = 0
        self.sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in held}  # weights count elsewhere

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.tape is None:
            self._add_all(result)
        else:
            self.tape.record(func, args, kwargs or {}, result)
        return result

    def open(self) -> None:
        """A compiled block begins; those inside of it belong to it."""
        self.depth += 1
        self.tape = self.tape or Tape()

    def close(self, result: Any) -> None:
        """It has ended and gives this."""
        self.depth -= 1
        if self.depth == 0 and self.tape is not None:
            self.peak = max(self.peak, self.now + self.tape.peak(result))
            self.tape = None
            self._add_all(result)

    def _add_all(self, result: Any) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


class _AsOnGpus(TorchFunctionMode):
    """What differs from meta's ways: attention stores no scores, lengths that depend on data are whole, and quantized
    linears hold encoded inputs and a decoded weight while they multiply."""

    def __init__(self, quantized: Mapping[int, LayerPlan], salient_ratio: float, lives: _Lives) -> None:
        super().__init__()
        self.quantized, self.salient_ratio, self.lives = quantized, salient_ratio, lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self._attention(dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs)
        if func is torch.nonzero:
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is torch.Tensor.__getitem__:
            return func(args[0], _whole(args[1]))
        if func is torch.nn.functional.linear and (layer := self.quantized.get(id(args[1]))) is not None:
            return self._linear(args[0], layer, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _attention(self, given: Mapping[str, Any]) -> torch.Tensor:
        query, value = given["query"], given["value"]
        result: torch.Tensor = query.new_empty(*query.shape[:-1], value.shape[-1])
        if self.lives.tape is not None:
            read = (query, given["key"], value, given.get("attn_mask"))
            self.lives.tape.store([tensor for tensor in read if tensor is not None], result)
        return result

    def _linear(self, x: torch.Tensor, layer: LayerPlan, multiply: Callable[[], torch.Tensor]) -> torch.Tensor:
        tape = self.lives.tape
        if tape is None:
            scratch = [self._operand(x, layer), self._decoded(x, layer)]
            result = multiply()
            del scratch
            return result
        key = (x.untyped_storage()._cdata, x.shape, layer.precision)
        operand = tape.operands.get(key)
        if operand is None:
            operand = tape.operands[key] = x if layer.precision == "w4a16" else self._operand(x, layer)
            if operand is not x:
                tape.store([x], operand)
        weight = self._decoded(x, layer)
        tape.store([], weight)
        result = x.new_empty(*x.shape[:-1], layer.out_features)
        tape.store([operand, weight], result)
        return result

    def _operand(self, x: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
        rows = 0.0
        if layer.precision != "w4a16":
            rows = x.numel() / layer.in_features * layer.terms(self.salient_ratio)
        return x.new_empty(OPERAND_BYTES * int(rows) * layer.in_features, dtype=torch.uint8)

    def _decoded(self, x: torch.Tensor, layer: LayerPlan) -> torch.Tensor:
        return x.new_empty(OPERAND_BYTES * layer.weights, dtype=torch.uint8)


def _whole(index: Any) -> Any:
    """An index whose slices end where no tensor says."""
    if isinstance(index, tuple):
        return tuple(map(_whole, index))
    if isinstance(index, slice):
        return slice(*(None if isinstance(end, torch.Tensor) else end for end in (index.start, index.stop, index.step)))
    return index
