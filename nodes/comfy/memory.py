"""Memory of a 16-bit model that is gone, given back to the system.

Encoding mixes small and large pieces with the model's own, and glibc then keeps all of them for later when ComfyUI lets
go of the model, after /free too. It is told to give them back: nobody else does, and other allocators need not be told.
"""

import ctypes
import threading
import weakref
from typing import Any

SECONDS = 1.0  # from the end of a model to that of its weights
_WATCHED: "weakref.WeakSet[Any]" = weakref.WeakSet()


def give_back_when_gone(model: Any) -> None:
    """Give memory back once nobody has this model any more."""
    if model not in _WATCHED:
        _WATCHED.add(model)
        weakref.finalize(model, _soon).atexit = False


def _soon() -> None:
    """The weights go right after the model."""
    timer = threading.Timer(SECONDS, give_back)
    timer.daemon = True
    timer.start()


def give_back() -> bool:
    """Whether glibc had pages to give back; False where there is no glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))
