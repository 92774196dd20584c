"""Nodes that look into one run: what each module reads and gives, how often SageAttention was called, and exercises that go
before the first run of a process."""

import functools
import json

import comfy.ldm.modules.attention as attention
import comfy.model_management
import torch
from comfy_api.latest import io

from .schemas import ENDS, schema, sedialect

TRACED = {}  # what was seen, by run: [name, what, number] in the order of the calls
SAGE = {"self": 0, "cross": 0, "failed": 0}
EXERCISES = ("none", "convolution", "products", "attention")


def count_sage():
    """Count calls of SageAttention's function where ComfyUI has it; its wrapper falls back where the function fails."""
    plain = getattr(attention, "sageattn", None)
    if plain is None or hasattr(plain, "counted"):
        return

    def counted(q, k, v, **said):
        length = 2 if said["tensor_layout"] == "HND" else 1
        SAGE["self" if q.shape[length] == k.shape[length] else "cross"] += 1
        try:
            return plain(q, k, v, **said)
        except Exception:
            SAGE["failed"] += 1
            raise

    counted.counted = True
    attention.sageattn = counted


def number_of(tensor):
    """A number that changes with any bit of a tensor."""
    bits = tensor.detach().contiguous().view(torch.uint8).flatten()
    bits = bits[: bits.numel() // 2 * 2].view(torch.int16).long()
    return int((bits * (torch.arange(bits.numel(), device=bits.device) % 65521 + 1)).sum())


def settings_of_torch():
    """What of torch's settings could send a product or an attention another way."""
    cuda = torch.backends.cuda
    found = {
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32],
        "matmul": [cuda.matmul.allow_tf32, str(cuda.matmul.allow_bf16_reduced_precision_reduction)],
        "attention": [
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ],
        "attention order": [int(one) for one in torch._C._get_sdp_priority_order()],
    }
    if torch.cuda.is_available():
        found["blas"] = str(cuda.preferred_blas_library())
    return found


class TestTraced(io.ComfyNode):
    """Notes what every module of a MODEL reads and gives from now on, until `SeDialectTestTrace` asks."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Traced",
            inputs=[io.Model.Input("model"), io.String.Input("run")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, run):
        seen = TRACED[run] = {"settings": settings_of_torch(), "calls": [], "handles": []}

        def note(name, what, tensor):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                seen["calls"].append([name, what, number_of(tensor)])

        def before(name, module, args, kwargs):
            note(name, "input", args[0] if args else None)

        def after(name, module, args, kwargs, output):
            note(name, "output", output)

        for name, module in model.model.diffusion_model.named_modules():
            name = name or "network"
            handles = module.register_forward_pre_hook(functools.partial(before, name), with_kwargs=True)
            seen["handles"] += [handles, module.register_forward_hook(functools.partial(after, name), with_kwargs=True)]
        return io.NodeOutput(model)


class TestTrace(io.ComfyNode):
    """What was noted of a run."""

    @classmethod
    def define_schema(cls):
        return schema("Trace", **ENDS, inputs=[io.Latent.Input("samples"), io.String.Input("run")])

    @classmethod
    def execute(cls, samples, run):
        seen = TRACED.pop(run)
        for handle in seen.pop("handles"):
            handle.remove()
        return io.NodeOutput(ui={"text": (json.dumps({**seen, "latents": number_of(samples["samples"])}),)})


class TestExercise(io.ComfyNode):
    """Work of one kind in the shapes of a Wan, before anything else runs in a process."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Exercise",
            **ENDS,
            inputs=[
                io.Combo.Input("work", options=list(EXERCISES)),
                io.Int.Input("frames", min=1, max=1024),
                io.Int.Input("height", min=1, max=1024),
                io.Int.Input("width", min=1, max=1024),
                io.Int.Input("dim", min=1, max=16384),
                io.Int.Input("hidden", min=1, max=65536),
            ],
        )

    @classmethod
    def execute(cls, work, frames, height, width, dim, hidden):
        device = comfy.model_management.get_torch_device()
        made = functools.partial(torch.zeros, device=device, dtype=torch.bfloat16)
        tokens = frames * (height // 2) * (width // 2)
        if work == "convolution":
            weight = torch.zeros(dim, 16, 1, 2, 2, device=device)
            torch.nn.functional.conv3d(torch.zeros(1, 16, frames, height, width, device=device), weight, stride=(1, 2, 2))
        elif work == "products":
            for rows, inputs, outputs in (
                (tokens, dim, dim),
                (tokens, dim, hidden),
                (tokens, hidden, dim),
                (512, dim, dim),
                (1, dim, dim),
            ):
                torch.nn.functional.linear(made(1, rows, inputs), made(outputs, inputs), made(outputs))
        elif work == "attention":
            for keys in (tokens, 512):
                attention.optimized_attention(made(1, tokens, dim), made(1, keys, dim), made(1, keys, dim), heads=dim // 128)
        return io.NodeOutput(ui={"text": (work,)})


class TestSage(io.ComfyNode):
    """How often SageAttention was called since it was last asked: for self-attention, for cross-attention, and how often it
    failed."""

    @classmethod
    def define_schema(cls):
        return schema("Sage", **ENDS, inputs=[io.Latent.Input("samples")])

    @classmethod
    def execute(cls, samples):
        found = dict(SAGE)
        SAGE.update(dict.fromkeys(SAGE, 0))
        return io.NodeOutput(ui={"text": (json.dumps(found),)})


class TestPinned(io.ComfyNode):
    """What a MODEL pins of its weights when they are to be copied for each use, and lets go of again: sizes in bytes, by
    address, with ComfyUI's functions for both replaced by ones that note it."""

    @classmethod
    def define_schema(cls):
        return schema("Pinned", **ENDS, inputs=[io.Model.Input("model")])

    @classmethod
    def execute(cls, model):
        patcher = model.clone(disable_dynamic=True)
        layers = sedialect("nodes.comfy.linear").encoded_layers(patcher.model)
        keys = [f"{name}.weight" for name in layers]
        pinned, released, manager = {}, {}, comfy.model_management
        own = manager.pin_memory, manager.unpin_memory
        manager.pin_memory = lambda tensor: not pinned.update({tensor.data_ptr(): tensor.nbytes})
        manager.unpin_memory = lambda tensor: released.update({tensor.data_ptr(): tensor.nbytes})
        try:
            for key in keys:
                patcher.pin_weight_to_device(key)
            patcher.unpin_all_weights()
        finally:
            manager.pin_memory, manager.unpin_memory = own
        stored = [tensor for layer in layers.values() for tensor in layer.weight.state_dict("weight").values()]
        found = [pinned, released, {tensor.data_ptr(): tensor.nbytes for tensor in stored}]
        return io.NodeOutput(ui={"text": (json.dumps(found),)})


NODES = [TestTraced, TestTrace, TestExercise, TestSage, TestPinned]
