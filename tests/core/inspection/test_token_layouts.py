"""Token layouts: do video tokens stand where the layout of a model says? Shown by inputs that differ in one token."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import diffusers
import pytest
import torch
from inspected import ALL, ROWS, TILED, VIDEO, Rows, is_quantizable, run, traced
from tiny_cross_attention import KANDINSKY_TILED_GRID
from tiny_inputs import AUDIO, GRID, IMAGE, TEXT
from tiny_models import TINY
from torch import Tensor, nn

from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.inspection import (
    TokenLayout,
    find_linears,
    layout_of,
)

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
