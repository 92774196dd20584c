"""A model without weights, from what its config.json says."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import InputError, shortened, shown

MAX_SIZE = 10_000_000  # of any number in a config.json of a model
MAX_BLOCKS = 1000  # of one that says how often something is repeated
REPEATED = re.compile(r"layers|blocks|depth|num_single|num_refiner")
QUOTES = "'\""


def skeleton(config: Mapping[str, Any], where: str) -> nn.Module:
    """A model of the class that a config.json names, without weights. The class is diffusers' own, never a repository's.

    Raises:
        InputError: diffusers has no such model, the model is quantized already, or sizes make no model.
    """
    import diffusers
    from accelerate import init_empty_weights

    name = config.get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin) and cls is not diffusers.ModelMixin):
        raise InputError(
            f"{where} is a {shown(name).strip(QUOTES)}, which is no model of diffusers {diffusers.__version__}; is it the "
            "right folder?"
        )
    if settings := config.get("quantization_config"):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
        raise InputError(f"{where} is quantized already ({shown(method).strip(QUOTES)}); take the original")
    check_sizes(config, where)
    build: Any = cls
    try:
        with init_empty_weights():
            model: nn.Module = build.from_config(dict(config))
    except Exception as error:  # noqa: BLE001  # whatever a constructor makes of values that it did not expect
        raise InputError(f"{where}: config.json makes no {name} ({shortened(error)}); download it again") from None
    return model


def check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that would build for hours, or a model that no machine holds.

    Raises:
        InputError: that is so.
    """
    for key, value in config.items():
        sizes = value if isinstance(value, list) else [value]
        most = MAX_BLOCKS if REPEATED.search(key) else MAX_SIZE
        for size in sizes:
            if isinstance(size, int) and abs(size) > most:
                raise InputError(f"{where}: {shown(key)} is {shown(value)} in config.json; at most {most:,} is possible")
