"""Inspection: are the right linears found, are their rows what `stream` says, do tokens stand where layouts say?

Every claim of the family tables is held against a forward of a tiny model of the class (hooks see what linears
really get), or against the class built at full size without memory (shares of weights).
"""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch
from inspected import ALL, NEVER_CALLED, ROWS, VIDEO, Rows, Trace, is_quantizable, plain_linears, traced
from tiny_inputs import AUDIO, BATCH, GRID, TEXT
from tiny_models import TINY
from torch import nn

from sedialect.sedialect_core.inspection import (
    FAMILIES,
    LinearSite,
    family_of,
    find_linears,
)

NOT_VIDEO = {"JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"}


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
    """What `tiny_inputs` promises, so that tests of the layers reach all of them."""
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
