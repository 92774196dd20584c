"""Tiny random video pipelines of five families. Nothing is downloaded: tokenizers are built in memory.

Every linear inside the blocks has a multiple of 32 inputs, so that either block size reaches them all.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY = ["<pad>", "<eos>", "<unk>", "<bos>", *(chr(code) for code in range(32, 127))]
WIDTH = 32
SIZE = {"height": 32, "width": 48}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Characters as words: any prompt gets ids."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<bos>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **special)


def text_encoder() -> transformers.T5EncoderModel:
    config = transformers.T5Config(vocab_size=len(VOCABULARY), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def texts() -> dict[str, Any]:
    return {"text_encoder": text_encoder(), "tokenizer": tokenizer()}


def wan(experts: int = 1) -> tuple[Any, dict[str, Any]]:
    """`experts=2` is Wan 2.2: `transformer` for the noisy steps, `transformer_2` for the others."""

    def transformer() -> diffusers.WanTransformer3DModel:
        return diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, text_dim=WIDTH, freq_dim=64, ffn_dim=96, num_layers=2
        )

    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
    second = {"transformer_2": transformer(), "boundary_ratio": 0.5} if experts == 2 else {"transformer_2": None}
    pipe = diffusers.WanPipeline(
        transformer=transformer(),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        **second,
        **texts(),
    )
    return pipe, {**SIZE, "num_frames": 5, "guidance_scale": 4.0}


def cogvideox() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=32,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=24,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 16, 16), latent_channels=8, layers_per_block=1, norm_num_groups=4
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = diffusers.CogVideoXPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **texts())
    return pipe, {**SIZE, "num_frames": 9, "guidance_scale": 4.0, "max_sequence_length": 24}


def hunyuan() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=8, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4
    )
    sizes = {"vocab_size": len(VOCABULARY), "num_attention_heads": 2}
    llama = transformers.LlamaConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, pad_token_id=0, **sizes)
    clip = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, bos_token_id=3, eos_token_id=1, **sizes
    )
    pipe = diffusers.HunyuanVideoPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=transformers.LlamaModel(llama).eval(),
        tokenizer=tokenizer(),
        text_encoder_2=transformers.CLIPTextModel(clip).eval(),
        tokenizer_2=tokenizer(),
    )
    template = {"template": "{}", "crop_start": 0}
    return pipe, {**SIZE, "num_frames": 5, "max_sequence_length": 24, "prompt_template": template}


def ltx() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=16,
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 16, 16),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.LTXPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **texts())
    return pipe, {"height": 64, "width": 96, "num_frames": 9, "guidance_scale": 4.0, "max_sequence_length": 24}


def mochi() -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=32,
        text_embed_dim=WIDTH,
        time_embed_dim=32,
        max_sequence_length=24,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 64),
        decoder_block_out_channels=(32, 32, 32, 64),
        layers_per_block=(1,) * 5,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.MochiPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **texts())
    return pipe, {**SIZE, "num_frames": 7, "guidance_scale": 4.0, "max_sequence_length": 24}


PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "wan": wan,
    "wan-2.2": lambda: wan(experts=2),
    "cogvideox": cogvideox,
    "hunyuan": hunyuan,
    "ltx": ltx,
    "mochi": mochi,
}


def build(family: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline with the same random weights every time, and the arguments of a small call."""
    torch.manual_seed(7)
    pipe, arguments = PIPELINES[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, arguments


def generate(pipe: Any, arguments: dict[str, Any], steps: int = 2) -> torch.Tensor:
    """Frames of a fixed prompt and noise."""
    noise = torch.Generator("cpu").manual_seed(11)
    video = pipe(prompt="a red ball", num_inference_steps=steps, generator=noise, output_type="pt", **arguments)
    return torch.as_tensor(video.frames)
