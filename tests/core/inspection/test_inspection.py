"""Inspection: are the right linears found, are their rows what `stream` says, do tokens stand where layouts say?

Every claim of the family tables is held against a forward of a tiny model of the class (hooks see what linears
really get), or against the class built at full size without memory (shares of weights).
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field, replace
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from model_outputs import tensors
from open_sora_models import OPEN_SORA
from tiny_models import AUDIO, BATCH, GRID, IMAGE, KANDINSKY_TILED_GRID, TEXT, TINY, VARIANTS, WAN_TEXT, volume
from torch import Tensor, nn

from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.inspection import (
    FAMILIES,
    LinearSite,
    TokenLayout,
    family_of,
    find_linears,
    layout_of,
)
from sedialect.sedialect_core.inspection import linears as linears_module
from sedialect.sedialect_core.inspection.generic import block_lists, generic_family

ALL = {**TINY, **VARIANTS, **OPEN_SORA}
NOT_VIDEO = {"JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"}
VIDEO = volume(GRID)


def plain_linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


@dataclass
class Trace:
    """One forward of a tiny model: its sites, and the inputs every linear got, call by call."""

    model: nn.Module
    sites: dict[str, LinearSite]
    outputs: list[Tensor] = field(default_factory=list)
    calls: dict[str, list[Tensor]] = field(default_factory=dict)


def run(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The outputs, and the inputs of every linear by name."""
    calls: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls.setdefault(name, []).append(args[0])

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in plain_linears(model).items()]
    with torch.no_grad():
        outputs = tensors(model(**inputs))
    for handle in handles:
        handle.remove()
    return outputs, calls


@cache
def traced(name: str) -> Trace:
    model, inputs = ALL[name]()
    outputs, calls = run(model, inputs)
    return Trace(model, {site.name: site for site in find_linears(model)}, outputs, calls)


def test_no_video_transformer_of_diffusers_is_missing() -> None:
    video = {name for name in dir(diffusers) if re.search(r"(Transformer3DModel|OmniTransformer)$", name)}
    assert video - NOT_VIDEO == set(TINY)


def test_every_class_has_one_family() -> None:
    names = [name for family in FAMILIES for name in family.class_names]
    assert len(names) == len(set(names))
    assert set(TINY) <= set(names)


@pytest.mark.parametrize("name", ALL)
def test_forward_and_sites(name: str) -> None:
    """The forward gives finite numbers; sites are all linears, in order; tables name every layer of a block."""
    trace = traced(name)
    assert trace.outputs and all(output.isfinite().all() for output in trace.outputs)
    assert family_of(trace.model).name != "generic"
    linears = plain_linears(trace.model)
    assert list(trace.sites) == list(linears)
    for site in trace.sites.values():
        module = linears[site.name]
        assert (site.in_features, site.out_features) == (module.in_features, module.out_features)
        assert (site.block is None) == (site.role in ("embedder", "head", "norm"))
        assert site.block is None or site.name.startswith(f"{site.block}.")
    blocks = {site.block for site in trace.sites.values() if is_quantizable(site)}
    assert len(blocks) >= 2


LEFT_IN_BLOCKS = {
    "WanVACETransformer3DModel": r"vace_blocks\.\d\.proj_(in|out)",
    "LTX2VideoTransformer3DModel": r".+\.to_gate_logits",
    "SanaWMLTX2RefinerTransformer3DModel": r".+\.to_gate_logits",
    "SanaWMTransformer3DModel": r".+\.(beta_proj|gate_proj|plucker_proj)",
}


@pytest.mark.parametrize("name", ALL)
def test_layers_left_in_blocks_are_known(name: str) -> None:
    others = [site.name for site in traced(name).sites.values() if site.role == "other"]
    pattern = LEFT_IN_BLOCKS.get(name, r"(?!)")
    assert [other for other in others if not re.fullmatch(pattern, other)] == []
    assert bool(others) == (name in LEFT_IN_BLOCKS)


@pytest.mark.parametrize("name", ALL)
def test_block_size_fits_every_block_linear(name: str) -> None:
    """What `tiny_models` promises, so that tests of the layers reach all of them."""
    widths = {site.in_features for site in traced(name).sites.values() if site.block is not None}
    assert {width for width in widths if width % 32} <= {16}


# At full size: share of weights in attention and feed-forward, in modulation, both of all parameters. Where a class has
# no usable defaults, or defaults of a smaller model, the configuration says what is built.
COGVIDEOX_5B = {"num_attention_heads": 48, "num_layers": 42}
LATTE = {
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "patch_size": 2,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "sample_size": 64,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "num_embeds_ada_norm": 1000,
    "activation_fn": "gelu-approximate",
}
EASYANIMATE = {
    "num_layers": 48,
    "num_attention_heads": 48,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 3584,
}
SHARES: dict[str, tuple[float, float, dict[str, Any]]] = {
    "WanTransformer3DModel": (0.98, 0.0, {}),
    "WanVACETransformer3DModel": (0.97, 0.0, {}),
    "WanAnimateTransformer3DModel": (0.98, 0.0, {}),
    "WanAnimate2Transformer3DModel": (0.98, 0.0, {}),
    "SkyReelsV2Transformer3DModel": (0.98, 0.0, {}),
    "ChronoEditTransformer3DModel": (0.98, 0.0, {}),
    "AnyFlowTransformer3DModel": (0.98, 0.0, {}),
    "AnyFlowFARTransformer3DModel": (0.98, 0.0, {}),
    "HeliosTransformer3DModel": (0.98, 0.0, {}),
    "CogVideoXTransformer3DModel": (0.85, 0.14, COGVIDEOX_5B),
    "ConsisIDTransformer3DModel": (0.78, 0.21, {}),
    "HunyuanVideoTransformer3DModel": (0.71, 0.265, {}),
    "HunyuanVideo15Transformer3DModel": (0.65, 0.33, {}),
    "HunyuanVideoFramepackTransformer3DModel": (0.71, 0.265, {}),
    "LTXVideoTransformer3DModel": (0.98, 0.0, {}),
    "LTX2VideoTransformer3DModel": (0.98, 0.0, {}),
    "MochiTransformer3DModel": (0.72, 0.27, {}),
    "AllegroTransformer3DModel": (0.98, 0.0, {}),
    "LatteTransformer3DModel": (0.98, 0.0, LATTE),
    "EasyAnimateTransformer3DModel": (0.92, 0.08, EASYANIMATE),
    "CosmosTransformer3DModel": (0.94, 0.05, {}),
    "Cosmos3OmniTransformer": (0.92, 0.0, {}),
    "SanaVideoTransformer3DModel": (0.42, 0.0, {}),  # 55 % of its weights are convolutions
    "SanaWMTransformer3DModel": (0.49, 0.0, {}),  # 45 % convolutions
    "SanaWMLTX2RefinerTransformer3DModel": (0.98, 0.0, {}),
    "Kandinsky5Transformer3DModel": (0.85, 0.15, {}),
    "Kandinsky6Transformer3DModel": (0.87, 0.13, {}),
    "Kandinsky6SRTransformer3DModel": (0.87, 0.125, {}),
    "MotifVideoTransformer3DModel": (0.72, 0.27, {}),
    "MiniMaxH3Transformer3DModel": (0.58, 0.39, {}),
}
SENSITIVE = re.compile(r"embed|caption|refiner|norm|modulation|adaln|scale_shift|time|patch|motion|(^|\.)head|lm_head")


def full_size(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, name)(**SHARES[name][2])
    return model


@pytest.mark.parametrize("name", TINY)
def test_share_of_weights(name: str) -> None:
    model = full_size(name)
    sites = find_linears(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    covered = sum(site.in_features * site.out_features for site in sites if is_quantizable(site)) / total
    modulation = sum(site.in_features * site.out_features for site in sites if site.role == "modulation") / total
    assert covered == pytest.approx(SHARES[name][0], abs=0.01)
    assert modulation == pytest.approx(SHARES[name][1], abs=0.01)
    assert [site.name for site in sites if is_quantizable(site) and SENSITIVE.search(site.name)] == []
    assert {site.in_features % 64 for site in sites if is_quantizable(site)} == {0}


def test_the_closing_layer_of_a_single_block_is_not_the_models_head() -> None:
    sites = traced("HunyuanVideoTransformer3DModel").sites
    assert sites["single_transformer_blocks.1.proj_out"].role == "feed_forward"
    assert sites["single_transformer_blocks.1.proj_out"].block == "single_transformer_blocks.1"
    assert (sites["proj_out"].role, sites["proj_out"].block) == ("head", None)
    assert sites["norm_out.linear"].role == "norm"
    refiner = [site for name, site in sites.items() if "refiner" in name]
    assert refiner and {site.role for site in refiner} == {"embedder", "norm"}


@dataclass(frozen=True)
class Rows:
    """Tokens a sample that each stream has in a tiny model; a tuple where linears of one stream differ."""

    batch: int = BATCH
    video: int | tuple[int, ...] = VIDEO
    text: int | tuple[int, ...] = TEXT
    joint: int | tuple[int, ...] = VIDEO + TEXT
    image: int | tuple[int, ...] = IMAGE


TILED = volume(KANDINSKY_TILED_GRID)
ROWS = {
    "WanTransformer3DModel (image)": Rows(text=WAN_TEXT),
    "WanAnimateTransformer3DModel": Rows(text=WAN_TEXT, image=(IMAGE, 9)),  # 3 frames of 3 face tokens
    "WanAnimate2Transformer3DModel": Rows(batch=1),
    "AnyFlowFARTransformer3DModel": Rows(video=2 + 16),  # a compressed frame, two whole ones
    "HeliosTransformer3DModel": Rows(video=(96, 96 + 32 + 8 + 2)),  # cross-attention takes the current tokens only
    "ConsisIDTransformer3DModel": Rows(image=3),
    "HunyuanVideo15Transformer3DModel": Rows(text=TEXT + 4 + IMAGE),
    "HunyuanVideoFramepackTransformer3DModel": Rows(video=24 + 11, text=TEXT + IMAGE, joint=24 + 11 + TEXT + IMAGE),
    "MotifVideoTransformer3DModel": Rows(text=(TEXT + IMAGE, TEXT), joint=(VIDEO + TEXT + IMAGE, 2 * VIDEO)),
    "Cosmos3OmniTransformer": Rows(batch=1),
    "LatteTransformer3DModel": Rows(text=3 * TEXT),  # every frame has a copy of the text
    "MiniMaxH3Transformer3DModel": Rows(joint=VIDEO + TEXT + AUDIO),
    "Kandinsky5Transformer3DModel (nabla)": Rows(video=TILED),
    "Kandinsky6SRTransformer3DModel": Rows(video=TILED),
}
NEVER_CALLED = {
    "SanaWMLTX2RefinerTransformer3DModel": r".+\.(audio_\w+|video_to_audio_attn)\..+",  # runs the video half only
    "SanaWMTransformer3DModel": r"blocks\.1\.attn\.(beta|gate)_proj",  # softmax attention has no use for them
    "WanTransformer3DModel (fused)": r".+\.(attn1\.to_[qkv]|attn2\.to_[kv])",  # kept beside the fused ones
}
EXACT = {"video", "text", "joint", "image", "audio"}


def expected_rows(name: str, stream: str) -> tuple[int, ...]:
    counts = {**vars(ROWS.get(name, Rows())), "audio": AUDIO}
    tokens = counts[stream]
    return tuple(counts["batch"] * count for count in (tokens if isinstance(tokens, tuple) else (tokens,)))


@pytest.mark.parametrize("name", ALL)
def test_streams(name: str) -> None:
    """The rows a block's linear really gets are as many as its stream has tokens; no linear goes unwatched."""
    trace = traced(name)
    silent = {site.name for site in trace.sites.values() if site.block and site.name not in trace.calls}
    unknown = {site for site in silent if not re.fullmatch(NEVER_CALLED.get(name, r"(?!)"), site)}
    assert unknown == set()
    assert bool(silent) == (name in NEVER_CALLED)
    seen: dict[str, set[int]] = {}
    for site in trace.sites.values():
        for x in trace.calls.get(site.name, []) if site.stream in EXACT else []:
            seen.setdefault(site.stream, set()).add(x.shape[:-1].numel())
    assert "video" in seen or "joint" in seen or name == "LatteTransformer3DModel"
    assert seen == {stream: set(expected_rows(name, stream)) for stream in seen}


@pytest.mark.parametrize("name", ALL)
def test_vectors_have_no_tokens(name: str) -> None:
    trace = traced(name)
    vectors = [site for site in trace.sites.values() if site.stream == "vector"]
    assert all(site.role == "modulation" for site in vectors)
    for site in vectors:
        assert {tuple(x.shape) for x in trace.calls[site.name]} == {(BATCH, site.in_features)}


@pytest.mark.parametrize(
    ("name", "grid"),
    [("LatteTransformer3DModel", (3, 4, 4)), ("STDiT3", GRID), ("STDiT3 (apart)", GRID)],
)
def test_rearranged_streams(name: str, grid: tuple[int, int, int]) -> None:
    trace = traced(name)
    frames, place = grid[0], grid[1] * grid[2]
    shapes = {"frame": (BATCH * frames, place), "place": (BATCH * place, frames)}
    assert set(shapes) <= {site.stream for site in trace.sites.values()}
    for site in trace.sites.values():
        if is_quantizable(site):
            seen = {tuple(x.shape[:-1]) for x in trace.calls[site.name]}
            assert seen == {shapes[site.stream]} if site.stream in shapes else not seen & set(shapes.values())


def test_a_linear_called_once_with_video_and_once_with_text() -> None:
    trace = traced("EasyAnimateTransformer3DModel")
    either = {site.name for site in trace.sites.values() if site.stream == "either"}
    assert either == {"transformer_blocks.2.ff.net.0.proj", "transformer_blocks.2.ff.net.2"}
    for name in either:
        assert [x.shape[1] for x in trace.calls[name]] == [VIDEO, TEXT]
    once = {name for name, calls in trace.calls.items() if len(calls) == 1}
    assert once == set(trace.calls) - either


def inputs_of(trace: Trace) -> dict[str, tuple[Any, ...]]:
    """A comparable stand-in for the inputs of each quantizable linear: shapes and exact values."""
    quantizable = [name for name, site in trace.sites.items() if is_quantizable(site) and name in trace.calls]
    return {
        name: tuple((tuple(x.shape), x.contiguous().numpy().tobytes()) for x in trace.calls[name]) for name in quantizable
    }


@pytest.mark.parametrize("name", ALL)
def test_shared_inputs(name: str) -> None:
    """Within a block: one key, equal inputs; and where the values are equal, one key."""
    trace = traced(name)
    by_key: dict[tuple[str | None, str], set[Any]] = {}
    by_input: dict[tuple[str | None, Any], set[str]] = {}
    for linear, seen in inputs_of(trace).items():
        site = trace.sites[linear]
        key = site.shared_input or linear
        by_key.setdefault((site.block, key), set()).add(seen)
        by_input.setdefault((site.block, seen), set()).add(key)
    assert {key for key, inputs in by_key.items() if len(inputs) > 1} == set()
    assert [keys for keys in by_input.values() if len(keys) > 1] == []
    assert any(site.shared_input for site in trace.sites.values()) or name in ("MMDiTModel (fused)", "STDiT3")


def test_no_key_is_shared_across_blocks_or_by_one() -> None:
    for name in ALL:
        readers: dict[str, list[LinearSite]] = {}
        for site in traced(name).sites.values():
            if site.shared_input is not None:
                readers.setdefault(site.shared_input, []).append(site)
        assert all(len(sites) > 1 and len({site.block for site in sites}) == 1 for sites in readers.values())


PACKED = {  # inputs that are tokens already: the perturbed row is the token
    "LTXVideoTransformer3DModel": "hidden_states",
    "LTX2VideoTransformer3DModel": "hidden_states",
    "SanaWMLTX2RefinerTransformer3DModel": "hidden_states",
    "MiniMaxH3Transformer3DModel": "hidden_states",
    "MMDiTModel": "img",
    "MMDiTModel (fused)": "img",
}
NO_GRID_IN_INPUTS = {"SanaWMLTX2RefinerTransformer3DModel", "MiniMaxH3Transformer3DModel"}
TEXT_IN_SEQUENCE = {
    "MiniMaxH3Transformer3DModel": 0,  # counted by nothing: the video comes last
    "HunyuanVideoFramepackTransformer3DModel": TEXT + IMAGE,
    "MotifVideoTransformer3DModel": TEXT + IMAGE,
}
GRIDS = {
    "HeliosTransformer3DModel": (3, 4, 8),
    "LatteTransformer3DModel": (3, 4, 4),
    "Kandinsky5Transformer3DModel (nabla)": KANDINSKY_TILED_GRID,
    "Kandinsky6SRTransformer3DModel": KANDINSKY_TILED_GRID,
}


def nudge(inputs: dict[str, Any], name: str, layout: TokenLayout, place: tuple[int, int, int]) -> None:
    """Change sample 0 of the inputs at one token's place."""
    if name in PACKED:
        inputs[PACKED[name]][0, layout.token_index(*place)] += 1.0
        return
    argument = {"shapes": "vision_tokens"}.get(layout.axes, layout.sources[0])
    axes = layout.axes if len(layout.axes) == 4 else "CTHW"
    value = inputs[argument]
    latents = value[0] if isinstance(value, list) else value
    where = dict(zip("THW", (at * step for at, step in zip(place, layout.patch, strict=True)), strict=True))
    index = tuple(where.get(axis, slice(None)) for axis in axes)
    latents[index if latents.dim() == 4 else (0, *index)] += 1.0


def is_quantizable(site: LinearSite) -> bool:
    """Whether it is an attention or feed-forward layer of a block."""
    return site.block is not None and site.role in ("attention", "feed_forward")


def video_start(layout: TokenLayout, length: int, text: int = 0) -> int:
    """The row of the first video token in a sequence of this length, `text` of which are text."""
    if layout.order.startswith("history") or layout.order == "packed":
        return length - layout.video_tokens - (text if layout.order.endswith("text") else 0)
    return text if layout.order.startswith("text") else 0


def first_input(name: str, stream: str, place: tuple[int, int, int] | None, without: int) -> tuple[Tensor, TokenLayout]:
    """What the first linear of this stream gets, [B, N, K], and the layout of the call.

    With a `place`, the input is nudged there. The first `without` blocks are taken out, so that no attention has
    mixed the tokens yet.
    """
    model, inputs = ALL[name]()
    layout = layout_of(model).for_inputs(inputs)
    assert (layout.grid is None) == (name in NO_GRID_IN_INPUTS)
    layout = layout.with_grid(GRID) if layout.grid is None else layout
    if without:
        del next(child for child in model.children() if isinstance(child, nn.ModuleList))[:without]
    if place is not None:
        nudge(inputs, name, layout, place)
    _, calls = run(model, inputs)
    sites = {site.name: site for site in find_linears(model) if is_quantizable(site) and site.stream == stream}
    site = next(sites[linear] for linear in calls if linear in sites)
    return calls[site.name][0].reshape(ROWS.get(name, Rows()).batch, -1, site.in_features), layout


def check_layout(name: str, stream: str, without: int = 0) -> None:
    """A change at one place of the latents changes one row, and that row is where the layout says."""
    before, layout = first_input(name, stream, None, without)
    assert layout.grid == GRIDS.get(name, GRID)
    _, height, width = layout.grid
    place = (1, height // 2, width - 2)  # no two orders of axes or tiles give it the same index
    after, _ = first_input(name, stream, place, without)
    text = TEXT_IN_SEQUENCE.get(name, TEXT) if stream == "joint" else 0
    start = video_start(layout, before.shape[1], text)
    changed = (before != after).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, start + layout.token_index(*place)]]


def first_stream(name: str) -> str:
    """The stream of the first linears whose rows are video tokens, in a model as it is."""
    streams = (site.stream for site in traced(name).sites.values() if is_quantizable(site))
    return next(stream for stream in streams if stream in ("video", "joint", "frame"))


LAYOUTS = [name for name in ALL if name != "AnyFlowFARTransformer3DModel"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_token_layout(name: str) -> None:
    check_layout(name, first_stream(name))


@pytest.mark.parametrize(
    "name",
    [
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoFramepackTransformer3DModel",
        "MotifVideoTransformer3DModel",
        "EasyAnimateTransformer3DModel",
        "MMDiTModel",
    ],
)
def test_token_layout_of_joined_sequences(name: str) -> None:
    """Without the blocks that keep the streams apart, the first joined sequence shows its order."""
    check_layout(name, "joint", without=2)


JOINED_IN_ATTENTION = {
    "CogVideoXTransformer3DModel": TEXT,
    "HunyuanVideoTransformer3DModel": TEXT,
    "HunyuanVideo15Transformer3DModel": TEXT + 4 + IMAGE,
    "HunyuanVideoFramepackTransformer3DModel": TEXT + IMAGE,
    "MotifVideoTransformer3DModel": TEXT + IMAGE,
    "MochiTransformer3DModel": TEXT,
    "EasyAnimateTransformer3DModel": TEXT,
    "MiniMaxH3Transformer3DModel": TEXT + AUDIO,
    "MMDiTModel": TEXT,
    "Cosmos3OmniTransformer": TEXT,
}


@pytest.mark.parametrize("name", TINY)
def test_order_says_whether_text_or_history_is_in_the_sequence(name: str) -> None:
    order = layout_of(traced(name).model).order
    joined = any(site.stream == "joint" for site in traced(name).sites.values())
    assert (joined or name in JOINED_IN_ATTENTION) == ("text" in order or order == "packed")
    assert ("history" in order) == bool(re.search("FAR|Helios|Framepack", name))


@pytest.mark.parametrize("name", JOINED_IN_ATTENTION)
def test_token_order_in_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models join text and video in attention only; the keys of block 0 have the order of the layout."""
    attend = torch.nn.functional.scaled_dot_product_attention
    text, seen = JOINED_IN_ATTENTION[name], []

    def watch(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keys.append(key)
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    layout = layout_of(traced(name).model).with_grid(GRID)
    place = (1, 1, 2)
    for nudged in (False, True):
        keys: list[Tensor] = []
        model, inputs = ALL[name]()
        if nudged:
            nudge(inputs, name, layout, place)
        run(model, inputs)
        seen.append(next(key for key in keys if key.shape[-2] >= VIDEO + text)[0])
    start = video_start(layout, seen[0].shape[-2], text)
    changed = (seen[0] != seen[1]).any(dim=-1).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [start + layout.token_index(*place)]


def test_history_stands_before_the_video() -> None:
    """AnyFlow FAR compresses old frames: the grid of its latents is no grid of its sequence, and is not read from them."""
    name = "AnyFlowFARTransformer3DModel"
    model, inputs = ALL[name]()
    layout = layout_of(model).for_inputs(inputs)
    assert layout.grid is None
    whole = replace(layout, axes="TCHW").with_grid((2, *GRID[1:]))
    assert video_start(whole, 18) == 2
    site = next(site for site in find_linears(model) if is_quantizable(site))
    _, before = run(model, inputs)
    _, inputs = ALL[name]()
    nudge(inputs, name, whole, (1 + 1, 0, 2))  # the second of the whole frames
    _, after = run(model, inputs)
    changed = (before[site.name][0] != after[site.name][0]).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 + whole.token_index(1, 0, 2)]


def test_ltx_pipelines_pack_in_this_order() -> None:
    """LTX's transformer gets tokens; it is its pipeline that lays out the grid."""
    layout = layout_of(traced("LTXVideoTransformer3DModel").model).with_grid(GRID)
    latents = torch.arange(VIDEO, dtype=torch.float32).reshape(1, 1, *GRID)
    packed = diffusers.LTXPipeline._pack_latents(latents, 1, 1)
    t, h, w = torch.meshgrid(*(torch.arange(size) for size in GRID), indexing="ij")
    assert torch.equal(packed[0, layout.token_index(t, h, w).flatten(), 0], latents.flatten())


@pytest.mark.parametrize("tile", [0, 8])
def test_token_index_is_a_permutation(tile: int) -> None:
    layout = TokenLayout("video", patch=(1, 2, 2), tile=tile).with_grid(KANDINSKY_TILED_GRID)
    t, h, w = torch.meshgrid(*(torch.arange(size) for size in KANDINSKY_TILED_GRID), indexing="ij")
    indices = layout.token_index(t, h, w)
    assert indices.flatten().sort().values.tolist() == list(range(TILED))
    assert indices[1, 7, 9].item() == layout.token_index(1, 7, 9)
    assert (indices.flatten().tolist() == list(range(TILED))) == (tile == 0)


def test_layouts_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ModelError, match="sideways"):
        TokenLayout("sideways", patch=(1, 1, 1))
    with pytest.raises(ModelError, match="XYZ"):
        TokenLayout("video", patch=(1, 1, 1), axes="XYZ")
    with pytest.raises(ModelError, match="tiles of 8"):
        TokenLayout("video", patch=(1, 1, 1), tile=8).with_grid((3, 8, 12))
    with pytest.raises(ModelError, match="grid is not known"):
        TokenLayout("video", patch=(1, 1, 1)).token_index(0, 0, 0)
    with pytest.raises(ModelError, match="cannot be read"):
        TokenLayout("video", patch=(1, 1, 1), axes="sizes").grid_of((1, 4, 3, 4, 8))
    with pytest.raises(FrozenInstanceError):
        TokenLayout("video", patch=(1, 1, 1)).tile = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "patch", "tile"),
    [
        ("WanTransformer3DModel", (1, 2, 2), 0),
        ("CogVideoXTransformer3DModel", (1, 2, 2), 0),
        ("CogVideoXTransformer3DModel (1.5)", (2, 2, 2), 0),
        ("HunyuanVideoTransformer3DModel", (1, 2, 2), 0),
        ("HunyuanVideo15Transformer3DModel", (1, 1, 1), 0),
        ("Cosmos3OmniTransformer", (1, 2, 2), 0),
        ("Kandinsky5Transformer3DModel", (1, 2, 2), 0),
        ("Kandinsky5Transformer3DModel (nabla)", (1, 2, 2), 8),
        ("Kandinsky6SRTransformer3DModel", (1, 1, 1), 8),
    ],
)
def test_layout_follows_the_configuration(name: str, patch: tuple[int, int, int], tile: int) -> None:
    layout = layout_of(traced(name).model)
    assert (layout.patch, layout.tile) == (patch, tile)


class Patched(nn.Module):
    """A model that tells its patch size in attributes, as ComfyUI's do."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.patch_size, self.patch_size_t = size, 3


@pytest.mark.parametrize(("size", "patch"), [(4, (3, 4, 4)), ((4, 5), (3, 4, 5)), ([1, 2, 4], (1, 2, 4)), (None, (1, 1, 1))])
def test_patch_sizes(size: Any, patch: tuple[int, int, int]) -> None:
    assert layout_of(Patched(size)).patch == patch


def test_an_odd_patch_size_is_refused() -> None:
    with pytest.raises(ModelError, match="patch size"):
        layout_of(Patched((1, 2, 2, 2)))


GENERIC_LEAVES_OUT = {
    "WanAnimateTransformer3DModel": r"face_adapter\..+",
    "SanaWMTransformer3DModel": r".+\.output_gate",
}


@pytest.mark.parametrize("name", ALL)
def test_generic_rules_agree_with_the_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names alone find what the tables list, nothing more, and claim nothing about rows."""
    trace = traced(name)
    monkeypatch.setattr(linears_module, "family_of", generic_family)
    generic = {site.name: site for site in find_linears(trace.model)}
    known = {site.name for site in trace.sites.values() if is_quantizable(site)}
    found = {site.name for site in generic.values() if is_quantizable(site)}
    assert found <= known
    assert [site for site in known - found if not re.fullmatch(GENERIC_LEAVES_OUT.get(name, r"(?!)"), site)] == []
    assert {site.role for site in generic.values() if trace.sites[site.name].role == "modulation"} <= {"modulation"}
    assert all(generic[site].role == trace.sites[site].role for site in found)
    assert {site.stream for site in generic.values()} == {"other"}
    assert not any(site.shared_input for site in generic.values())
    assert generic_family(trace.model).layout.order == "unknown"


def skeleton(names: list[str], size: int = 32) -> nn.Module:
    """Modules that lead to linears of these names; numbered children make a list."""
    root = nn.Module()
    for name in names:
        *parents, leaf = name.split(".")
        module = root
        for at, part in enumerate(parents):
            follower = [*parents, leaf][at + 1]
            if part not in module._modules:
                module.add_module(part, nn.ModuleList() if follower.isdigit() else nn.Module())
            module = module.get_submodule(part)
        module.add_module(leaf, nn.Linear(size, size))
    return root


WAN_BLOCK = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v"]
WAN_NAMES = [f"blocks.0.{part}" for part in [*WAN_BLOCK, "cross_attn.k_img", "cross_attn.o", "ffn.0", "ffn.2"]]
HUNYUAN_NAMES = [
    *(f"double_blocks.0.{s}_{part}" for s in ("img", "txt") for part in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0")),
    *(f"single_blocks.0.{part}" for part in ("linear1", "linear2", "modulation.lin")),
]
REFINER = [f"txt_in.individual_token_refiner.blocks.0.{part}" for part in ("self_attn.qkv", "mlp.0")]
COG_BLOCK = [f"blocks.0.{part}" for part in ("q", "k", "v", "attn_out", "ff_proj", "ff_out")]
LTX_BLOCK = [f"transformer_blocks.0.{part}" for part in ("attn1.to_q", "attn1.to_k", "attn2.to_k", "ff.net.2")]


@pytest.mark.parametrize(
    ("family", "names", "quantizable"),
    [
        ("Wan (original names)", [*WAN_NAMES, "patch_embedding", "head.head", "time_projection.1"], WAN_NAMES),
        (
            "HunyuanVideo (original names)",
            [*HUNYUAN_NAMES, *REFINER, "vector_in.in_layer", "final_layer.linear"],
            [name for name in HUNYUAN_NAMES if not name.endswith(".lin")],
        ),
        ("LTX-Video (original names)", [*LTX_BLOCK, "patchify_proj", "adaln_single.linear", "proj_out"], LTX_BLOCK),
        (
            "CogVideoX (ComfyUI's names)",
            [*COG_BLOCK, "blocks.0.norm1.linear", "patch_embed.text_proj", "proj_out"],
            COG_BLOCK,
        ),
    ],
)
def test_tell_tale_names(family: str, names: list[str], quantizable: list[str]) -> None:
    model = skeleton(names)
    sites = find_linears(model)
    assert family_of(model).name == family
    assert {site.name for site in sites if is_quantizable(site)} == set(quantizable)
    assert "other" not in {site.stream for site in sites if is_quantizable(site)}


def test_open_sora_is_known_under_any_class_name() -> None:
    for name, family in [("MMDiTModel", "2.0"), ("MMDiTModel (fused)", "2.0"), ("STDiT3", "1.2")]:
        model, _ = OPEN_SORA[name]()
        expected = find_linears(model)
        model.__class__ = type("Renamed", (nn.Module,), {})
        assert family_of(model).name == f"Open-Sora {family}"
        assert find_linears(model) == expected


def test_an_image_model_with_the_same_blocks_is_not_taken_for_a_video_model() -> None:
    model = skeleton([*HUNYUAN_NAMES, "img_in", "txt_in", "vector_in.in_layer", "final_layer.linear"])
    assert family_of(model).name == "generic"
    assert any(is_quantizable(site) for site in find_linears(model))


def test_a_subclass_belongs_to_its_parents_family() -> None:
    parent = type(traced("WanTransformer3DModel").model)
    model, _ = TINY["WanTransformer3DModel"]()
    model.__class__ = type("Fork", (parent,), {})
    assert family_of(model).name == "Wan"


def test_a_familiar_name_without_its_blocks_is_not_believed() -> None:
    model = type("MMDiTModel", (nn.Module,), {})()
    model.joint_blocks = skeleton(["0.attn.qkv", "0.mlp.fc1"])
    assert family_of(model).name == "generic"


GENERIC_NAMES = {
    "blocks.0.attn.qkv_x": "attention",
    "blocks.0.attn.proj_x": "attention",
    "blocks.0.attn.to_gate_logits": "other",
    "blocks.0.mlp_x.w1": "feed_forward",
    "blocks.0.mlp.router": "other",
    "blocks.0.mod_x": "modulation",
    "blocks.0.adaln_modulation_self_attn.1": "modulation",
    "blocks.0.norm1.linear": "modulation",
    "blocks.0.attn.norm.linear": "modulation",
    "blocks.0.before_proj": "other",
    "blocks.0.proj_out": "other",
    "single.0.to_q": "attention",
    "single.0.proj_mlp": "feed_forward",
    "single.0.proj_out": "feed_forward",
    "text_encoder_blocks.0.attn.qkv": "embedder",
    "context_refiner.blocks.0.attn.qkv": "embedder",
    "t5_y_embedder.to_q": "embedder",
    "norm_out.linear": "norm",
    "proj_out": "head",
}


def test_generic_roles() -> None:
    model = skeleton(list(GENERIC_NAMES))
    assert block_lists(model) == ("blocks", "single")
    assert {site.name: site.role for site in find_linears(model)} == GENERIC_NAMES


def test_blocks_may_lie_inside_a_wrapper() -> None:
    model = skeleton(["inner.blocks.0.attn.qkv", "inner.blocks.0.mlp.fc1", "inner.text.deep.layers.0.attn.qkv"])
    assert [site.block for site in find_linears(model)] == ["inner.blocks.0", "inner.blocks.0", None]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Conv3d(1, 1, 1)])
def test_a_model_without_blocks_has_nothing_to_quantize(model: nn.Module) -> None:
    assert not any(is_quantizable(site) for site in find_linears(model))


class OtherLinear(nn.Linear):
    """A linear of another library."""


def test_only_exact_types_are_found() -> None:
    model, _ = TINY["WanTransformer3DModel"]()
    attention = model.get_submodule("blocks.0.attn1")
    attention.to_q = OtherLinear(64, 64)
    assert "blocks.0.attn1.to_q" not in {site.name for site in find_linears(model)}
    sites = {site.name: site for site in find_linears(model, linear_types=(nn.Linear, OtherLinear))}
    assert sites["blocks.0.attn1.to_q"].role == "attention"


@pytest.mark.parametrize("name", ["EasyAnimateTransformer3DModel", "HunyuanVideoTransformer3DModel"])
def test_a_half_quantized_model_keeps_its_classes(name: str) -> None:
    model, _ = TINY[name]()
    before = {site.name: site for site in find_linears(model)}
    swapped = [site for site in before if re.search(r"add_q_proj|proj_mlp", site)]
    assert swapped
    for site in swapped:
        parent, leaf = site.rsplit(".", 1)
        setattr(model.get_submodule(parent), leaf, OtherLinear(before[site].in_features, before[site].out_features))
    after = {site.name: site for site in find_linears(model)}
    assert after == {site: before[site] for site in before if site not in swapped}


def test_lora() -> None:
    """Wrapped linears keep role, stream, block and partners; adapters are not listed."""
    peft = pytest.importorskip("peft")
    model, _ = TINY["WanTransformer3DModel"]()
    before = find_linears(model)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "ffn.net.2"]))  # type: ignore[operator]
    after = find_linears(model)
    assert [site.name.replace(".base_layer", "") for site in after] == [site.name for site in before]
    assert sum(site.name.endswith(".base_layer") for site in after) == 2 * 5
    assert all(isinstance(model.get_submodule(site.name), nn.Linear) for site in after)
    for old, new in zip(before, after, strict=True):
        assert {**vars(old), "name": ""} == {**vars(new), "name": ""}


def test_sites_are_plain_data() -> None:
    site = traced("WanTransformer3DModel").sites["blocks.1.attn1.to_k"]
    assert site == LinearSite("blocks.1.attn1.to_k", 64, 64, "attention", "video", "blocks.1", site.shared_input)
    assert site.shared_input == traced("WanTransformer3DModel").sites["blocks.1.attn1.to_q"].shared_input
    assert "blocks.1.attn1.to_k" in repr(site)
    with pytest.raises(FrozenInstanceError):
        site.role = "other"  # type: ignore[misc]


def test_inspection_does_not_import_diffusers() -> None:
    code = "import sys, sedialect.sedialect_core.inspection; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
