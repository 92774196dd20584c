"""Small models of the kinds that people run, with random weights, and the inputs that their own nodes would make for them.

They go through ComfyUI's own detection, conditioning and samplers; only encoders and VAEs are left out.
"""

import json
from types import SimpleNamespace

import comfy.nested_tensor
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.lightricks.av_model import LTXAVModel
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.wan.model import CameraWanModel, VaceWanModel, WanModel

from .networks import with_weights

FRAMES, HEIGHT, WIDTH = 3, 8, 8  # of the latents
TEXT = 64
WAN = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2, "text_dim": TEXT}
SAID = {"text_dim": TEXT, "num_heads": 2}  # what shapes do not tell, as converted files have it in their metadata
HUNYUAN = {
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "context_in_dim": TEXT,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 0,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 1, 1],
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": True,
    "meanflow": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}
LTX = {
    "cross_attention_dim": 128,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "caption_channels": TEXT,
    "num_layers": 2,
}
LTXAV = {
    **LTX,
    "audio_cross_attention_dim": 64,
    "audio_attention_head_dim": 32,
    "audio_num_attention_heads": 2,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 32,
}


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image_latent(seed, channels=16):
    """As nodes for a first image make it: the image's latent, then a grey video's, and a mask that says which is which."""
    latent, mask = noise(seed, 1, channels, FRAMES, HEIGHT, WIDTH), torch.ones(1, 1, FRAMES, HEIGHT, WIDTH)
    mask[:, :, 0] = 0
    return {"concat_latent_image": latent, "concat_mask": mask}


def seen(seed, tokens=257, width=1280):
    """What an image encoder gives."""
    states = noise(seed + 100, 1, tokens, width)
    return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=states, last_hidden_state=states)}


def control(seed):
    """A control video for VACE, and where it holds."""
    frames, mask = noise(seed, 1, 32, FRAMES, HEIGHT, WIDTH), torch.ones(1, 64, FRAMES, HEIGHT, WIDTH)
    return {"vace_frames": [frames], "vace_mask": [mask], "vace_strength": [1.0]}


def first_frame_kept(seed, channels, size=(HEIGHT, WIDTH)):
    """A latent whose first frame is an image's and stays as it is."""
    mask = torch.ones(1, 1, FRAMES, *size)
    mask[:, :, 0] = 0
    return {"samples": noise(seed, 1, channels, FRAMES, *size), "noise_mask": mask}


def empty(channels, size=(HEIGHT, WIDTH)):
    return {"samples": torch.zeros(1, channels, FRAMES, *size)}


def with_sound(seed):
    """Video and audio side by side, as LTX-2 samples them; the first frame is an image's."""
    video = first_frame_kept(seed, 128, (4, 4))
    audio = torch.zeros(1, 8, 9, 16)
    nested = comfy.nested_tensor.NestedTensor
    mask = nested((video["noise_mask"].expand_as(video["samples"][:, :1]), torch.ones(1, 1, 9, 16)))
    return {"samples": nested((video["samples"], audio)), "noise_mask": mask}


def byt5(seed):
    return {"conditioning_byt5small": noise(seed + 200, 1, 5, 1472), "pooled_output": noise(seed, 1, 768)}


MASKED = {"attention_mask": torch.ones(1, 7, dtype=torch.long)}
# Name: class, how it is built, what its metadata say, what is said with a prompt, the latent that is sampled.
VARIANTS = {
    "Wan 2.1, image to video": (
        *(WanModel, {**WAN, "model_type": "i2v", "in_dim": 36}, SAID),
        *(lambda seed: {**image_latent(seed), **seen(seed)}, lambda seed: empty(16)),
    ),
    "Wan 2.1, first and last frame": (
        *(WanModel, {**WAN, "model_type": "i2v", "in_dim": 36, "flf_pos_embed_token_number": 514}, SAID),
        *(lambda seed: {**image_latent(seed), **seen(seed, tokens=514)}, lambda seed: empty(16)),
    ),
    "Wan 2.1, VACE": (
        *(VaceWanModel, {**WAN, "vace_layers": 1, "vace_in_dim": 96}, SAID),
        *(control, lambda seed: empty(16)),
    ),
    "Wan 2.2 14B, image to video": (
        *(WanModel, {**WAN, "model_type": "t2v", "in_dim": 36}, SAID),
        *(image_latent, lambda seed: empty(16)),
    ),
    "Wan 2.2 14B, first and last frame": (
        *(WanModel, {**WAN, "model_type": "t2v", "in_dim": 36}, SAID),
        *(lambda seed: {**image_latent(seed), "concat_mask": ends()}, lambda seed: empty(16)),
    ),
    "Wan 2.2 5B, image to video": (
        *(WanModel, {**WAN, "model_type": "t2v", "in_dim": 48, "out_dim": 48}, SAID),
        *(lambda seed: {}, lambda seed: first_frame_kept(seed, 48)),
    ),
    "Wan 2.2, camera control": (
        *(CameraWanModel, {**WAN, "model_type": "camera_2.2", "in_dim": 36, "in_dim_control_adapter": 24}, SAID),
        *(
            lambda seed: {**image_latent(seed), "camera_conditions": noise(seed, 1, 24, FRAMES, 64, 64)},
            lambda seed: empty(16),
        ),
    ),
    "HunyuanVideo 1.5, image to video": (
        *(HunyuanVideo, HUNYUAN, {}),
        *(lambda seed: {**image_latent(seed, 32), **seen(seed, 729, 1152), **byt5(seed)}, lambda seed: empty(32)),
    ),
    "LTX-Video, image to video": (
        *(LTXVModel, LTX, LTX),
        *(lambda seed: MASKED, lambda seed: first_frame_kept(seed, 128, (4, 4))),
    ),
    "LTX-2, image to video with sound": (
        *(LTXAVModel, LTXAV, LTXAV),
        *(lambda seed: MASKED, with_sound),
    ),
}


def ends():
    """The mask of a first and a last frame."""
    mask = torch.ones(1, 1, FRAMES, HEIGHT, WIDTH)
    mask[:, :, [0, -1]] = 0
    return mask


def build(kind, built, said, disable_dynamic=False):
    """The MODEL of a network with random weights, detected by ComfyUI from its tensors; `said` is what its metadata say."""
    torch.manual_seed(0)
    common = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    with with_weights():
        network = kind(**({"image_model": "hunyuan_video"} if kind is HunyuanVideo else {}), **built, **common)
    state = {}
    for key, tensor in network.state_dict().items():
        spread = max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 50.0
        around = 1.0 if tensor.ndim == 1 and key.endswith("weight") else 0.0
        state[key] = (torch.randn(tensor.shape) / spread + around).to(torch.bfloat16)
    metadata = {"config": json.dumps({"transformer": said})}
    patcher = comfy.sd.load_diffusion_model_state_dict(state, metadata=metadata, disable_dynamic=disable_dynamic)
    assert isinstance(patcher.model.diffusion_model, kind), type(patcher.model.diffusion_model)
    return patcher


def load(name, disable_dynamic=False):
    """The MODEL of a variant."""
    kind, built, said, *_ = VARIANTS[name]
    patcher = build(kind, built, said, disable_dynamic)
    patcher.cached_patcher_init = (load, (name,))
    return patcher


def inputs(name, seed):
    """Positive and negative conditioning, and the latent."""
    *_, extra, latent = VARIANTS[name]
    text = 2 * TEXT if "LTX-2" in name else TEXT  # for the video, and for the sound
    tokens = 512 if name.startswith("Wan") else 7
    prompts = [[noise(seed + number + 300, 1, tokens, text), dict(extra(seed))] for number in range(2)]
    return [prompts[0]], [prompts[1]], latent(seed)
