"""Which fitted book belongs to which model: digests of weights, the cache of fitted books, and the setting "auto".

`formatbook="auto"` takes the cached book that was fitted to the very weights at hand; `"auto:owner/name"` asks that Hub
repository too. Where neither has one, the built-in book is used, and a warning and the plan's notes say so.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..errors import FormatbookError, InputError
from ..storage import cache
from .book import Formatbook

AUTO = "auto"
INSTEAD = "universal-32"  # where no book is fitted: of those built in, the one that suits most models
SAMPLED = 1024  # elements of each parameter that the digest reads
BASE_LAYER, ADAPTER = ".base_layer", "lora_"  # peft's names: a loaded LoRA does not make another model


class Found(NamedTuple):
    """The book that a setting stands for, under the name that finds it again, and what there is to say about the choice."""

    book: Formatbook
    name: str
    notes: tuple[str, ...]


def is_auto(setting: str) -> bool:
    """Whether a setting leaves the choice to the model at hand."""
    return setting == AUTO or setting.startswith(f"{AUTO}:")


def find_book(model: nn.Module, setting: str, block_size: int) -> Found:
    """The book that `setting` stands for, on a model with its 16-bit weights in memory.

    Raises:
        FormatbookError: a setting other than "auto" and "auto:owner/name" names no book.
    """
    if not is_auto(setting):
        return Found(Formatbook.resolve(setting), setting, ())
    digest, refused = weights_digest(model), []
    for name in _places(digest, block_size, setting.partition(":")[2]):
        try:
            book = Formatbook.resolve(name)
        except (FormatbookError, InputError) as error:
            refused.append(f"{name} cannot be used: {error}")
            continue
        reason = mismatch(book, digest, block_size)
        if reason is None:
            return Found(book, name, (f"formatbook {book.name}, fitted to these weights, from {name}",))
        refused.append(f"{name} {reason}")
    default = Formatbook.builtin(INSTEAD)
    note = (
        f"formatbook={setting!r}: no book is fitted to this {type(model).__name__} in blocks of {block_size} "
        f"({'; '.join(refused) or f'none in {cache_folder()}'}); using {default.name}. Fit one: sedialect formatbook fit"
    )
    warnings.warn(note, stacklevel=3)
    return Found(default, default.name, (note,))


def mismatch(book: Formatbook, digest: str, block_size: int) -> str | None:
    """Why a book does not belong to the weights with this digest in blocks of this size, or None where it does."""
    fingerprint = book.fingerprint or {}
    if digest not in fingerprint.get("weights", "").split(","):
        return f"was fitted to other weights ({fingerprint.get('model', 'no model is named')})"
    if fingerprint.get("block_size") != str(block_size):
        return f"was fitted to blocks of {fingerprint.get('block_size')}"
    return None


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over every parameter's name, shape and a strided sample of its values.

    A fraction of a second for any size. The values are read as bfloat16, so that one checkpoint has one digest in float32
    and in bfloat16. Adapters that peft put into the model do not count. A change of single numbers may go unseen, a finetune
    does not.
    """
    digest = hashlib.sha256()
    named = ((name.replace(BASE_LAYER, ""), p) for name, p in model.named_parameters() if ADAPTER not in name)
    for name, parameter in sorted(named, key=lambda pair: pair[0]):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLED) | 1  # odd, so that it does not stay in the columns of a matrix
        values = flat[::step].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(json.dumps([name, list(parameter.shape)]).encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def config_digest(model: nn.Module) -> str:
    """SHA-256 over what a model of diffusers or transformers was built with; empty for other modules."""
    config = getattr(model, "config", None) or {}
    config = dict(config if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else {})
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode()).hexdigest() if public else ""


def cache_folder() -> Path:
    """Where fitted books are kept for "auto"."""
    return cache.cache_folder("formatbooks")


def remember(book: Formatbook) -> list[Path]:
    """Put a fitted book into the cache, once for each of the models that it was fitted to; return the paths.

    Raises:
        FormatbookError: the book has no fingerprint.
        InputError: the cache cannot be written.
    """
    fingerprint = book.fingerprint or {}
    if "weights" not in fingerprint or "block_size" not in fingerprint:
        raise FormatbookError(
            f"formatbook {book.name!r} has no fingerprint of weights and block size; only a fitted book has"
        )
    size = int(fingerprint["block_size"])
    return [book.save_pretrained(_cached(digest, size)) for digest in fingerprint["weights"].split(",")]


def _cached(digest: str, block_size: int) -> Path:
    return cache_folder() / f"{digest[:32]}-{block_size}"


def _places(digest: str, block_size: int, repository: str) -> Iterator[str]:
    """Names under which the book may be found, the nearest first."""
    local = _cached(digest, block_size)
    if local.is_dir():
        yield str(local)
    if repository:
        yield repository
