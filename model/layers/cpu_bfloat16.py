"""bf16 matrix products on CPUs without instructions for them.

There, PyTorch falls back to plain loops, a hundred times slower than its float32 product for some layouts. A product of
bf16 operands in float32, rounded to bf16 at the end, is what an accelerator's matrix unit computes too: same types in
memory, same rounding of results, and hours become minutes. Devices with bf16 products never come here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_HAS_BFLOAT16_PRODUCTS: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def through_float32(x: Tensor) -> bool:
    """Whether products of `x` are better taken in float32."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not CPU_HAS_BFLOAT16_PRODUCTS


class Float32Linear(torch.autograd.Function):
    """x w^T + b with bf16 in, float32 inside, bf16 out, forward and backward. Keeps the bf16 operands for backward."""

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
    """A convolution with bf16 in, float32 inside, bf16 out."""
    return F.conv2d(x.float(), weight.float(), bias.float(), stride=stride).to(x.dtype)


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention with bf16 in, float32 inside, bf16 out."""
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
