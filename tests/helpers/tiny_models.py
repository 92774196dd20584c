"""Tiny random instances of every video transformer class of diffusers, with the inputs their forwards take.

One table names them, so that every room's tests speak of the same models; `tiny_inputs` has their sizes, and
`tiny_wan`, `tiny_joint_attention` and `tiny_cross_attention` build them.

`TINY[class_name]()` returns `(model, inputs)`; `model(**inputs)` runs on the CPU in float32. Each call seeds
the global generator, so two calls give the same weights and inputs.
"""

from __future__ import annotations

from functools import partial

from tiny_cross_attention import (
    allegro,
    cosmos,
    cosmos_image,
    kandinsky5,
    kandinsky5_nabla,
    kandinsky6,
    kandinsky6_sr,
    latte,
    ltx,
    ltx2,
    sana_video,
    sana_wm,
    sana_wm_refiner,
)
from tiny_inputs import Factory
from tiny_joint_attention import (
    cogvideox,
    consisid,
    cosmos3,
    easyanimate,
    hunyuan_framepack,
    hunyuan_video,
    hunyuan_video15,
    minimax_h3,
    mochi,
    motif_video,
)
from tiny_wan import anyflow, anyflow_far, helios, wan, wan_animate, wan_animate2, wan_fused, wan_image, wan_vace

TINY: dict[str, Factory] = {
    "WanTransformer3DModel": partial(wan, "WanTransformer3DModel"),
    "WanVACETransformer3DModel": wan_vace,
    "WanAnimateTransformer3DModel": wan_animate,
    "WanAnimate2Transformer3DModel": wan_animate2,
    "SkyReelsV2Transformer3DModel": partial(wan, "SkyReelsV2Transformer3DModel"),
    "ChronoEditTransformer3DModel": partial(wan, "ChronoEditTransformer3DModel", rope_temporal_skip_len=8),
    "AnyFlowTransformer3DModel": partial(anyflow, "AnyFlowTransformer3DModel"),
    "AnyFlowFARTransformer3DModel": anyflow_far,
    "HeliosTransformer3DModel": helios,
    "CogVideoXTransformer3DModel": cogvideox,
    "ConsisIDTransformer3DModel": consisid,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": hunyuan_framepack,
    "LTXVideoTransformer3DModel": ltx,
    "LTX2VideoTransformer3DModel": ltx2,
    "MochiTransformer3DModel": mochi,
    "AllegroTransformer3DModel": allegro,
    "LatteTransformer3DModel": latte,
    "EasyAnimateTransformer3DModel": easyanimate,
    "CosmosTransformer3DModel": cosmos,
    "Cosmos3OmniTransformer": cosmos3,
    "SanaVideoTransformer3DModel": sana_video,
    "SanaWMTransformer3DModel": sana_wm,
    "SanaWMLTX2RefinerTransformer3DModel": sana_wm_refiner,
    "Kandinsky5Transformer3DModel": kandinsky5,
    "Kandinsky6Transformer3DModel": kandinsky6,
    "Kandinsky6SRTransformer3DModel": kandinsky6_sr,
    "MotifVideoTransformer3DModel": motif_video,
    "MiniMaxH3Transformer3DModel": minimax_h3,
}
VARIANTS: dict[str, Factory] = {
    "WanTransformer3DModel (image)": wan_image,
    "WanTransformer3DModel (fused)": wan_fused,
    "CogVideoXTransformer3DModel (1.5)": partial(cogvideox, patch_size_t=2, use_rotary_positional_embeddings=True),
    "HunyuanVideoTransformer3DModel (image)": partial(hunyuan_video, image_condition_type="token_replace"),
    "CosmosTransformer3DModel (image)": cosmos_image,
    "Kandinsky5Transformer3DModel (nabla)": kandinsky5_nabla,
}
"""Configurations of the same classes that have other layers, or another order of tokens."""
