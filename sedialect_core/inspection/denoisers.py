"""Which components of a pipeline are its video transformers."""

from typing import Any

from torch import nn

from ..errors import ModelError
from . import is_transformer


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline, by component name.

    Raises:
        ModelError: there is none.
    """
    components: dict[str, Any] = pipe.components
    found = {name: part for name, part in components.items() if is_transformer(name) and isinstance(part, nn.Module)}
    if not found:
        raise ModelError(
            f"{type(pipe).__name__} has no transformer among its components ({', '.join(components)}); "
            "sedialect quantizes video transformers, not UNets"
        )
    return found
