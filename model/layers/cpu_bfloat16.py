"""bf16 matrix products on CPUs without instructions for them.

On such CPUs, PyTorch falls back to plain loops, which for some layouts are a hundred times slower than its float32
product. These functions multiply bf16 operands in float32 and round the result to bf16, as an accelerator's matrix unit
does. Types in memory and rounding of results are the same, and hours become minutes. Devices with bf16 instructions do
not use this file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_HAS_BFLOAT16_PRODUCTS: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def through_float32(x: Tensor) -> bool:
    """Whether products of `x` should be computed in float32."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not CPU_HAS_BFLOAT16_PRODUCTS


class Float32Linear(torch.autograd.Function):
    """x w^T + b on bf16 tensors, computed in float32, forward and backward. Keeps the bf16 operands for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x: (n, inputs), weight: (outputs, inputs), bias: (outputs,) -> (n, outputs)."""
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """d/dx = g w, d/dw = g^T x, d/db = sum of g over rows."""
        x, weight = ctx.saved_tensors
        g = gradients[0].float()
        return (g @ weight.float()).to(x.dtype), (g.t() @ x.float()).to(x.dtype), g.sum(0).to(x.dtype)


def conv2d_in_float32(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A convolution of bf16 tensors, computed in float32."""
    return F.conv2d(x.float(), weight.float(), bias.float(), stride=stride).to(x.dtype)


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention on bf16 tensors, computed in float32."""
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
