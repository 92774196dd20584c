"""Runs a whole training step as one recorded CUDA graph.

Steps of small networks are thousands of tiny kernels; started one by one from Python they leave the GPU idle more
than half of the time. Recorded once and replayed, they run back to back.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class GraphedStep:
    """Calls `function(*tensors) -> Tensor`: directly at first and on a CPU, as a recorded graph later on a GPU.

    Tensors must keep their shapes. What the function changes (weights, optimizer states) changes in replays too;
    numbers that vary between steps, such as learning rates, must therefore live in tensors.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device, direct_calls: int = 5) -> None:
        self.function, self.on_gpu, self.direct_calls = function, device.type == "cuda", direct_calls
        self.graph: torch.cuda.CUDAGraph | None = None
        if self.on_gpu:
            self.stream = torch.cuda.Stream()

    def __call__(self, *tensors: Tensor) -> Tensor:
        if not self.on_gpu:
            return self.function(*tensors)
        if self.direct_calls > 0:
            return self._direct(tensors)
        graph = self.graph or self._record(tensors)
        for kept, given in zip(self.inputs, tensors, strict=True):
            kept.copy_(given)
        graph.replay()
        return self.output.clone()

    def _direct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """An ordinary call, on a side stream as recording demands of what comes before it."""
        self.direct_calls -= 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self.function(*tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return output.clone()

    def _record(self, tensors: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.function(*self.inputs)
        return self.graph
