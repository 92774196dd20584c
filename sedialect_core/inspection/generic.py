"""Rules for models that no table knows: only what a name says plainly is believed.

Names of repeated blocks' layers are much the same everywhere; what their rows are is not, so every stream is
"other" and nothing shares an input. Whatever lies outside the blocks, or has no telling name, is left alone.
"""

import re

from torch import nn

from .rules import BlockKind, Family, Rule, first_match
from .sites import Role
from .tokens import TokenLayout

_ATTENTION_PART = r"\w*(attn|attention)\w*"
_FEED_FORWARD_PART = r"(\w*_)?(ff|ffn|mlp|feed_?forward|swiglu|glu)(_\w+)?"
_MODULATION_PART = r"\w*(norm|modulation|adaln|ada_ln)\w*|(\w+_)?mod(_\w+)?|scale_shift\w*"
_ATTENTION_LEAF = r"(to_|add_|w)?(q|k|v|o|qkv|kv|out|query|key|value|output)(_proj|_linear|_[xy]|_img|_cam)?|proj_qkv"
_FEED_FORWARD_LEAF = r"proj_mlp|v_mlp|linear[12]|fc[12]|w[123]|(gate|up|down)_proj|(in|ff)_layer|ff_(proj|out|in)"

GENERIC_RULES = (
    Rule(rf"(.+\.)?({_MODULATION_PART})(\..+)?", "modulation", "other"),
    Rule(rf"(.+\.)?{_ATTENTION_PART}\.(?!.*(gate|beta|decay))(.+\.)?[a-z]\w*(\.0)?", "attention", "other"),
    Rule(r"attn_out", "attention", "other"),
    Rule(rf"(.+\.)?{_FEED_FORWARD_PART}\.(?!.*(router|gate$))(.+\.)?\w+", "feed_forward", "other"),
    Rule(_ATTENTION_LEAF, "attention", "other"),
    Rule(_FEED_FORWARD_LEAF, "feed_forward", "other"),
    Rule(r"(.+\.)?block\.layer[12]", "feed_forward", "other"),  # Cosmos 1 by its authors' names
)
"""Modulation comes first: a norm inside an attention module is no attention layer. Gates, decays and routers steer
much with few weights, and match nothing."""

PARALLEL_RULES = (Rule(r"proj_out", "feed_forward", "other"), *GENERIC_RULES)
"""Where attention and feed-forward run side by side, `proj_out` closes both and is the largest layer of the block."""

_NO_BLOCKS = re.compile(r"emb|refin|encod|connect|condition|context|adapter|pool|caption|head|final|project", re.I)
_OUTSIDE: tuple[tuple[str, Role], ...] = (
    (r"(.+\.)?(\w+_in|\w*emb(ed\w*)?)\.(?!(.+\.)?norm).+", "embedder"),  # whose second layer is often called out_layer
    (r"(.+\.)?(proj_out|\w+_proj_out|lm_head|head|final_layer|(\w+_)?out_layer)(\..+)?", "head"),
    (r"(.+\.)?norm\w*(\..+)?", "norm"),
)


def generic_family(model: nn.Module) -> Family:
    """A family made for this model: the block lists found in it, and `GENERIC_RULES`."""
    lists = block_lists(model)
    kinds = (BlockKind(lists, PARALLEL_RULES, having="proj_mlp"), BlockKind(lists, GENERIC_RULES))
    return Family("generic", (), kinds, TokenLayout("unknown", patch=(1, 1, 1), axes="unknown"))


def block_lists(model: nn.Module) -> tuple[str, ...]:
    """Names of the lists whose children are transformer blocks, at the shallowest depth that has attention.

    Refiners and encoders have transformer blocks too, but lie deeper, or say in their names what they are.
    """
    found: dict[int, dict[str, set[Role]]] = {}
    for name, module in model.named_modules():
        if name and isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential) and not _NO_BLOCKS.search(name):
            roles = _roles_inside(module)
            if roles:
                found.setdefault(name.count("."), {})[name] = roles
    for depth in sorted(found):
        if any("attention" in roles for roles in found[depth].values()):
            return tuple(found[depth])
    return ()


def outside_role(name: str) -> Role:
    """Role of a linear outside all blocks: what is neither head nor norm embeds something."""
    return next((role for pattern, role in _OUTSIDE if re.fullmatch(pattern, name)), "embedder")


def _roles_inside(blocks: nn.Module) -> set[Role]:
    """Attention and feed-forward, as far as linears below the children of this list have them."""
    roles: set[Role] = set()
    for block in blocks.children():
        linears = (path for path, module in block.named_modules() if path and isinstance(module, nn.Linear))
        matches = (first_match(GENERIC_RULES, path) for path in linears)
        roles.update(match[0].role for match in matches if match is not None)
    return roles & {"attention", "feed_forward"}
