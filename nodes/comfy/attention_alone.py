"""A MODEL whose layers stay as they are, and whose attention alone runs in fewer bits: a clone with a wrapper."""

from typing import Any
from weakref import WeakKeyDictionary

from comfy.patcher_extension import WrappersMP

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import ModelError
from ...sedialect_core.plan.layers import Plan
from ...sedialect_core.plan.report import ModelReport, report_of
from ...sedialect_core.plan.rules import make_plan
from ...sedialect_core.quantize.checks import check_attention
from .checks import COMPILED, KEY, linear_types
from .guides import run_told, told_tokens
from .tokens import Tokens

ALONE = "sedialect_attention"  # under which a patcher keeps the wrapper and what we know


def attention_alone(patcher: Any, config: SeDialectConfig) -> Any:
    """A clone of the MODEL whose attention runs as `config` says.

    Raises:
        ModelError: it has no attention that could, is compiled, or is quantized by SeDialect already.
    """
    network = patcher.model.diffusion_model
    name = type(network).__name__
    if patcher.get_attachment(KEY) is not None:
        raise ModelError(
            f"this {name} is quantized by SeDialect already; set attention in the node that quantizes or loads it"
        )
    if COMPILED in patcher.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        raise ModelError("the MODEL is compiled already; put TorchCompileModel behind SeDialect Quantize, not before it")
    check_attention(config)
    plan = make_plan(network, config, linear_types=linear_types(network))
    clone = patcher.clone()
    alone = _Alone(plan)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, ALONE)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, ALONE, alone)
    clone.set_attachments(ALONE, alone.tokens_of(network))
    return clone


class _Alone:
    """The wrapper. It is one for all GPUs, and each has a network of its own."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.told: WeakKeyDictionary[Any, Tokens] = WeakKeyDictionary()

    def tokens_of(self, network: Any) -> Tokens:
        """What a network is told."""
        if network not in self.told:
            self.told[network] = told_tokens(network, self.plan)
        return self.told[network]

    def __call__(self, executor: Any, *args: Any, **more: Any) -> Any:
        return run_told(self.tokens_of(executor.class_obj.diffusion_model), executor, *args, **more)


def alone_report(patcher: Any) -> ModelReport | None:
    """The report of a MODEL of which attention alone was changed; None of others."""
    tokens: Tokens | None = patcher.get_attachment(ALONE)
    if tokens is None:
        return None
    network = patcher.model.diffusion_model
    return report_of("diffusion_model", network, tokens.plan, 0, patcher.load_device, tokens.attention_seen())
