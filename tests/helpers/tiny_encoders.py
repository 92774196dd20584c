"""Tiny random text and image encoders, of every class that the video pipelines of diffusers 0.42 name."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

WORDS = 99
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}
TEXT = {**WIDE, **HEADS, "vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 0}
CLIP = {**WIDE, "vocab_size": WORDS, "bos_token_id": 3, "eos_token_id": 1, "projection_dim": 32}
EYES = {**WIDE, "image_size": 16, "patch_size": 8, "projection_dim": 32}
QWEN_EYES = {"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def _t5(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _clip(name: str) -> Any:
    return getattr(transformers, name)(transformers.CLIPTextConfig(**CLIP))


def _clip_vision(name: str) -> Any:
    return getattr(transformers, name)(transformers.CLIPVisionConfig(**EYES))


def _llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**EYES), text_config=transformers.LlamaConfig(**TEXT), image_token_id=90
    )
    return transformers.LlavaForConditionalGeneration(config)


def _qwen(version: str) -> Any:
    eyes = {**QWEN_EYES, "intermediate_size": 64} if version == "2_5" else {**QWEN_EYES, "embed_dim": 32, "mlp_ratio": 2}
    name = f"Qwen{version}_VL" if version == "2_5" else "Qwen2VL"
    text = {key: value for key, value in TEXT.items() if key != "head_dim"} | {"rope_parameters": ROPE}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=eyes)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _qwen_text() -> Any:
    text = {key: value for key, value in TEXT.items() if key != "head_dim"} | {"rope_parameters": ROPE}
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

    return transformers.Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**text))


def _gemma3() -> Any:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**{key: EYES[key] for key in EYES if key != "projection_dim"}),
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _t5gemma2() -> Any:
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    eyes = {key: EYES[key] for key in EYES if key != "projection_dim"}
    text = {**TEXT, "dropout_rate": 0.0}
    return T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=eyes, mm_tokens_per_image=4))


def _gemma4() -> Any:
    text = {**TEXT, "bos_token_id": 2, "eos_token_id": 1}
    eyes, ears = {"mm_embed_dim": 32}, {}
    config = transformers.Gemma4UnifiedConfig(text_config=text, vision_config=eyes, audio_config=ears)
    return transformers.Gemma4UnifiedForConditionalGeneration(config)


ENCODERS: dict[str, Callable[[], Any]] = {
    "UMT5EncoderModel": lambda: _t5("UMT5"),
    "T5EncoderModel": lambda: _t5("T5"),
    "CLIPTextModel": lambda: _clip("CLIPTextModel"),
    "CLIPTextModelWithProjection": lambda: _clip("CLIPTextModelWithProjection"),
    "LlamaModel": lambda: transformers.LlamaModel(transformers.LlamaConfig(**TEXT)),
    "LlavaForConditionalGeneration": _llava,
    "Qwen2_5_VLForConditionalGeneration": lambda: _qwen("2_5"),
    "Qwen2_5_VLTextModel": _qwen_text,
    "Qwen2VLForConditionalGeneration": lambda: _qwen("2"),
    "BertModel": lambda: transformers.BertModel(transformers.BertConfig(**WIDE, vocab_size=WORDS)),
    "Gemma2Model": lambda: transformers.Gemma2Model(transformers.Gemma2Config(**TEXT)),
    "Gemma3ForConditionalGeneration": _gemma3,
    "T5Gemma2Encoder": _t5gemma2,
    "CLIPVisionModel": lambda: _clip_vision("CLIPVisionModel"),
    "CLIPVisionModelWithProjection": lambda: _clip_vision("CLIPVisionModelWithProjection"),
    "SiglipVisionModel": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**{key: EYES[key] for key in EYES if key != "projection_dim"})
    ),
}
if hasattr(transformers, "Gemma4UnifiedForConditionalGeneration"):  # newer than transformers 5.17
    ENCODERS["Gemma4UnifiedForConditionalGeneration"] = _gemma4


def build_encoder(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same random weights every time."""
    torch.manual_seed(3)
    return ENCODERS[name]().to(dtype).eval()


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    """What it makes of fixed tokens, or of a fixed picture."""
    if "Vision" in type(model).__name__:
        picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(model.dtype)
        return model(pixel_values=picture).last_hidden_state
    ids = torch.randint(4, 80, (2, 12), generator=torch.Generator().manual_seed(1))
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return found.hidden_states[-1]
