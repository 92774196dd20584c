"""sedialect as diffusers sees it: the marks by which a model knows that it is quantized."""

from enum import StrEnum
from functools import partial
from typing import Any, NoReturn

from torch import nn

from ..errors import ModelError

REFUSED = {
    "fuse_qkv_projections": "would join packed codes as if they were weights; call it before enable_sedialect()",
    "save_pretrained": "cannot write a quantized model yet; save the 16-bit model, and enable sedialect after loading it",
}


class SeDialectMethod(StrEnum):
    """diffusers reads `.value`, so a plain string will not do."""

    SEDIALECT = "sedialect"


def mark_quantized(model: nn.Module) -> None:
    """Make diffusers treat `model` as quantized: casting raises, and so do saving and fusing, which would spoil it."""
    marks: dict[str, Any] = {"is_quantized": True, "quantization_method": SeDialectMethod.SEDIALECT}
    marks |= {method: partial(_refuse, method) for method in REFUSED if hasattr(model, method)}
    for name, value in marks.items():
        setattr(model, name, value)


def mark_plain(model: nn.Module) -> None:
    """Take the marks off again."""
    for name in ("is_quantized", "quantization_method", *REFUSED):
        model.__dict__.pop(name, None)


def _refuse(method: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise ModelError(f"{method} {REFUSED[method]}")
