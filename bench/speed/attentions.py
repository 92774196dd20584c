"""Attention alone: every kernel that is installed on the same queries, keys and values, with its error against float64.

Keys have an offset in each head, as biases and norms give real ones. A second error is of values that are nearly equal: sums
over long sequences that lose digits show there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...kernels import flash3
from ...kernels.attention import attention_8bit
from .shapes import HUNYUAN_720P, WAN_480P
from .timing import collect, peak_memory, rotation, time_calls
from .trials import COMPILED, EAGER, Numbers, Trials, backend, fresh_compiler

ROWS = 64  # queries whose outputs are compared with float64
OFFSET, LEVEL, SPREAD = 3.0, 5.0, 0.01
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Attention:
    """Self-attention of so many heads and tokens."""

    model: str
    heads: int
    tokens: int
    head_size: int = 128

    @property
    def operations(self) -> float:
        """Of both products."""
        return 4.0 * self.heads * self.tokens**2 * self.head_size

    def __str__(self) -> str:
        return f"{self.model}, {self.heads} x {self.tokens:,} x {self.head_size}"


ATTENTIONS = (
    Attention("wan-14b", 40, WAN_480P.tokens),
    Attention("hunyuan", 24, HUNYUAN_720P.tokens),
)
QUICK_ATTENTIONS = (Attention("tiny", 2, 600, 64), Attention("tiny long", 1, 2000, 64))


def torch_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kernel: SDPBackend) -> torch.Tensor:
    """torch's own, by one of its kernels."""
    with sdpa_kernel(kernel):
        return functional.scaled_dot_product_attention(query, key, value)


def sage_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """SageAttention's choice of kernel for this GPU."""
    from sageattention import sageattn

    output: torch.Tensor = sageattn(query, key, value, tensor_layout="HND", is_causal=False)
    return output


CUDNN = "BF16, cuDNN"
# The first is what the others are held against.
KERNELS: dict[str, Run] = {
    CUDNN: partial(torch_attention, kernel=SDPBackend.CUDNN_ATTENTION),
    "BF16, torch's flash": partial(torch_attention, kernel=SDPBackend.FLASH_ATTENTION),
    "BF16, FlashAttention-3": flash3.attention_bf16,
    "8bit": attention_8bit,
    "fp8 (FlashAttention-3)": flash3.attention_fp8,
    "SageAttention": sage_attention,
}


def measure_attentions(trials: Trials, cases: Iterable[Attention], to_compile: bool) -> None:
    """Every kernel in every case; compiled, the one whose casts torch.compile fuses."""
    for case in cases:
        bench = Bench(case, trials.device)
        for name, run in KERNELS.items():
            trials.run(str(case), name, EAGER, partial(bench.measure, run, EAGER))
            if run is flash3.attention_fp8 and to_compile:
                trials.run(str(case), name, COMPILED, partial(bench.measure, run, COMPILED))
        bench.clear()


class Bench:
    """The inputs of one case, and what some rows are in float64."""

    def __init__(self, case: Attention, device: torch.device) -> None:
        self.case, self.device = case, device
        self.clear()

    def clear(self) -> None:
        """Let go of everything that takes memory."""
        self._inputs: list[tuple[torch.Tensor, ...]] = []
        self._level: torch.Tensor | None = None
        self._wanted: list[torch.Tensor] = []
        collect(self.device)

    def measure(self, run: Run, mode: str) -> Numbers:
        """Time, rate, both errors and memory of one kernel."""
        if not self._inputs:
            self._prepare()
        if mode == COMPILED:
            fresh_compiler()
            run = torch.compile(run, dynamic=False, backend=backend(self.device))
        timing = time_calls(lambda x: run(*x), self._inputs, self.device)
        memory = peak_memory(lambda: run(*self._inputs[0]), self.device)
        assert self._level is not None
        query, key, value = self._inputs[0]
        outputs = (run(query, key, value), run(query, key, self._level))
        errors = [self._error(output, wanted) for output, wanted in zip(outputs, self._wanted, strict=True)]
        rate = {"TFLOP/s": self.case.operations / timing.median / 1e9}
        return timing.numbers() | rate | {"error": errors[0], "error, equal values": errors[1]} | memory

    def _prepare(self) -> None:
        shape = (1, self.case.tokens, self.case.heads, self.case.head_size)  # as diffusers' processors have it
        count = rotation(2 * self.case.tokens * self.case.heads * self.case.head_size, self.device)
        self._inputs = [self._random(shape, seed) for seed in range(count)]
        self._level = LEVEL + SPREAD * self._inputs[0][2]
        self._wanted = [self._exact(value) for value in (self._inputs[0][2], self._level)]

    def _random(self, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(seed)
        kind: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16}
        query, key, value = (torch.randn(shape, **kind) for _ in range(3))
        key += OFFSET * torch.randn(1, 1, *shape[2:], **kind)
        return tuple(part.transpose(1, 2) for part in (query, key, value))

    def _rows(self) -> torch.Tensor:
        count = min(ROWS, self.case.tokens)
        return torch.arange(count, device=self.device) * self.case.tokens // count

    def _exact(self, value: torch.Tensor) -> torch.Tensor:
        """Some rows of each head in float64, a head at a time."""
        query, key, _ = self._inputs[0]
        heads = []
        for head in range(self.case.heads):
            scores = query[0, head, self._rows()].double() @ key[0, head].double().T * self.case.head_size**-0.5
            heads.append(scores.softmax(1) @ value[0, head].double())
        return torch.stack(heads)

    def _error(self, output: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((output[0, :, self._rows()].double() - wanted).norm() / wanted.norm())
