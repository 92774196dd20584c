"""The library behind every front end. Public names are resolved on first use, so that importing a room costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration.cache import CalibrationCache
    from .calibration.fit import fit_formatbook
    from .calibration.moments import calibrate
    from .codec import EncodedTensor, encode
    from .config import SeDialectConfig
    from .errors import SeDialectError
    from .formatbook import Dialect, Formatbook
    from .generation.worker import GenerateVideos, VideoBatch
    from .inspection import TokenLayout
    from .integrations.context_parallel import enable_context_parallel
    from .integrations.models import quantize_model
    from .linear import SeDialectLinear
    from .plan.layers import Plan
    from .semantics.probe import Seen, watch_function
    from .video.sampling import Request

_HOME = {
    "CalibrationCache": ".calibration.cache",
    "Dialect": ".formatbook",
    "EncodedTensor": ".codec",
    "Formatbook": ".formatbook",
    "GenerateVideos": ".generation.worker",
    "Plan": ".plan.layers",
    "Request": ".video.sampling",
    "SeDialectConfig": ".config",
    "SeDialectError": ".errors",
    "SeDialectLinear": ".linear",
    "Seen": ".semantics.probe",
    "TokenLayout": ".inspection",
    "VideoBatch": ".generation.worker",
    "calibrate": ".calibration.moments",
    "enable_context_parallel": ".integrations.context_parallel",
    "encode": ".codec",
    "fit_formatbook": ".calibration.fit",
    "quantize_model": ".integrations.models",
    "watch_function": ".semantics.probe",
}
__all__ = [
    "CalibrationCache",
    "Dialect",
    "EncodedTensor",
    "Formatbook",
    "GenerateVideos",
    "Plan",
    "Request",
    "SeDialectConfig",
    "SeDialectError",
    "SeDialectLinear",
    "Seen",
    "TokenLayout",
    "VideoBatch",
    "calibrate",
    "enable_context_parallel",
    "encode",
    "fit_formatbook",
    "quantize_model",
    "watch_function",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
