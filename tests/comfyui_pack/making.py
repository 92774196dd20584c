"""Nodes in place of loaders and text encoders: they make models, conditionings and latents."""

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.multigpu
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import load_file

from . import shipped, variants
from .schemas import schema


class TestConditioning(io.ComfyNode):
    """Embeddings from a file in the base folder, or random ones that a text is the seed of."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Conditioning",
            inputs=[
                io.String.Input("text", default=""),
                io.String.Input("file", default=""),
                io.Int.Input("tokens", default=16, min=1, max=4096),
                io.Int.Input("dim", default=4096, min=1, max=16384),
                io.Int.Input("pooled", default=0, min=0, max=16384),
                io.Boolean.Input("mask", default=False),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text, file, tokens, dim, pooled, mask):
        if file:
            return io.NodeOutput([[load_file(Path(folder_paths.base_path) / file)[text], {}]])
        random = torch.Generator().manual_seed(sum(ord(sign) * (place + 1) for place, sign in enumerate(text)))
        more = {}
        if pooled:
            more["pooled_output"] = torch.randn(1, pooled, generator=random)
        if mask:
            more["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        return io.NodeOutput([[torch.randn(1, tokens, dim, generator=random), more]])


class TestForeign(io.ComfyNode):
    """MODELs that cannot be quantized: of an image model, and one whose weights are marked as GGUF's loader marks them."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Foreign",
            inputs=[io.Combo.Input("of", options=["image", "gguf"]), io.String.Input("file")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, of, file):
        if of == "gguf":
            patcher = comfy.sd.load_diffusion_model(folder_paths.get_full_path_or_raise("diffusion_models", file))
            patcher.model.diffusion_model.blocks[0].ffn[0].weight.tensor_type = 2
            return io.NodeOutput(patcher)
        flux = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64}
        flux |= {"context_in_dim": 64, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "theta": 10000}
        flux |= {"depth_single_blocks": 1, "axes_dim": [16, 24, 24], "qkv_bias": True, "guidance_embed": False}
        flux["txt_ids_dims"] = []
        config = comfy.supported_models.Flux({**flux, "dtype": torch.float32})
        device = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(config.get_model({}, "", device=device), device, device))


class TestVariant(io.ComfyNode):
    """One of the small models of `variants`, and what its own nodes would give it; `seed` is that of image and prompt."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Variant",
            inputs=[io.Combo.Input("name", options=list(variants.VARIANTS)), io.Int.Input("seed", default=1)],
            outputs=[io.Model.Output(), io.Conditioning.Output(), io.Conditioning.Output(), io.Latent.Output()],
        )

    @classmethod
    def execute(cls, name, seed):
        return io.NodeOutput(variants.load(name), *variants.inputs(name, seed))


class TestShipped(io.ComfyNode):
    """What stands in for the files of a template workflow."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Shipped",
            inputs=[io.Combo.Input("name", options=list(shipped.MODELS))],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.ClipVision.Output(),
                io.AudioEncoder.Output(),
                io.Vae.Output(),
            ],
        )

    @classmethod
    def execute(cls, name):
        return io.NodeOutput(*shipped.everything(name))


class TestLora(io.ComfyNode):
    """A LoRA file of a template workflow: it changes all linears of the blocks; a CLIP passes through."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Lora",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip", optional=True),
                io.Float.Input("strength_model", default=1.0, min=-100.0, max=100.0),
            ],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(cls, model, strength_model, clip=None):
        return io.NodeOutput(shipped.with_lora(model, strength_model), clip)


class TestUpsample(io.ComfyNode):
    """In place of LTX's network that doubles a latent video."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Upsample",
            inputs=[io.Latent.Input("samples")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples):
        return io.NodeOutput({"samples": torch.nn.functional.interpolate(samples["samples"], scale_factor=(1, 2, 2))})


class TestSplit(io.ComfyNode):
    """MultiGPU CFG Split on a CPU, which is given a second name: two clones run in two threads, as on two GPUs."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Split",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        devices = [model.load_device, torch.device("cpu", 0)]
        assert model.load_device.type == "cpu" and devices[0] != devices[1]
        listed = comfy.model_management.get_all_torch_devices
        comfy.model_management.get_all_torch_devices = lambda exclude_current=False: devices
        try:
            made = comfy.multigpu.create_multigpu_deepclones(model, 2)
        finally:
            comfy.model_management.get_all_torch_devices = listed
        assert len(made.get_additional_models_with_key("multigpu")) == 1
        return io.NodeOutput(made)


NODES = (TestConditioning, TestForeign, TestVariant, TestShipped, TestLora, TestUpsample, TestSplit)
