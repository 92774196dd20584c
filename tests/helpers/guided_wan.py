"""A small Wan as ComfyUI holds one, whose layers keep what they are told in each forward."""

from types import SimpleNamespace

import torch
from torch import nn

from sedialect import Formatbook, SeDialectConfig
from sedialect.kernels.guidance import UNGUIDED
from sedialect.nodes.comfy import layout
from sedialect.nodes.comfy.guides import attach, run_guided, tokens_of
from sedialect.sedialect_core.plan.rules import make_plan

layout.register()
SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)
HEADS, WIDTH, TEXT = 2, 64, 5
BOOK = Formatbook.builtin()


class Attention(nn.Module):
    """As ComfyUI writes it: attention is a function that `transformer_options` may replace."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, context, options):
        q, k, v = self.q(x), self.k(context), self.v(context)
        override = options.get("optimized_attention_override")
        if override is not None:
            return self.o(override(plain_attention, q, k, v, HEADS, transformer_options=options))
        return self.o(plain_attention(q, k, v, HEADS))


def plain_attention(q, k, v, heads, **_):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x, context, options):
        x = x + self.self_attn(x, x, options)
        x = x + self.cross_attn(x, context, options)
        return x + self.ffn(x)


class WanModel(nn.Module):
    """As much of Wan as its tokens need."""

    patch_size = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.skips, self.references = False, 0

    def forward(self, x, context, options):
        if self.skips:
            return x
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        x = torch.cat([x, x[:, : self.references]], dim=1)
        for block in self.blocks:
            x = block(x, context, options)
        return x


class Guided(nn.Module):
    """A layer with an encoded weight, as `nodes/comfy/linear.py` makes ComfyUI's."""

    guide = None

    def __init__(self, linear: nn.Linear, block_size: int):
        super().__init__()
        settings = {"book": BOOK, "block_size": block_size}
        encoded = layout.QuantizedTensor.from_float(linear.weight.detach(), layout.LAYOUT, **settings)
        self.weight, self.bias = nn.Parameter(encoded, requires_grad=False), linear.bias.detach()
        self.told = []

    def forward(self, x):
        guidance = None if self.guide is None else self.guide(x)
        if self.told is not None:
            self.told.append(guidance and type(guidance)(*(None if part is None else part.clone() for part in guidance)))
        return layout.multiply(x, self.weight, self.bias, guidance or UNGUIDED)


class Model:
    """A BaseModel of ComfyUI's, guided as the settings say, and what its sampler says of each forward."""

    def __init__(self, **settings):
        torch.manual_seed(0)
        config = SeDialectConfig(**{"salient_ratio": 0.0, **settings})
        self.diffusion_model, self.model_sampling = WanModel().eval(), SimpleNamespace(sigma_max=torch.tensor(1.0))
        self.plan = make_plan(self.diffusion_model, config)
        for entry in self.plan.quantized:
            parent, _, leaf = entry.name.rpartition(".")
            linear = self.diffusion_model.get_submodule(entry.name)
            setattr(self.diffusion_model.get_submodule(parent), leaf, Guided(linear, entry.block_size))
        attach(self, self.plan)
        self.schedule = torch.tensor(SIGMAS)

    def __call__(self, step: int, uuids=("a", "b"), kinds=(0, 1), size=(3, 4, 4), seed=0, **options):
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(len(uuids), 4, size[0], 2 * size[1], 2 * size[2], generator=random)
        said = {"sample_sigmas": self.schedule, "sigmas": self.schedule[step : step + 1], "uuids": list(uuids)}

        def executor(x, t, concat, context, control, options):
            return self.diffusion_model(x, context, options)

        executor.class_obj = self
        with torch.inference_mode():
            context = torch.randn(len(uuids), TEXT, WIDTH, generator=random)
            said |= {"cond_or_uncond": list(kinds), **options}
            return run_guided(executor, x, said["sigmas"], None, context, None, said)

    @property
    def tokens(self):
        return tokens_of(self)

    def told(self, name: str):
        return self.diffusion_model.get_submodule(name).told
