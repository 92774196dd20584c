"""Wan transformers under two sets of names: diffusers' and the authors' own, which ComfyUI keeps.

Only names change; every tensor is the same. The tables are checked against both libraries' models in the tests.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ModelError

# diffusers' module, and the authors'; * stands for a block's number. A pair holds for whatever the module has below it.
_BLOCK = (
    ("attn1.to_q", "self_attn.q"),
    ("attn1.to_k", "self_attn.k"),
    ("attn1.to_v", "self_attn.v"),
    ("attn1.to_out.0", "self_attn.o"),
    ("attn1.norm_q", "self_attn.norm_q"),
    ("attn1.norm_k", "self_attn.norm_k"),
    ("attn2.to_q", "cross_attn.q"),
    ("attn2.to_k", "cross_attn.k"),
    ("attn2.to_v", "cross_attn.v"),
    ("attn2.to_out.0", "cross_attn.o"),
    ("attn2.norm_q", "cross_attn.norm_q"),
    ("attn2.norm_k", "cross_attn.norm_k"),
    ("attn2.add_k_proj", "cross_attn.k_img"),
    ("attn2.add_v_proj", "cross_attn.v_img"),
    ("attn2.norm_added_k", "cross_attn.norm_k_img"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("norm2", "norm3"),
    ("scale_shift_table", "modulation"),
)
_OUTSIDE = (
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
)
PAIRS = (*((f"blocks.*.{theirs}", f"blocks.*.{ours}") for theirs, ours in _BLOCK), *_OUTSIDE)
MODEL_TYPES = ("t2v", "i2v")
ONLY_DIFFUSERS, ONLY_AUTHORS = "condition_embedder.time_proj.", "time_projection.1."


def names_of_diffusers(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a Wan transformer of diffusers."""
    return any(key.startswith(ONLY_DIFFUSERS) for key in keys)


def names_of_authors(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a Wan transformer under its authors' names."""
    return any(key.startswith(ONLY_AUTHORS) for key in keys)


def to_authors(name: str) -> str:
    """The authors' name for a module or tensor of diffusers.

    Raises:
        ModelError: there is none.
    """
    return _renamed(name, PAIRS, "Wan's authors")


def to_diffusers(name: str) -> str:
    """diffusers' name for a module or tensor of the authors.

    Raises:
        ModelError: there is none, as for the layers of VACE, Animate and other derived models.
    """
    return _renamed(name, tuple((theirs, ours) for ours, theirs in PAIRS), "diffusers")


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ComfyUI builds a Wan model with, of a diffusers config.json."""
    heads, width = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    return {
        "dim": heads * width,
        "num_heads": heads,
        "text_dim": config["text_dim"],
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"] or config["in_channels"],
        "num_layers": config["num_layers"],
        "cross_attn_norm": config["cross_attn_norm"],
        "eps": config["eps"],
        "model_type": MODEL_TYPES[config.get("image_dim") is not None],
    }


def config_of(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The diffusers config.json of a Wan model.

    Args:
        settings: what ComfyUI built it with.
        shapes: of its tensors, by the authors' names; of weights as they are unpacked.

    Raises:
        ModelError: it is a model derived from Wan, for which diffusers has another class.
    """
    kind = settings.get("model_type", "t2v")
    if kind not in MODEL_TYPES:
        raise ModelError(f"Wan models of the kind {kind!r} have no counterpart in diffusers here; save with ComfyUI's names")
    image = shapes.get("img_emb.proj.1.weight")
    positions = shapes.get("img_emb.emb_pos")
    dim, heads = int(settings["dim"]), int(settings["num_heads"])
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(shapes["patch_embedding.weight"][2:]),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": shapes["patch_embedding.weight"][1],
        "out_channels": settings["out_dim"],
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": settings["ffn_dim"],
        "num_layers": settings["num_layers"],
        "cross_attn_norm": bool(settings.get("cross_attn_norm", True)),
        "qk_norm": "rms_norm_across_heads",
        "eps": settings.get("eps", 1e-6),
        "image_dim": image[1] if image else None,
        "added_kv_proj_dim": dim if image else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": positions[1] if positions else None,
    }


def _renamed(name: str, pairs: tuple[tuple[str, str], ...], whose: str) -> str:
    for old, new in pairs:
        found = re.match(re.escape(old).replace(r"\*", r"(\d+)") + r"(?=\.|$)", name)
        if found is not None:
            block = found.group(1) if found.groups() else ""
            return new.replace("*", block) + name[found.end() :]
    raise ModelError(f"{name!r} has no counterpart among the names of {whose}")
