"""What stands in for the files that ComfyUI's own template workflows name: small models with random weights of the classes
that the files hold, and in place of encoders and VAEs what gives tensors of the right shapes."""

import math
from types import SimpleNamespace

import comfy.sd
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.lightricks.av_model import LTXAVModel
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.wan.model import CameraWanModel, HumoWanModel, VaceWanModel, WanModel, WanModel_S2V
from comfy.ldm.wan.model_animate2 import WanAnimate2Model

from .variants import HUNYUAN, LTX, LTXAV, SAID, TEXT, WAN, build, noise

WAN_VAE, WAN22_VAE, LTX_VAE = (
    (16, 8, 4),
    (48, 16, 4),
    (128, 32, 8),
)  # channels, and how many pixels and frames a latent is of
LAYERED = {**SAID, "audio_inject_layers": [0, 1]}
FIRST_HUNYUAN = {
    **HUNYUAN,
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "depth_single_blocks": 2,
    "patch_size": [1, 2, 2],
    "guidance_embed": True,
    "byt5": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
KANDINSKY = {
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "model_dim": 128,
    "ff_dim": 256,
    "time_dim": 64,
    "visual_embed_dim": 132,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
}


def wan(kind, channels, out=16, **more):
    return {**WAN, "model_type": kind, "in_dim": channels, "out_dim": out, **more}


# Name: class, how it is built, what its metadata say, VAE, width of the text.
MODELS = {
    "Wan t2v": (WanModel, wan("t2v", 16), SAID, WAN_VAE, TEXT),
    "Wan 2.1 i2v": (WanModel, wan("i2v", 36), SAID, WAN_VAE, TEXT),
    "Wan 2.1 flf2v": (WanModel, wan("i2v", 36, flf_pos_embed_token_number=514), SAID, WAN_VAE, TEXT),
    "Wan 2.1 control": (WanModel, wan("i2v", 48), SAID, WAN_VAE, TEXT),
    "Wan 2.1 camera": (CameraWanModel, wan("camera", 32, in_dim_control_adapter=24), SAID, WAN_VAE, TEXT),
    "Wan 2.1 VACE": (VaceWanModel, wan("vace", 16, vace_layers=1, vace_in_dim=96), SAID, WAN_VAE, TEXT),
    "Wan 2.2 i2v": (WanModel, wan("t2v", 36), SAID, WAN_VAE, TEXT),
    "Wan 2.2 control": (WanModel, wan("t2v", 52, in_dim_ref_conv=16), SAID, WAN_VAE, TEXT),
    "Wan 2.2 camera": (CameraWanModel, wan("camera_2.2", 36, in_dim_control_adapter=24), SAID, WAN_VAE, TEXT),
    "Wan 2.2 S2V": (WanModel_S2V, wan("s2v", 16, audio_inject_layers=[0, 1]), LAYERED, WAN_VAE, TEXT),
    "Wan 2.2 5B": (WanModel, wan("t2v", 48, out=48), SAID, WAN22_VAE, TEXT),
    "Wan 2.2 5B inpaint": (WanModel, wan("t2v", 100, out=48), SAID, WAN22_VAE, TEXT),
    "Wan 2.2 5B control": (WanModel, wan("t2v", 148, out=48, in_dim_ref_conv=48), SAID, WAN22_VAE, TEXT),
    "Wan HuMo": (HumoWanModel, wan("humo", 36), SAID, WAN_VAE, TEXT),
    "Wan Animate 2": (WanAnimate2Model, wan("animate2", 36), {**SAID, "model_type": "animate2"}, WAN_VAE, TEXT),
    "HunyuanVideo": (HunyuanVideo, FIRST_HUNYUAN, {}, WAN_VAE, TEXT),
    "HunyuanVideo 1.5": (HunyuanVideo, HUNYUAN, {}, (32, 16, 4), TEXT),
    "LTX-Video": (LTXVModel, LTX, LTX, LTX_VAE, TEXT),
    "LTX-2": (LTXAVModel, LTXAV, LTXAV, LTX_VAE, 2 * TEXT),
    "Kandinsky 5": (Kandinsky5, KANDINSKY, {}, WAN_VAE, 3584),
}


def load(name, disable_dynamic=False):
    """The MODEL, detected by ComfyUI from its tensors."""
    kind, built, said, *_ = MODELS[name]
    patcher = build(kind, built, said, disable_dynamic)
    patcher.cached_patcher_init = (load, (name,))
    return patcher


class Clip:
    """Embeddings that a text is the seed of, with all that a family of models wants beside them."""

    def __init__(self, name):
        self.name, self.width, self.patcher = name, MODELS[name][4], None

    def tokenize(self, text, **said):
        return {"text": text}

    def encode_from_tokens_scheduled(self, tokens, unprojected=False, add_dict=None, show_pbar=True):
        seed = sum(ord(sign) * (place + 1) for place, sign in enumerate(tokens["text"]))
        count = 512 if self.name.startswith("Wan") else 7
        said = {"pooled_output": noise(seed, 1, 768)}
        if "LTX" in self.name:
            said["attention_mask"] = torch.ones(1, count, dtype=torch.long)
        if "1.5" in self.name:
            said["conditioning_byt5small"] = noise(seed + 1, 1, 5, 1472)
        return [[noise(seed + 2, 1, count, self.width), {**said, **(add_dict or {})}]]


class Vae:
    """Means over the pixels of a latent, and back: shapes are those of a video VAE."""

    def __init__(self, channels, pixels, frames):
        self.latent_channels, self.latent_dim, self.output_channels = channels, 3, 3
        self.pixels, self.frames = pixels, frames
        self.downscale_ratio = (lambda count: max(1, math.ceil((count + frames - 1) / frames)), pixels, pixels)
        self.upscale_ratio = (lambda count: count * frames - frames + 1, pixels, pixels)
        self.downscale_index_formula = self.upscale_index_formula = (frames, pixels, pixels)
        self.mixed = noise(channels, channels, 3)

    def encode(self, images):
        video = images if images.ndim == 5 else images[None]
        count, height, width = video.shape[1:4]
        size = ((count - 1) // self.frames + 1, height // self.pixels, width // self.pixels)
        means = torch.nn.functional.adaptive_avg_pool3d(video[..., :3].movedim(-1, 1).float(), size)
        return torch.einsum("ck,bkthw->bcthw", self.mixed, means)

    def decode(self, latent, *_, **more):
        colours = torch.einsum("ck,bcthw->bkthw", self.mixed, latent.float().cpu()).sigmoid()
        size = (self.upscale_ratio[0](latent.shape[2]), latent.shape[3] * self.pixels, latent.shape[4] * self.pixels)
        return torch.nn.functional.interpolate(colours, size).movedim(1, -1)

    encode_tiled, decode_tiled = encode, decode

    def spacial_compression_encode(self):
        return self.pixels

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self):
        return self.frames


class AudioVae:
    """Latents of sound in the shapes of LTX-2's."""

    latent_channels, audio_sample_rate = 8, 24000
    first_stage_model = SimpleNamespace(
        latent_frequency_bins=16,
        output_sample_rate=24000,
        num_of_latents_from_frames=lambda frames, rate: max(1, round(frames / rate * 25)),
    )

    def encode(self, waveform, *_, **more):
        return noise(3, 1, self.latent_channels, max(1, waveform.shape[1] // 960), 16)

    def decode(self, latent, *_, **more):
        return latent.float().mean(dim=(1, 3)).repeat_interleave(960, dim=1)[..., None].expand(-1, -1, 2).tanh()


class Seen:
    """An image encoder: CLIP's for Wan, SigLIP's for HunyuanVideo 1.5."""

    def __init__(self, name):
        self.shape = (1, 729, 1152) if "1.5" in name else (1, 257, 1280)

    def encode_image(self, image, **more):
        states = noise(int(image.sum()), *self.shape)
        return SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states, image_embeds=states[:, 0])


class Heard:
    """An encoder of sound: Whisper's states for HuMo, wav2vec's for S2V."""

    def __init__(self, name):
        self.layers, self.width = (33, 1280) if "HuMo" in name else (25, 1024)

    def encode_audio(self, waveform, rate):
        states = [noise(layer, 1, 64, self.width) for layer in range(self.layers)]
        return {"encoded_audio": states[-1], "encoded_audio_all_layers": states, "audio_samples": 32 * 640}


def everything(name):
    """MODEL, CLIP, VAE, CLIP_VISION, AUDIO_ENCODER and the VAE for sound."""
    return load(name), Clip(name), Vae(*MODELS[name][3]), Seen(name), Heard(name), AudioVae()


def lora_for(patcher, rank=2):
    """A LoRA for the large linears of a MODEL's blocks, as its file would hold it."""
    found = {}
    for key, module in patcher.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear) and "blocks" in key and min(module.in_features, module.out_features) >= 64:
            layer = f"diffusion_model.{key}"
            found[f"{layer}.lora_down.weight"] = noise(1, rank, module.in_features) / module.in_features**0.5
            found[f"{layer}.lora_up.weight"] = noise(2, module.out_features, rank) * 0.1
    return found


def with_lora(patcher, strength):
    """The MODEL with that LoRA, by ComfyUI's own code."""
    return comfy.sd.load_lora_for_models(patcher, None, lora_for(patcher), strength, 0.0)[0]
