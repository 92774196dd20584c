"""How often each dialect of a book is chosen: by Gaussian blocks, and by the weights of a model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..codec import encode
from ..config import SeDialectConfig
from ..errors import InputError, first_line, shown
from ..formatbook import Formatbook
from ..inspection import is_transformer
from ..plan.rules import make_plan
from ..progress import shown_bar
from ..storage import hub
from ..storage.reading import read_object

GAUSSIAN_SHAPE = (64, 4096)


def use_by_gaussian_blocks(book: Formatbook, block_size: int = 16) -> list[int]:
    """Blocks that chose each dialect, in id order, of normally distributed weights from a fixed seed."""
    weights = torch.randn(GAUSSIAN_SHAPE, generator=torch.Generator().manual_seed(0))
    return _count(weights, book, block_size)


def use_by_model(book: Formatbook, source: str, block_size: int = 16) -> list[int]:
    """The same for every linear layer that would be quantized, of a model or of a pipeline's transformers.

    Args:
        source: a folder, or a name on the Hub. Of a pipeline only its transformers are loaded.

    Raises:
        InputError: it cannot be loaded, or holds no transformer.
        SeDialectError: it has no layer to quantize, or a weight holds NaN or Inf.
    """
    counts = [0] * len(book.dialects)
    for model in _transformers(source):
        plan = make_plan(model, SeDialectConfig(block_size=block_size))
        with shown_bar(f"Encoding {plan.model}", len(plan.quantized), "layer") as bar:
            for layer in plan.quantized:
                linear = model.get_submodule(layer.name)
                chosen = _count(linear.weight.detach(), book, layer.block_size or block_size, f"{layer.name}.weight")
                counts = [before + new for before, new in zip(counts, chosen, strict=True)]
                bar.update()
    return counts


def _count(weights: torch.Tensor, book: Formatbook, block_size: int, name: str = "tensor") -> list[int]:
    meta = encode(weights, formatbook=book, block_size=block_size, role="weight", name=name).meta
    return torch.bincount((meta & 31).flatten().long(), minlength=len(book.dialects)).tolist()


def _transformers(source: str) -> Iterator[Any]:
    """The transformers of a pipeline one after the other, or the one model that lies there."""
    try:
        from diffusers import AutoModel
    except ImportError:
        raise InputError("reading a model needs diffusers; install it: pip install 'sedialect[diffusers]'") from None
    for subfolder in _components(source):
        try:
            yield AutoModel.from_pretrained(source, subfolder=subfolder, torch_dtype=torch.bfloat16)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise InputError(f"cannot load {subfolder or 'the model'} of {source!r}: {first_line(error)}") from error


def _components(source: str) -> list[str | None]:
    """Folders of the transformers of a pipeline; [None] where a model lies at the root."""
    index = _index(source)
    if index is None:
        return [None]
    names: list[str | None] = [name for name, kind in index.items() if is_transformer(name) and any(kind or ())]
    if not names:
        raise InputError(f"the pipeline {source!r} has no transformer; pass a video diffusion transformer")
    return names


def _index(source: str) -> dict[str, Any] | None:
    """model_index.json of a pipeline, None for a single model."""
    if os.path.exists(source):
        path = Path(source) / "model_index.json"
        if not path.is_file():
            return None
    elif not hub.is_repo_id(source):
        raise InputError(f"no model {source!r}: there is no such folder, and a Hub repository is called owner/name")
    elif "model_index.json" not in hub.list_files(source):
        return None
    else:
        path = hub.download(source, "model_index.json").path
    try:
        return read_object(path)
    except InputError as error:
        raise InputError(f"model_index.json of {shown(source)} cannot be read: {first_line(error)}; get it again") from None
