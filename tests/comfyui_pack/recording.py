"""Nodes that note what the layers of a quantized MODEL read, are told and answer."""

import functools
import json
import time

import torch
from comfy_api.latest import io
from safetensors.torch import save_file

from .schemas import ENDS, schema, sedialect

RECORDED = {}  # what the layers of a watched model read, were told and answered, forward by forward


class Recorder:
    """A guide that notes what another one says."""

    def __init__(self, name, guide):
        self.name, self.guide = name, guide

    def __call__(self, x, *transform):
        guidance = self.guide(x, *transform)
        for part, tensor in guidance._asdict().items():
            if tensor is not None:
                note(f"{self.name}|{part}", tensor)
        return guidance


def note(key, tensor):
    forward = RECORDED["forwards"] - 1
    RECORDED[f"{forward}|{key}"] = tensor.detach().clone().contiguous()


class TestOverride(io.ComfyNode):
    """Another node's attention override: counts its calls, and changes nothing."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Override",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        def override(function, *args, **kwargs):
            RECORDED["calls"] += 1
            return function(*args, **kwargs)

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return io.NodeOutput(model)


def note_answer(name, module, args, y):
    note(f"{name}|x", args[0])
    note(f"{name}|y", y)


class TestRecord(io.ComfyNode):
    """Notes what every guided layer reads, is told and answers from now on, until `SeDialectTestRecorded`."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Record",
            not_idempotent=True,
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, model):
        RECORDED.clear()
        RECORDED["forwards"], RECORDED["handles"], RECORDED["calls"] = 0, [], 0
        network = model.model.diffusion_model

        def begin(module, args, kwargs):
            RECORDED["forwards"] += 1
            for name, tensor in (("x", args[0]), ("t", args[1]), ("context", kwargs["context"])):
                note(name, tensor)
            options = kwargs["transformer_options"]
            note("sigma", options["sigmas"])
            note("cond_or_uncond", torch.tensor(options["cond_or_uncond"]))

        RECORDED["handles"].append(network.register_forward_pre_hook(begin, with_kwargs=True))
        for name, layer in network.named_modules():
            if getattr(layer, "guide", None) is None:
                continue
            RECORDED["handles"].append(layer.register_forward_hook(functools.partial(note_answer, name)))
            layer.guide = Recorder(name, layer.guide)
        return io.NodeOutput(model)


class TestRecorded(io.ComfyNode):
    """Writes what was noted, and the picture of saliency."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Recorded", **ENDS, inputs=[io.Model.Input("model"), io.Latent.Input("samples"), io.String.Input("file")]
        )

    @classmethod
    def execute(cls, model, samples, file):
        for handle in RECORDED.pop("handles"):
            handle.remove()
        for layer in model.model.diffusion_model.modules():
            if isinstance(getattr(layer, "guide", None), Recorder):
                layer.guide = layer.guide.guide
        forwards, calls = RECORDED.pop("forwards"), RECORDED.pop("calls")
        tokens = sedialect("nodes.comfy.guides").tokens_of(model.model)
        if tokens.map is not None:
            RECORDED["map"] = tokens.map.values
        save_file({**RECORDED, "forwards": torch.tensor(forwards), "samples": samples["samples"].contiguous()}, file)
        said = {
            "map": tokens.map.says if tokens.map else "",
            "unseen": tokens.unseen,
            "rooms": len(tokens.rooms),
            "overridden": calls,
        }
        return io.NodeOutput(ui={"text": (json.dumps(said),)})


NODES = (TestOverride, TestRecord, TestRecorded)
