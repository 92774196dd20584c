"""What text encoders read: sentences run through each, its layers' inputs kept as moments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config import SeDialectConfig
from ..errors import ModelError
from ..plan.text_models import weights_only
from ..progress import Watch
from .cache import CalibrationCache
from .fingerprint import fingerprint
from .gathering import Run, gather, inputs_of
from .sentences import plain_sentences, sentences

SENTENCES = 256
Tokenizer = Callable[..., Any]


def calibrate_texts(
    models: Mapping[str, nn.Module],
    tokenizers: Mapping[str, Tokenizer],
    config: SeDialectConfig | None = None,
    texts: Sequence[str] = (),
    *,
    progress: bool = False,
    watch: Watch | None = None,
) -> CalibrationCache:
    """Learn what the linears of text encoders read. The encoders are not changed.

    Args:
        models: by component.
        tokenizers: by the same names; each is called with one text and `return_tensors="pt"`.
        config: which layers will be quantized.
        texts: what is read besides the sentences that come with sedialect.

    Raises:
        InputError: an input that is not finite, or too little memory.
        ModelError: a model has no tokenizer.
    """
    if lacking := [name for name in models if name not in tokenizers]:
        raise ModelError(f"{lacking[0]} has no tokenizer by whose name it could be found; encode it without calibration")
    config = weights_only(config or SeDialectConfig())
    read = [*texts, *sentences(SENTENCES), *plain_sentences()]
    inputs = tuple(entry for name, model in models.items() for entry in inputs_of(name, model, config))
    made = {**fingerprint(", ".join(models), models, read), "read": "sentences"}
    cache = CalibrationCache(made, (None, None, None), inputs)
    place = next(parameter for model in models.values() for parameter in model.parameters()).device

    @torch.no_grad()
    def sample(text: str) -> None:
        for name, model in models.items():
            _read(model, tokenizers[name], text)

    return gather(Run(models, read, sample, every=1), cache, place, progress=progress, watch=watch)


def tokenizers_of(pipe: Any, names: Sequence[str]) -> dict[str, Tokenizer]:
    """The tokenizer of each text encoder of a pipeline: `tokenizer_2` of `text_encoder_2`; a processor's own counts."""
    found: dict[str, Tokenizer] = {}
    for name in names:
        number = name.removeprefix("text_encoder")
        for place in (f"tokenizer{number}", f"processor{number}"):
            part = pipe.components.get(place)
            part = getattr(part, "tokenizer", part)
            if callable(part):
                found.setdefault(name, part)
    return found


def _read(model: Any, tokenizer: Tokenizer, text: str) -> None:
    """One forward, without padding: a padded row would count as one that was read."""
    encoded = tokenizer(text, truncation=True, return_tensors="pt")
    place = model.get_input_embeddings().weight.device
    model(**{name: encoded[name].to(place) for name in ("input_ids", "attention_mask") if name in encoded})
