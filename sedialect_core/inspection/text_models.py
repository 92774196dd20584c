"""Text encoders, and whatever else the transformers library provides to a pipeline: which of their linears lie in blocks.

They are known by where their classes come from, and their layers by the names that transformers gives them in every model.
"""

import re

from torch import nn

from .rules import BlockKind, Family, Rule
from .sites import Role
from .tokens import TokenLayout

TEXT_FAMILY = "text model"
ORIGIN = "transformers.models."
_CROSS = r"((?:.+\.)?(?:EncDecAttention|encoder_attn|cross_attn\w*)\.)"
_ANY = r"((?:.+\.)?)"
_LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)

TEXT_RULES = (
    Rule(r"(.+\.)?(router|gate|shared_expert_gate|per_layer_input_gate)(\.\w+)?", "other", "other"),
    Rule(rf"{_CROSS}(?:q|q_proj|query)", "attention", "other"),
    Rule(rf"{_CROSS}(?:k|v|k_proj|v_proj|key|value)", "attention", "other", r"\1kv"),
    Rule(rf"{_ANY}(?:q|k|v|[qkv]_proj|query|key|value)", "attention", "other", r"\1qkv"),
    Rule(rf"{_ANY}(?:wi_0|wi_1|gate_proj|up_proj)", "feed_forward", "other", r"\1in"),
    Rule(r"(?i)(?!.*intermediate).*(attn|attention).*", "attention", "other"),
    Rule(r".+", "feed_forward", "other"),
)
"""Gates and routers come first: they steer much with few weights, and stay."""


def is_text_model(model: nn.Module) -> bool:
    """Whether it is a model of the transformers library, or a subclass of one; others that use its base class are not."""
    return any(cls.__module__.startswith(ORIGIN) for cls in type(model).__mro__)


def text_family(model: nn.Module) -> Family:
    """A family made for this model: its lists of blocks, those inside others left out, and `TEXT_RULES`."""
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if name and isinstance(module, nn.ModuleList) and not inside and _holds_linears(module):
            lists.append(name)
    return Family(
        TEXT_FAMILY, (), (BlockKind(tuple(lists), TEXT_RULES),), TokenLayout("unknown", patch=(1, 1, 1), axes="unknown")
    )


def outside_text_role(name: str) -> Role:
    """Role of a linear outside all blocks: "head" for what makes the model's outputs, else "embedder"."""
    head = r"(.+\.)?(lm_head|score|classifier|pooler|\w*projection|\w*projector|head|merger)(\..+)?"
    return "head" if re.fullmatch(head, name) else "embedder"


def looked_up(model: nn.Module) -> dict[int, str]:
    """Names of the embeddings by the identity of their weights, which a linear may share."""
    return {
        id(module.weight): name for name, module in reversed(list(model.named_modules())) if isinstance(module, _LOOKED_UP)
    }


def _holds_linears(blocks: nn.ModuleList) -> bool:
    return any(hasattr(part, "in_features") for block in blocks.children() for part in block.modules())
