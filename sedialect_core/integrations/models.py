"""`sedialect.quantize_model`: one transformer or text encoder, without a pipeline around it."""

from torch import nn

from ..config import SeDialectConfig
from ..inspection import TokenLayout, is_text_model
from ..plan.layers import Plan
from ..plan.report import model_bytes
from ..quantize.apply import quantize_layers
from ..quantize.checks import check_attends, check_ready
from .state import Enabled, mark_attending, mark_quantized


def quantize_model(
    module: nn.Module,
    config: SeDialectConfig | None = None,
    token_layout: TokenLayout | None = None,
    *,
    progress: bool = False,
) -> Plan:
    """Rewrite the linear layers of a video transformer in place, and return what was done to which and why. Of text encoders
    of the transformers library, weights alone are quantized.

    Each layer is encoded on the device its weight lies on; besides the model, memory holds one layer at a time. A model of
    diffusers or transformers knows afterwards that it is quantized: `save_pretrained` writes a checkpoint, and casting is
    refused.

    Args:
        module: any `torch.nn.Module`; classes of diffusers and Open-Sora are known by name, others by rules.
        token_layout: where video and text tokens stand, for a model that is not known.
        progress: show a progress bar.

    Raises:
        ModelError: nothing can be quantized, weights are not in memory or not finite, or swapping layers would break the
            model as it is (compiled, offloaded by groups …). Nothing has been changed then.
        FormatbookError: there is no such formatbook. Nothing has been changed then.

    Example:
        >>> plan = quantize_model(transformer, SeDialectConfig.preset("compact"))
        >>> print(plan)
    """
    alone = config is not None and config.attention_alone
    (check_attends if alone else check_ready)(type(module).__name__, module)
    before = model_bytes(module)
    plan = quantize_layers(module, config, token_layout, progress=progress)
    mark_with_quantizer(module, Enabled(plan, before))
    return plan


def mark_with_quantizer(model: nn.Module, state: Enabled) -> None:
    """Mark a model that was quantized in memory; a model of diffusers or transformers gets a quantizer, as if one had loaded
    it. A model of
    which attention alone was changed stays what it was."""
    if not state.plan.quantized:
        mark_attending(model, state)
        return
    if is_text_model(model):
        from .text_quantizer import SeDialectTextQuantizer

        mark_quantized(model, state, SeDialectTextQuantizer.of(model, state.plan))
        return
    if not hasattr(model, "register_to_config"):
        mark_quantized(model, state, None)
        return
    from .quantizer import SeDialectQuantizer

    mark_quantized(model, state, SeDialectQuantizer.of(model, state.plan))
