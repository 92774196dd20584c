"""Which components of a pipeline are its text encoders."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import ModelError
from .text_models import is_text_model

TEXT_ENCODER = re.compile(r"text_encoder(_\d+)?")


def encoders(pipe: Any, wanted: bool | str | Sequence[str]) -> dict[str, nn.Module]:
    """The text encoders that are asked for, by component name: all with True, or those named; an image encoder may be named.

    Raises:
        ModelError: a name is no model of the transformers library, or there is no text encoder.
    """
    if wanted is False:
        return {}
    components: dict[str, Any] = pipe.components
    known = {name: part for name, part in components.items() if isinstance(part, nn.Module) and is_text_model(part)}
    if wanted is True:
        found = {name: part for name, part in known.items() if TEXT_ENCODER.fullmatch(name)}
        if not found:
            raise ModelError(
                f"{type(pipe).__name__} has no text encoder of the transformers library; leave out text_encoder=True"
            )
        return found
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if odd := [name for name in names if name not in known]:
        raise ModelError(
            f"text_encoder names {odd[0]!r}, which is no model of the transformers library here; there are "
            f"{', '.join(known) or 'none'}"
        )
    return {name: known[name] for name in names}
