"""Video transformers by the names their authors gave, which ComfyUI keeps for all but CogVideoX, and ComfyUI's for that."""

from .diffusers_families import CROSS, LTX2
from .rules import BlockKind, Family, Rule
from .tokens import TokenLayout

# Open-Sora 2.0 and HunyuanVideo: two streams, q, k, v apart or fused into one.
DOUBLE_STREAM = (
    Rule(r"(img|txt)_mod\.lin", "modulation", "vector"),
    Rule(r"img_attn\.([qkv]_proj|qkv)", "attention", "video", reads="video"),
    Rule(r"txt_attn\.([qkv]_proj|qkv)", "attention", "text", reads="text"),
    Rule(r"img_attn\.proj", "attention", "video"),
    Rule(r"txt_attn\.proj", "attention", "text"),
    Rule(r"img_mlp\.[02]", "feed_forward", "video"),
    Rule(r"txt_mlp\.[02]", "feed_forward", "text"),
)

# `linear1` is q, k, v and the first half of the feed-forward in one, `v_mlp` v and that half: mostly feed-forward.
SINGLE_STREAM = (
    Rule(r"modulation\.lin", "modulation", "vector"),
    Rule(r"[qk]_proj", "attention", "joint", reads="joint"),
    Rule(r"v_mlp|linear1", "feed_forward", "joint", reads="joint"),
    Rule(r"linear2", "feed_forward", "joint"),
)

TWO_STREAMS = (
    BlockKind(("double_blocks",), DOUBLE_STREAM),
    BlockKind(("single_blocks",), SINGLE_STREAM),
)

STDIT_FRAME = (
    Rule(r"attn\.(qkv|[qkv]_linear|[qkv]_proj)", "attention", "frame", reads="self"),
    Rule(r"attn\.proj", "attention", "frame"),
    Rule(r"cross_attn\.(q_linear|proj)", "attention", "video"),
    Rule(r"cross_attn\.(kv_linear|[kv]_linear)", "attention", "text", reads="text"),
    Rule(r"mlp\.fc[12]", "feed_forward", "video"),
)

STDIT_PLACE = (
    Rule(r"attn\.(qkv|[qkv]_linear|[qkv]_proj)", "attention", "place", reads="self"),
    Rule(r"attn\.proj", "attention", "place"),
    *STDIT_FRAME[2:],
)

WAN = (
    Rule(r"self_attn\.[qkv]", "attention", "video", reads="self"),
    Rule(r"cross_attn\.[kv]", "attention", "text", reads="text"),
    Rule(r"cross_attn\.[kv]_img", "attention", "image", reads="image"),
    Rule(r"(self|cross)_attn\.o|cross_attn\.q", "attention", "video"),
    Rule(r"ffn\.[02]", "feed_forward", "video"),
)

COGVIDEOX = (
    Rule(r"norm[12]\.linear", "modulation", "vector"),
    Rule(r"[qkv]", "attention", "joint", reads="attention"),
    Rule(r"attn_out", "attention", "joint"),
    Rule(r"ff_(proj|out)", "feed_forward", "joint"),
)

COSMOS_PREDICT2 = (
    Rule(r"adaln_modulation_\w+\.[12]", "modulation", "vector"),
    Rule(r"self_attn\.[qkv]_proj", "attention", "video", reads="self"),
    Rule(r"cross_attn\.[kv]_proj", "attention", "text", reads="text"),
    Rule(r"cross_attn\.q_proj|(self|cross)_attn\.output_proj", "attention", "video"),
    Rule(r"mlp\.layer[12]", "feed_forward", "video"),
)

MOCHI = (
    Rule(r"mod_[xy]", "modulation", "vector"),
    Rule(r"attn\.(qkv|proj)_x", "attention", "video"),
    Rule(r"attn\.(qkv|proj)_y", "attention", "text"),
    Rule(r"mlp_x\.w[12]", "feed_forward", "video"),
    Rule(r"mlp_y\.w[12]", "feed_forward", "text"),
)

ORIGINAL_FAMILIES: tuple[Family, ...] = (
    Family(
        "Open-Sora 2.0",
        ("MMDiTModel",),
        TWO_STREAMS,
        TokenLayout("text_video", patch=(1, 2, 2), axes="positions", sources=("img_ids",)),
        # Image models of the Flux line have these blocks too, but neither separate q, k, v nor a video condition.
        telltales=(r"double_blocks\.0\.img_attn\.proj", r"double_blocks\.0\.img_attn\.q_proj|cond_in"),
    ),
    Family(
        "Open-Sora 1.2",
        ("STDiT3",),
        (BlockKind(("spatial_blocks",), STDIT_FRAME), BlockKind(("temporal_blocks",), STDIT_PLACE)),
        TokenLayout("video", patch=(1, 2, 2), sources=("x",)),
        telltales=(r"spatial_blocks\.0\.cross_attn\.kv_linear", r"temporal_blocks\.0\.attn"),
    ),
    Family(
        "HunyuanVideo (original names)",
        ("HunyuanVideo",),
        TWO_STREAMS,
        TokenLayout("text_video", patch=(1, 2, 2), sources=("x",)),
        telltales=(r"double_blocks\.0\.img_attn\.qkv", r"txt_in\.individual_token_refiner"),
    ),
    Family(
        "Wan (original names)",
        ("WanModel",),
        (BlockKind(("blocks", "vace_blocks"), WAN),),
        TokenLayout("video", patch=(1, 2, 2), sources=("x",)),
        telltales=(r"blocks\.0\.self_attn\.q", r"blocks\.0\.cross_attn\.k", r"blocks\.0\.ffn\.0", r"patch_embedding"),
    ),
    Family(
        "LTX-2 (original names)",
        ("LTXAVModel",),
        (BlockKind(("transformer_blocks",), LTX2),),
        TokenLayout("video", patch=(1, 1, 1), axes="unknown"),
        telltales=(r"transformer_blocks\.0\.audio_to_video_attn\.to_q", r"patchify_proj"),
    ),
    Family(
        "LTX-Video (original names)",
        ("LTXVModel",),
        (BlockKind(("transformer_blocks",), CROSS),),
        TokenLayout("video", patch=(1, 1, 1), sources=("x",)),
        telltales=(r"transformer_blocks\.0\.attn2\.to_k", r"patchify_proj", r"adaln_single\.linear"),
    ),
    Family(
        "CogVideoX (ComfyUI's names)",
        (),  # the class has the name of diffusers' own
        (BlockKind(("blocks",), COGVIDEOX),),
        TokenLayout("text_video", patch=(1, 2, 2), sources=("x",)),
        telltales=(r"blocks\.0\.norm1\.linear", r"blocks\.0\.ff_proj", r"patch_embed\.text_proj"),
    ),
    Family(
        "Cosmos Predict2 (original names)",
        ("MiniTrainDIT",),
        (BlockKind(("blocks",), COSMOS_PREDICT2),),
        TokenLayout("video", patch=(1, 2, 2), sources=("x",)),
    ),
    Family(
        "Mochi (original names)",
        ("AsymmDiTJoint",),
        (BlockKind(("blocks",), MOCHI),),
        TokenLayout("video_text", patch=(1, 2, 2), sources=("x",)),
    ),
)
