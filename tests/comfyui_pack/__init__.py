"""Nodes for the tests alone, in place of text encoder, VAE and eyes: they make inputs, and look into what comes out."""

import json
import os
import sys
import time
from pathlib import Path

import comfy.model_management
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import load_file, save_file

CATEGORY = "sedialect tests"


def sedialect(name):
    """A module of the pack under test, whatever name ComfyUI gave it."""
    return next(module for key, module in sys.modules.items() if key.endswith(f"sedialect.{name}") and "custom_nodes" in key)


class TestConditioning(io.ComfyNode):
    """Embeddings from a file, or random ones that a text is the seed of."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SeDialectTestConditioning",
            category=CATEGORY,
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
            return io.NodeOutput([[load_file(file)[text], {}]])
        random = torch.Generator().manual_seed(sum(ord(sign) * (place + 1) for place, sign in enumerate(text)))
        more = {}
        if pooled:
            more["pooled_output"] = torch.randn(1, pooled, generator=random)
        if mask:
            more["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)
        return io.NodeOutput([[torch.randn(1, tokens, dim, generator=random), more]])


class TestDecode(io.ComfyNode):
    """Latents to frames through a VAE of diffusers."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SeDialectTestDecode",
            category=CATEGORY,
            inputs=[io.Latent.Input("samples"), io.String.Input("folder")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples, folder):
        from diffusers import AutoencoderKLWan

        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
        video = vae.decode(samples["samples"].float(), return_dict=False)[0]
        return io.NodeOutput((video[0] / 2 + 0.5).clamp(0, 1).movedim(0, -1).contiguous())


class TestLatents(io.ComfyNode):
    """Writes latents to a file, so that a test can compare them exactly."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SeDialectTestLatents",
            category=CATEGORY,
            is_output_node=True,
            inputs=[io.Latent.Input("samples"), io.String.Input("file")],
            outputs=[],
        )

    @classmethod
    def execute(cls, samples, file):
        save_file({"samples": samples["samples"].contiguous()}, file)
        return io.NodeOutput()


class TestLayers(io.ComfyNode):
    """Writes, for every encoded layer, what it stores, and what it answers to a fixed input."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SeDialectTestLayers",
            category=CATEGORY,
            is_output_node=True,
            not_idempotent=True,
            inputs=[io.Model.Input("model"), io.String.Input("file"), io.Int.Input("budget", default=0, min=0, max=1 << 30)],
            outputs=[],
        )

    @classmethod
    def execute(cls, model, file, budget):
        """`budget` is how many bytes of the model may be loaded: fewer than it has puts layers into low-VRAM mode."""
        comfy.model_management.unload_model_and_clones(model)
        model.partially_load(model.load_device, budget or 10**12)
        kind = sedialect("nodes.comfy_linear").EncodedLinear
        found = {}
        for name, layer in model.model.diffusion_model.named_modules():
            if isinstance(layer, kind) and layer.encoded:
                x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(layer.in_features))
                found[f"{name}|y"] = layer(x).contiguous()
                for suffix, tensor in layer.weight.state_dict("weight").items():
                    found[f"{name}|{suffix}"] = tensor.contiguous()
        model.detach()
        save_file(found, file)
        return io.NodeOutput()


class TestMemory(io.ComfyNode):
    """Peak resident memory of the server since the last such node, in bytes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SeDialectTestMemory",
            category=CATEGORY,
            is_output_node=True,
            not_idempotent=True,
            inputs=[io.Model.Input("model", optional=True)],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, model=None):
        status = Path("/proc/self/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmHWM", "RssAnon")))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        text = json.dumps({key: int(value.split()[0]) * 1024 for key, value in fields.items()})
        return io.NodeOutput(ui={"text": (text,)})


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        return [TestConditioning, TestDecode, TestLatents, TestLayers, TestMemory]


async def comfy_entrypoint():
    assert os.environ.get("SEDIALECT_TESTS"), "nodes for tests only"
    return TestExtension()
