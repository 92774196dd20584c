"""Which family a model is of, by its class and by the names of its layers; and the rules for models that nobody knows."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from inspected import ALL, is_quantizable, traced
from open_sora_models import OPEN_SORA
from tiny_models import TINY
from torch import nn

from sedialect.sedialect_core.inspection import (
    LinearSite,
    family_of,
    find_linears,
)
from sedialect.sedialect_core.inspection import linears as linears_module
from sedialect.sedialect_core.inspection.generic import block_lists, generic_family

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
