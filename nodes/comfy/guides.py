"""The guides of encoded layers in ComfyUI.

They are the library's own; what differs is who tells them of a forward, which is `tokens.py`'s, and in which shapes
ComfyUI's networks hand rows over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...kernels.guidance import RowGuidance
from ...kernels.transform import UNCHANGED, InputTransform
from ...sedialect_core.errors import ModelError
from ...sedialect_core.formatbook import Formatbook
from ...sedialect_core.inspection import family_of
from ...sedialect_core.linear import Guide
from ...sedialect_core.plan.layers import Plan
from ...sedialect_core.plan.tokens import is_guided, key_linears, needs_profile
from ...sedialect_core.semantics.attending import Attending
from ...sedialect_core.semantics.guides import TokenGuide, guide_for, is_told, watched_block
from ...sedialect_core.semantics.hook import fixed_layout
from ...sedialect_core.settings.table import BY_ATTENTION, UNQUANTIZED
from . import layout
from .tokens import Tokens

TOKENS = "sedialect_tokens"  # the attribute of a model of ComfyUI's
PLACE = "_sedialect_place"  # and of its network


class Settings(NamedTuple):
    """What a guide is made from, of an encoded layer."""

    formatbook: Formatbook
    block_size: int
    candidates: str
    in_features: int


@dataclass
class RowGuide:
    """A guide behind the shapes in which ComfyUI's networks hand rows over."""

    tokens: "Tokens"
    guide: Guide

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [B, ..., K], or [..., B, K] as Cosmos 1 has it."""
        self.tokens.ran = True
        batch = self.tokens.samples
        if x.ndim > 2 and x.shape[0] == batch:
            return self._told(x.flatten(1, -2), transform)
        if x.ndim > 2 and x.shape[-2] == batch:
            guidance = self._told(x.reshape(-1, batch, x.shape[-1]).transpose(0, 1), transform)
            length = x.numel() // (batch * x.shape[-1])
            rows = guidance.salient
            return guidance if rows is None else guidance._replace(salient=rows % length * batch + rows // length)
        return self._told(x, transform)

    def _told(self, x: torch.Tensor, transform: InputTransform) -> RowGuidance:
        try:
            guidance = self.guide(x, transform)
        except ModelError as error:
            raise ModelError(
                f"{error}. In ComfyUI reference and guide frames lengthen it: set salient_by to norm and semantic to off"
            ) from None
        if self.tokens.counting and guidance.salient is not None and isinstance(self.guide, TokenGuide):
            self.tokens.count(guidance.salient, x.shape[-2], self.guide.placement)
        return guidance


def attach(model: Any, plan: Plan) -> None:
    """Give the encoded layers of a model of ComfyUI's their guides, and have its attention run, as the plan says."""
    if not is_guided(plan.config) and not plan.attentions:
        return
    network = model.diffusion_model
    tokens = told_tokens(network, plan)
    if needs_profile(plan.config):
        for block, name in key_linears(plan.layers, plan.token_layout).items():
            tokens.watched[block] = watched_block(block, plan, tokens)
            tokens.place.follow(network, block, name)
    _guide_layers(network, plan, tokens)
    setattr(model, TOKENS, tokens)


def told_tokens(network: torch.nn.Module, plan: Plan) -> Tokens:
    """What a network is told of its tokens, with the attention that is to run in fewer bits."""
    with torch.inference_mode(False):
        tokens = Tokens(plan, fixed_layout(plan.token_layout))
    tokens.place = network.__dict__.setdefault(PLACE, tokens.place)
    pair_mask = family_of(network).pair_mask
    for entry in plan.attentions:
        if entry.runs != UNQUANTIZED:
            tokens.attending[entry.block] = Attending(entry.runs, tokens.flags, pair_mask)
            tokens.place.follow(network, entry.block, entry.keys)
    return tokens


def _guide_layers(network: torch.nn.Module, plan: Plan, tokens: Tokens) -> None:
    made: dict[object, RowGuide] = {}
    for entry in plan.quantized:
        layer: Any = network.get_submodule(entry.name)
        if not is_told(entry, plan.config) or not layout.is_encoded(layer.weight):
            continue
        params = layer.weight._params
        if params.precision != "w4a4":
            continue
        settings = Settings(params.book, params.block_size, params.candidates, entry.in_features)
        same = (settings[1:], params.rotation, entry.equalized)
        shared = (entry.shared_input or entry.name, *same, entry.salient, entry.grouped)
        if shared not in made:
            made[shared] = RowGuide(tokens, _guide(guide_for(entry, settings, plan, tokens), entry.block or "", tokens))
        layer.guide = made[shared]


def _guide(guide: Guide, block: str, tokens: Tokens) -> Guide:
    if not isinstance(guide, TokenGuide):
        return guide
    if guide.attention is not None:
        tokens.attended.append((block, guide.attention))
    by_input = guide.by not in BY_ATTENTION or not guide.ratio
    if by_input and guide.among is not None and guide.among.where == "all":
        guide.among = None  # reference and guide frames stand in the sequence too, and no grid is needed to choose from all
    return guide


def tokens_of(model: Any) -> Tokens | None:
    """What `attach` made for this model."""
    found: Tokens | None = getattr(model, TOKENS, None)
    return found


def run_guided(executor: Any, *args: Any, **more: Any) -> Any:
    """A wrapper for ComfyUI's APPLY_MODEL, with the arguments of `run_told`; the executor knows which model runs."""
    tokens = tokens_of(executor.class_obj)
    return executor(*args, **more) if tokens is None else run_told(tokens, executor, *args, **more)


def run_told(
    tokens: Tokens,
    executor: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """The forward, told of its tokens; its arguments are those that ComfyUI hands to every APPLY_MODEL."""
    with tokens.forward(tuple(x.shape), x.device, transformer_options or {}, executor.class_obj.model_sampling) as told:
        return executor(x, t, c_concat, c_crossattn, control, told, **more)
