"""Kernels run by Triton's interpreter on the CPU, in a process of its own: it reads TRITON_INTERPRET when it is imported.

The interpreter computes bfloat16 wrongly, so only float32 and float16 are shown to it. Outputs are poisoned first: what a
kernel leaves out is NaN, or 0xFF in integers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def interpreter():
    """Runs a function of a module in the process where kernels are interpreted."""
    pytest.importorskip("triton")
    os.environ["TRITON_INTERPRET"] = "1"
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        executor.submit(os.getpid).result()  # starts the process while the variable is set
    finally:
        del os.environ["TRITON_INTERPRET"]
    with executor:
        yield lambda function, *arguments, **settings: executor.submit(function, *arguments, **settings).result()


def poisoned(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What `function` gives where `torch.empty` is full of NaN, or of 0xFF."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

    torch.empty = lambda *shape, **options: fill(empty(*shape, **options))
    torch.empty_like = lambda like, **options: fill(empty_like(like, **options))
    try:
        return function(*arguments, **settings)
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def encoded(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`triton_encode.encode`."""
    from sedialect.kernels import triton_encode

    return poisoned(triton_encode.encode, *arguments, **settings)


def decoded(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`triton_decode.decode`."""
    from sedialect.kernels import triton_decode

    return poisoned(triton_decode.decode, *arguments, **settings)


def encoded_weight(*arguments: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`triton_weights.encode_weight`."""
    from sedialect.kernels import triton_weights

    return poisoned(triton_weights.encode_weight, *arguments, **settings)


def added(*arguments: Any) -> torch.Tensor:
    """`triton_add.add_rows`."""
    from sedialect.kernels import triton_add

    return triton_add.add_rows(*arguments)
