"""Tensors that outlive the call they are made in: ordinary ones, whatever mode the call is made under."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside lies where it is told to, on the CPU where it is not, and can be used anywhere afterwards.

    Off inside: inference mode, gradients, fake tensors and other modes of torch (export, counters of operations), default
    devices, transforms of `torch.func`. What `inference_mode` made is forbidden to autograd, and what export made is empty.
    """
    with ExitStack() as stack:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


def made_to_last(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function whose tensors outlive the call; torch.compile calls it while it traces, and keeps what it gives."""

    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with lasting():
            return make(*args, **kwargs)

    constant: Callable[Arguments, Result] = torch._dynamo.assume_constant_result(made)
    return constant
