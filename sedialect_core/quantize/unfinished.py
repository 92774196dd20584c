"""A model while its layers are swapped. Whoever runs, saves or quantizes it meanwhile would have half of two models, and
everybody afterwards, if the swapping was broken off and no 16-bit layers were kept. The marks say so until it is whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from torch import nn

from ..errors import ModelError
from ..linear import has_quantized_layers

MARK = "_sedialect_unfinished"  # on the model, past torch's bookkeeping
REASON = "is half quantized: quantizing it was broken off, or is under way in another thread"
REMEDY = "load it again, or wait for the other thread; with keep_original=True an interruption leaves no half model"


@contextmanager
def swapping(model: nn.Module) -> Iterator[None]:
    """Mark a model while the block swaps its layers. The marks stay if it is broken off behind the first of them.

    Raises:
        ModelError: another thread is at it, or has done it since the plan was made.
    """
    handle = model.register_forward_pre_hook(_refuse_to_run)
    if model.__dict__.setdefault(MARK, handle) is not handle:
        handle.remove()
        _refuse(type(model).__name__)
    if has_quantized_layers(model):
        whole_again(model)
        raise ModelError(f"another thread has quantized {type(model).__name__} already; go on with it, or load it again")
    if hasattr(model, "save_pretrained"):
        model.__dict__["save_pretrained"] = partial(_refuse, type(model).__name__)
    try:
        yield
    except BaseException:
        if not has_quantized_layers(model):
            whole_again(model)
        raise
    whole_again(model)


def whole_again(model: nn.Module) -> None:
    """Take the marks off: all layers are swapped, or all are back."""
    handle = model.__dict__.pop(MARK, None)
    if handle is not None:
        handle.remove()
        model.__dict__.pop("save_pretrained", None)


def unfinished(model: nn.Module) -> tuple[str, str] | None:
    """What is wrong with a half quantized model and what to do; None for every other."""
    return (REASON, REMEDY) if MARK in model.__dict__ else None


def _refuse_to_run(model: nn.Module, _: Any) -> None:
    _refuse(type(model).__name__)


def _refuse(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ModelError(f"{name} {REASON}; {REMEDY}")
