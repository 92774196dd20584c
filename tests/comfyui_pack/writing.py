"""Nodes that workflows end with: they write what came out, for a test to read."""

import json
import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from safetensors.torch import save_file

from .schemas import ENDS, schema, sedialect


class TestDecode(io.ComfyNode):
    """Latents to frames through the VAE of the bundled model, by diffusers."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Decode",
            inputs=[io.Latent.Input("samples")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples):
        from diffusers import AutoencoderKLWan

        folder = sedialect("sedialect_core.demo").MODEL / "vae"
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
        video = vae.decode(samples["samples"].float(), return_dict=False)[0]
        return io.NodeOutput((video[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1).contiguous())


class TestLatents(io.ComfyNode):
    """Writes latents to a file, so that a test can compare them exactly."""

    @classmethod
    def define_schema(cls):
        return schema("Latents", is_output_node=True, inputs=[io.Latent.Input("samples"), io.String.Input("file")])

    @classmethod
    def execute(cls, samples, file):
        found = samples["samples"]
        if found.is_nested:  # video and sound, which are compared as one
            found = torch.cat([part.flatten() for part in found.unbind()])
        save_file({"samples": found.cpu().contiguous()}, file)
        return io.NodeOutput()


class TestLayers(io.ComfyNode):
    """Writes, for every encoded layer, what it stores, and what it answers to a fixed input."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Layers",
            **ENDS,
            inputs=[io.Model.Input("model"), io.String.Input("file"), io.Int.Input("budget", default=0, min=0, max=1 << 30)],
        )

    @classmethod
    def execute(cls, model, file, budget):
        """`budget` is how many bytes of the model may be loaded: fewer than it has puts layers into low-VRAM mode."""
        comfy.model_management.unload_model_and_clones(model)
        model.partially_load(model.load_device, budget or 10**12)
        found = {}
        for name, layer in sedialect("nodes.comfy.linear").encoded_layers(model.model.diffusion_model).items():
            x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(layer.in_features))
            guide, layer.guide = layer.guide, None  # there is no forward to tell it anything
            found[f"{name}|y"] = layer(x.to(model.load_device)).cpu().contiguous()
            layer.guide = guide
            for suffix, tensor in layer.weight.state_dict("weight").items():
                found[f"{name}|{suffix}"] = tensor.cpu().contiguous()
        model.detach()
        save_file(found, file)
        return io.NodeOutput()


class TestSavePartlyLoaded(io.ComfyNode):
    """What ComfyUI's *Save Model* does, with no layer loaded whole: as dynamic VRAM or too little memory leave them."""

    @classmethod
    def define_schema(cls):
        return schema("SavePartlyLoaded", **ENDS, inputs=[io.Model.Input("model"), io.String.Input("file")])

    @classmethod
    def execute(cls, model, file):
        comfy.model_management.unload_model_and_clones(model)
        model.partially_load(model.load_device, 1)
        comfy.utils.save_torch_file(model.state_dict_for_saving(), file)
        model.detach()
        return io.NodeOutput()


class TestMemory(io.ComfyNode):
    """Resident memory of the server in bytes: now, and its peak since the last such node."""

    @classmethod
    def define_schema(cls):
        return schema("Memory", **ENDS, inputs=[io.Model.Input("model", optional=True)])

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, model=None):
        status = Path("/proc/self/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS")))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        found = {key: int(value.split()[0]) * 1024 for key, value in fields.items()}
        kept = sedialect("nodes.comfy.encoding").kept_bytes()
        text = json.dumps({**found, "kept": kept})
        return io.NodeOutput(ui={"text": (text,)})


NODES = (TestDecode, TestLatents, TestLayers, TestSavePartlyLoaded, TestMemory)
