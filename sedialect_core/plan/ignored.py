"""Settings that decide nothing beside the others, and patterns that find nothing: said, so that nobody waits for them."""

from collections.abc import Collection, Iterable

from ..config import SeDialectConfig
from ..settings.patterns import finds
from ..settings.table import UNQUANTIZED
from .layers import LayerPlan
from .tokens import needs_profile

OF_SECOND_TERMS = ("salient_by", "salient_layers")
OF_GROUPS = ("semantic_sharing", "semantic_window", "semantic_spacing", "semantic_quantile", "semantic_similarity")
OF_PROFILES = ("refresh_every", "refresh_at")
OF_4_BIT_ACTIVATIONS = ("salient_ratio", *OF_SECOND_TERMS, "semantic", *OF_GROUPS, *OF_PROFILES, "candidates")
OF_ATTENTION_ALONE = ("precision", "attention", "protected_steps", "skip", "layer_precisions")


def ignored_settings(config: SeDialectConfig, named: Collection[str]) -> list[str]:
    """Sentences on the settings, of those that somebody has `named`, that change nothing in this configuration."""
    precisions = {config.precision, *(precision for _, precision in config.layer_precisions)}
    said, left = [], [name for name in named if getattr(config, name, None) not in (False, 0)]

    def take(names: Iterable[str], why: str) -> None:
        found = [name for name in left if name in names]
        for name in found:
            left.remove(name)
        if found:
            said.append(f"{', '.join(found)} {'change' if len(found) > 1 else 'changes'} nothing: {why}")

    if config.attention_alone:
        take(
            [name for name in left if name not in OF_ATTENTION_ALONE], f"with precision {UNQUANTIZED} no layer is quantized"
        )
        return said
    if "w4a4" not in precisions:
        take(OF_4_BIT_ACTIVATIONS, f"it is about 4-bit activations, and precision is {config.precision}")
        if config.attention == UNQUANTIZED and any(config.protected_steps):
            take(("protected_steps",), f"precision {config.precision} has no 4-bit activations in any step")
    if precisions <= {"w4a16", UNQUANTIZED}:
        take(("products",), "w4a16 multiplies in 16 bit")
    if config.salient_ratio == 0:
        take(OF_SECOND_TERMS, "salient_ratio is 0, so that no token gets a second term")
    if not config.semantic:
        take(OF_GROUPS, "semantic is off")
    if not needs_profile(config):
        take(OF_PROFILES, "nothing looks at attention: semantic is off, and tokens are not chosen by attention")
    return said


def idle_patterns(config: SeDialectConfig, layers: Collection[LayerPlan]) -> list[str]:
    """Sentences on the patterns of a configuration that match no layer."""
    inside = [layer.name for layer in layers if layer.block is not None] or [layer.name for layer in layers]
    there = f"none of the {len(layers)} linear layers, whose names are like {inside[0] if inside else 'nothing'}"
    patterns = [("skip", pattern) for pattern in config.skip]
    patterns += [("layer_precisions", pattern) for pattern, _ in config.layer_precisions]
    return [
        f"{setting}: the pattern {pattern!r} matches {there}"
        for setting, pattern in patterns
        if not any(finds(pattern, layer.name) for layer in layers)
    ]
