"""The video transformers of diffusers, as data.

A linear of a block that no rule names is classed "other" and stays as it is: a class that grows a new layer loses
a little compression, never quality. Most classes are made of a few kinds of blocks, which come first.
"""

from dataclasses import replace

from .rules import BlockKind, Family, Rule
from .tokens import TokenLayout

NORMS = Rule(r"norm\w*\.linear(_\d)?", "modulation", "vector")
MODULATION = Rule(r"(.+\.)?\w*modulation\.out_layer", "modulation", "vector")

# Self-attention over the video, cross-attention to text and images, feed-forward: Wan, LTX, Cosmos, Allegro, Sana.
CROSS = (
    NORMS,
    Rule(r"(attn1|self_attn)\.(to_[qkv]|to_qkv)", "attention", "video", reads=r"\1 queries"),
    Rule(r"(attn2|cross_attn)\.(to_q|q_img)", "attention", "video", reads=r"\1 queries"),
    Rule(r"(attn2|cross_attn)\.(to_[kv]|to_kv)", "attention", "text", reads=r"\1 text"),
    Rule(r"(attn2|cross_attn)\.(add_[kv]_proj|to_added_kv|[kv]_img)", "attention", "image", reads=r"\1 image"),
    Rule(r"(attn[12]|self_attn|cross_attn)\.to_out\.0", "attention", "video"),
    Rule(r"ffn?\.(net\.0\.proj|net\.2|0|2)", "feed_forward", "video"),
)

# Text and video keep their own weights, and meet in attention: Hunyuan, Motif, Mochi, EasyAnimate.
DUAL = (
    NORMS,
    Rule(r"attn1?\.(to_[qkv]|to_qkv)", "attention", "video", reads="video"),
    Rule(r"attn1?\.(add_[qkv]_proj|to_added_qkv)", "attention", "text", reads="text"),
    Rule(r"attn1?\.to_out\.0", "attention", "video"),
    Rule(r"attn1?\.to_add_out", "attention", "text"),
    Rule(r"cross_attn\.to_[kv]", "attention", "text", reads="text cross"),
    Rule(r"cross_attn\.(to_q|to_out\.0)", "attention", "video"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "video"),
    Rule(r"(ff_context|txt_ff)\.net\.(0\.proj|2)", "feed_forward", "text"),
)

# One sequence and one set of weights, attention and feed-forward side by side: the largest layer is `proj_out`.
# Motif's decoder blocks join the video with the encoded video, in the place of the text.
SINGLE = (
    NORMS,
    Rule(r"attn\.(to_[qkv]|to_qkv)", "attention", "joint", reads="joint"),
    Rule(r"proj_mlp", "feed_forward", "joint", reads="joint"),
    Rule(r"proj_out", "feed_forward", "joint"),
    Rule(r"cross_attn\.to_[kv]", "attention", "text", reads="text cross"),
    Rule(r"cross_attn\.(to_q|to_out\.0)", "attention", "video"),
)

# One sequence through ordinary blocks: CogVideoX, ConsisID, MiniMax-H3.
JOINT = (
    NORMS,
    Rule(r"adaln_proj\.linear", "modulation", "vector"),
    Rule(r"attn1?\.(to_[qkv]|to_qkv)", "attention", "joint", reads="attention"),
    Rule(r"attn1?\.to_out\.0", "attention", "joint"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "joint"),
)

HUNYUAN = (
    BlockKind(("transformer_blocks",), DUAL),
    BlockKind(("single_transformer_blocks",), SINGLE),
)

FACE_ADAPTER = (
    Rule(r"to_q|to_out", "attention", "video"),
    Rule(r"to_[kv]|to_kv", "attention", "image", reads="face"),
)

# EasyAnimate's later blocks join the sequences in attention, then run one feed-forward on each in turn.
EASYANIMATE_JOINT = (
    NORMS,
    Rule(r"attn1\.to_[qkv]", "attention", "joint", reads="joint"),
    Rule(r"attn1\.to_out\.0", "attention", "video"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "either"),
)

# Gates of attention (`to_gate_logits`), where a configuration has them, have one output a head: left unnamed.
LTX2 = (
    Rule(r"(attn1|attn2|audio_to_video_attn)\.to_q", "attention", "video", reads=r"\1 queries"),
    Rule(r"(attn1)\.to_[kv]", "attention", "video", reads=r"\1 queries"),
    Rule(r"(audio_attn[12]|video_to_audio_attn)\.to_q", "attention", "audio", reads=r"\1 queries"),
    Rule(r"(audio_attn1)\.to_[kv]", "attention", "audio", reads=r"\1 queries"),
    Rule(r"(audio_attn2|attn2)\.to_[kv]", "attention", "text", reads=r"\1 text"),
    Rule(r"(audio_to_video_attn)\.to_[kv]", "attention", "audio", reads=r"\1 keys"),
    Rule(r"(video_to_audio_attn)\.to_[kv]", "attention", "video", reads=r"\1 keys"),
    Rule(r"(attn[12]|audio_to_video_attn)\.to_out\.0", "attention", "video"),
    Rule(r"(audio_attn[12]|video_to_audio_attn)\.to_out\.0", "attention", "audio"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "video"),
    Rule(r"audio_ff\.net\.(0\.proj|2)", "feed_forward", "audio"),
)

# The text path of Cosmos 3 ("understanding") and the path of the tokens being made have their own weights.
COSMOS3 = (
    Rule(r"self_attn\.to_[qkv]", "attention", "text", reads="text"),
    Rule(r"self_attn\.add_[qkv]_proj", "attention", "video", reads="video"),
    Rule(r"self_attn\.to_out", "attention", "text"),
    Rule(r"self_attn\.to_add_out", "attention", "video"),
    Rule(r"(mlp)\.(gate|up)_proj", "feed_forward", "text", reads=r"\1"),
    Rule(r"(mlp_moe_gen)\.(gate|up)_proj", "feed_forward", "video", reads=r"\1"),
    Rule(r"mlp\.down_proj", "feed_forward", "text"),
    Rule(r"mlp_moe_gen\.down_proj", "feed_forward", "video"),
)

# Left unnamed: decay and write gate (`beta_proj`, `gate_proj`: one output a head, and they steer a recurrence), and
# the camera's way into the video tokens (`plucker_proj`).
SANA_WM = (
    Rule(r"attn\.(qkv|[qkv]_proj_cam|output_gate)", "attention", "video", reads="attention"),
    Rule(r"attn\.(proj|out_proj_cam)", "attention", "video"),
    Rule(r"cross_attn\.(q_linear|proj)", "attention", "video"),
    Rule(r"cross_attn\.kv_linear", "attention", "text"),
    Rule(r"mlp\.fc[12]", "feed_forward", "video"),
)

SANA_WM_LINEAR = (replace(SANA_WM[0], linear=True), *SANA_WM[1:])  # gated delta nets, three of four blocks
SANA_VIDEO = (replace(CROSS[1], linear=True), *CROSS)

KANDINSKY_TEXT = (
    MODULATION,
    Rule(r"(self_attention|attn)\.to_(query|key|value)", "attention", "text", reads="attention"),
    Rule(r"(self_attention|attn)\.out_layer", "attention", "text"),
    Rule(r"feed_forward\.(in_layer|out_layer|net\.0\.proj|net\.2)", "feed_forward", "text"),
)

KANDINSKY_VIDEO = (
    MODULATION,
    Rule(r"self_attention\.to_(query|key|value)", "attention", "video", reads="self"),
    Rule(r"cross_attention\.to_query", "attention", "video"),
    Rule(r"cross_attention\.to_(key|value)", "attention", "text", reads="text"),
    Rule(r"(self|cross)_attention\.out_layer", "attention", "video"),
    Rule(r"feed_forward\.(in_layer|out_layer|net\.0\.proj|net\.2)", "feed_forward", "video"),
)

# Two such blocks side by side; each modality's queries to its text are also the keys of the other modality.
KANDINSKY6 = (
    MODULATION,
    Rule(r"video_dec_block\.self_attention\.to_(query|key|value)", "attention", "video", reads="video self"),
    Rule(r"audio_dec_block\.self_attention\.to_(query|key|value)", "attention", "audio", reads="audio self"),
    Rule(r"video_dec_block\.cross_attention\.to_query", "attention", "video", reads="video cross"),
    Rule(r"audio_dec_block\.cross_attention\.to_query", "attention", "audio", reads="audio cross"),
    Rule(r"(video|audio)_dec_block\.cross_attention\.to_(key|value)", "attention", "text", reads=r"\1 text"),
    Rule(r"va_cross_attention\.to_(key|value)", "attention", "audio", reads="audio cross"),
    Rule(r"av_cross_attention\.to_(key|value)", "attention", "video", reads="video cross"),
    Rule(r"va_cross_attention\.(to_query|out_layer)", "attention", "video"),
    Rule(r"av_cross_attention\.(to_query|out_layer)", "attention", "audio"),
    Rule(r"video_dec_block\.\w+_attention\.out_layer", "attention", "video"),
    Rule(r"audio_dec_block\.\w+_attention\.out_layer", "attention", "audio"),
    Rule(r"video_dec_block\.feed_forward\.net\.(0\.proj|2)", "feed_forward", "video"),
    Rule(r"audio_dec_block\.feed_forward\.net\.(0\.proj|2)", "feed_forward", "audio"),
)

LATTE_FRAME = (
    Rule(r"attn1\.to_[qkv]", "attention", "frame", reads="self"),
    Rule(r"attn2\.to_[kv]", "attention", "text", reads="text"),
    Rule(r"attn2\.to_q|attn[12]\.to_out\.0", "attention", "frame"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "frame"),
)

LATTE_PLACE = (
    Rule(r"attn1\.to_[qkv]", "attention", "place", reads="self"),
    Rule(r"attn1\.to_out\.0", "attention", "place"),
    Rule(r"ff\.net\.(0\.proj|2)", "feed_forward", "place"),
)

VIDEO = TokenLayout("video", patch=(1, 2, 2))
FRAMES_FIRST = TokenLayout("video", patch=(1, 2, 2), axes="TCHW")
CHANNELS_LAST = TokenLayout("video", patch=(1, 2, 2), axes="THWC")
VIDEO_TEXT = TokenLayout("video_text", patch=(1, 2, 2))
GIVEN_SIZES = TokenLayout("video", patch=(1, 1, 1), axes="sizes", sources=("num_frames", "height", "width"))

BLOCKS = (BlockKind(("blocks",), CROSS),)
TRANSFORMER_BLOCKS = (BlockKind(("transformer_blocks",), CROSS),)

DIFFUSERS_FAMILIES: tuple[Family, ...] = (
    Family(
        "Wan",
        (
            "WanTransformer3DModel",
            "WanVACETransformer3DModel",
            "WanAnimateTransformer3DModel",
            "WanAnimate2Transformer3DModel",
            "SkyReelsV2Transformer3DModel",
            "ChronoEditTransformer3DModel",
        ),
        (BlockKind(("blocks", "vace_blocks"), CROSS), BlockKind(("face_adapter",), FACE_ADAPTER)),
        VIDEO,
    ),
    Family("AnyFlow", ("AnyFlowTransformer3DModel",), BLOCKS, FRAMES_FIRST),
    Family(
        "AnyFlow FAR",
        ("AnyFlowFARTransformer3DModel",),
        BLOCKS,
        # Past frames are compressed: the grid of the latents is no grid of the sequence.
        TokenLayout("history_video", patch=(1, 2, 2), axes="unknown"),
    ),
    Family("Helios", ("HeliosTransformer3DModel",), BLOCKS, TokenLayout("history_video", patch=(1, 2, 2))),
    Family(
        "CogVideoX",
        ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
        (
            BlockKind(("transformer_blocks",), JOINT),
            BlockKind(("perceiver_cross_attention",), FACE_ADAPTER),
        ),
        TokenLayout("text_video", patch=(1, 2, 2), axes="TCHW"),
    ),
    Family("HunyuanVideo", ("HunyuanVideoTransformer3DModel",), HUNYUAN, VIDEO_TEXT),
    Family(
        "HunyuanVideo 1.5",
        ("HunyuanVideo15Transformer3DModel",),
        (BlockKind(("transformer_blocks",), DUAL),),
        TokenLayout("video_text", patch=(1, 1, 1)),
        pair_mask=True,
    ),
    Family(
        "HunyuanVideo FramePack",
        ("HunyuanVideoFramepackTransformer3DModel",),
        HUNYUAN,
        TokenLayout("history_video_text", patch=(1, 2, 2)),
    ),
    Family("Motif-Video", ("MotifVideoTransformer3DModel",), HUNYUAN, VIDEO_TEXT),
    Family("Mochi", ("MochiTransformer3DModel",), (BlockKind(("transformer_blocks",), DUAL),), VIDEO_TEXT),
    Family(
        "EasyAnimate",
        ("EasyAnimateTransformer3DModel",),
        (
            BlockKind(("transformer_blocks",), DUAL, having="attn1.add_q_proj"),
            BlockKind(("transformer_blocks",), EASYANIMATE_JOINT),
        ),
        TokenLayout("text_video", patch=(1, 2, 2)),
    ),
    Family("LTX-Video", ("LTXVideoTransformer3DModel",), TRANSFORMER_BLOCKS, GIVEN_SIZES),
    Family(
        "LTX-2",
        ("LTX2VideoTransformer3DModel",),
        (BlockKind(("transformer_blocks",), LTX2),),
        GIVEN_SIZES,
    ),
    Family(
        "SANA-WM refiner",
        ("SanaWMLTX2RefinerTransformer3DModel",),
        (BlockKind(("transformer_blocks",), LTX2),),
        TokenLayout("video", patch=(1, 1, 1), axes="unknown"),  # it is given rotary angles, not sizes
    ),
    Family("Allegro", ("AllegroTransformer3DModel",), TRANSFORMER_BLOCKS, VIDEO),
    Family(
        "Latte",
        ("LatteTransformer3DModel",),
        (
            BlockKind(("transformer_blocks",), LATTE_FRAME),
            BlockKind(("temporal_transformer_blocks",), LATTE_PLACE),
        ),
        VIDEO,
    ),
    Family("Cosmos", ("CosmosTransformer3DModel",), TRANSFORMER_BLOCKS, VIDEO),
    Family(
        "Cosmos 3",
        ("Cosmos3OmniTransformer",),
        (BlockKind(("layers",), COSMOS3),),
        TokenLayout("text_video", patch=(1, 2, 2), axes="shapes", sources=("vision_token_shapes",)),
    ),
    Family("SANA-Video", ("SanaVideoTransformer3DModel",), (BlockKind(("transformer_blocks",), SANA_VIDEO),), VIDEO),
    Family(
        "SANA-WM",
        ("SanaWMTransformer3DModel",),
        (BlockKind(("blocks",), SANA_WM_LINEAR, having="attn.kernel_func"), BlockKind(("blocks",), SANA_WM)),
        TokenLayout("video", patch=(1, 1, 1)),
    ),
    Family(
        "Kandinsky 5",
        ("Kandinsky5Transformer3DModel",),
        (
            BlockKind(("text_transformer_blocks",), KANDINSKY_TEXT),
            BlockKind(("visual_transformer_blocks",), KANDINSKY_VIDEO),
        ),
        TokenLayout("video", patch=(1, 2, 2), axes="THWC", tile=8),
        tiled_if=("attention_type", "nabla"),
    ),
    Family(
        "Kandinsky 6",
        ("Kandinsky6Transformer3DModel",),
        (
            BlockKind(("video_text_transformer_blocks", "audio_text_transformer_blocks"), KANDINSKY_TEXT),
            BlockKind(("visual_transformer_blocks",), KANDINSKY6),
        ),
        CHANNELS_LAST,
    ),
    Family(
        "Kandinsky 6 SR",
        ("Kandinsky6SRTransformer3DModel",),
        (BlockKind(("visual_transformer_blocks",), KANDINSKY_VIDEO),),
        TokenLayout("video", patch=(1, 1, 1), axes="THWC", tile=8),
    ),
    Family(
        "MiniMax-H3",
        ("MiniMaxH3Transformer3DModel",),
        (BlockKind(("transformer_blocks",), JOINT),),
        TokenLayout("packed", patch=(1, 2, 2), axes="unknown"),
    ),
)
