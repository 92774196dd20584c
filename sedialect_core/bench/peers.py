"""Other ways to quantize the same layers, emulated exactly, so that a table has something to stand beside."""

import torch
from torch import nn
from torch.nn import functional

from ...kernels import reference


class Fp8Linear(nn.Linear):
    """W8A8: weights and activations in E4M3 with one float32 scale a row, products in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        operand, scale = reference.e4m3_rows(linear.weight.detach())
        self.weight = nn.Parameter(operand * scale.unsqueeze(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x.dtype."""
        operand, scale = reference.e4m3_rows(x.reshape(-1, self.in_features))
        bias = None if self.bias is None else self.bias.float()
        y = functional.linear(operand * scale.unsqueeze(1), self.weight, bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)
