"""One linear as each peer has it: the packages' own classes and quantizers. A missing package is an ImportError."""

from typing import Any

import torch
from torch import nn

Q4_0_BLOCK = 32


def torchao_fp8(linear: nn.Linear) -> nn.Module:
    """torchao: E4M3 weights and activations, one scale a row each, activations as they come."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    holder = nn.Sequential(linear)
    # The compiler's settings are the process's, and all arms are compiled with the same ones.
    quantize_(holder, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False))
    return holder[0]


class Int8Rows(nn.Module):
    """torch alone: INT8 weights and activations, one scale a row each, `torch._int_mm`, then scales and bias.

    Eager, each step is a pass over memory; torch.compile joins those before and those behind the product.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.scale = self._rows(linear.weight.detach())
        self.weight, self.bias = weight.t(), linear.bias

    @staticmethod
    def _rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp_min(1e-30)
        return (x / scale).round_().to(torch.int8), scale.squeeze(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, K] -> [M, N]."""
        rows, scale = self._rows(x)
        product = torch._int_mm(rows, self.weight).float() * scale.unsqueeze(1) * self.scale
        return (product if self.bias is None else product + self.bias).to(x.dtype)


def bitsandbytes_nf4(linear: nn.Linear) -> nn.Module:
    """bitsandbytes: NF4 weights in blocks of 64, products in bfloat16."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    layer: Any = Linear4bit(*shape, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
    weight = linear.weight.data
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer).to(weight.device)
    layer.bias = linear.bias
    return layer


def gguf_q4(linear: nn.Linear) -> nn.Module:
    """GGUF's Q4_0 through diffusers: weights become float at every call, products in bfloat16."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType

    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    layer: Any = GGUFLinear(*shape, compute_dtype=torch.bfloat16, device="meta")
    layer.weight = GGUFParameter(q4_0(linear.weight.detach()), quant_type=GGMLQuantizationType.Q4_0)
    layer.bias = linear.bias
    return layer


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """The bytes of ggml's Q4_0, uint8 [N, 18 K/32]: the gguf package's own quantizer runs on CPUs, in seconds a layer.

    A block is a float16 scale, its value of largest magnitude / -8, and 32 numbers of 4 bits, first and second half in the
    low and high nibbles.
    """
    blocks = weight.float().unflatten(-1, (-1, Q4_0_BLOCK))
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    numbers = (blocks * inverse + 8.5).trunc_().clamp_(0, 15).to(torch.uint8)
    packed = numbers[..., : Q4_0_BLOCK // 2] | numbers[..., Q4_0_BLOCK // 2 :] << 4
    return torch.cat([scale.half().view(torch.uint8), packed], -1).flatten(-2)


def sdnq(linear: nn.Linear, dtype: str) -> nn.Module:
    """SDNQ: weights of `dtype`, products in INT8 of activations quantized as they come."""
    from sdnq import sdnq_post_load_quant

    holder = nn.Sequential(linear)
    settings = {"use_quantized_matmul": True, "add_skip_keys": False, "minimum_allowed_numel": 0}
    sdnq_post_load_quant(holder, weights_dtype=dtype, **settings)
    if type(holder[0]) is nn.Linear:
        raise ValueError(f"SDNQ left a linear of {linear.in_features} x {linear.out_features} as it was")
    return holder[0]
