"""Scaled dot-product attention, softmax(q k^T / sqrt(d)) v, by the fastest kernel of each device.

On a GPU, this is PyTorch's fused attention; also on a CPU in float32 and for evaluation. In bf16 on a CPU with bf16
instructions, PyTorch's fused backward pass does not use these instructions. Five batched products do, and are faster
for as many tokens as an image has (`benchmarks/kernels.py`). A CPU without such instructions computes in float32.

Shapes in comments: B images, H heads, M queries, N keys, d features a head.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.cpu_bfloat16 import attention_in_float32, through_float32

LONGEST = 640  # keys: with more, the products are no faster than the fused backward pass


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (B, H, M, d); k, v: (B, H, N, d) -> (B, H, M, d), of the dtype of `q`."""
    if through_float32(q):
        return attention_in_float32(q, k, v)
    in_bf16_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if in_bf16_on_cpu and torch.is_grad_enabled() and k.shape[2] <= LONGEST:
        result: Tensor = BackwardByProducts.apply(q, k, v)
        return result
    return F.scaled_dot_product_attention(q, k, v)


class BackwardByProducts(torch.autograd.Function):
    """PyTorch's fused attention forward; the backward pass recomputes the M x N matrices, each by one product.

    Keeps what fused attention keeps: q, k, v, the output o and, for each query, the logarithm L of the softmax's
    denominator. With P = exp(q k^T / sqrt(d) - L) and the gradient g of o:

        dv = P^T g     dP = g v^T     dS = P * (dP - rowsum(g * o))     dq = dS k / sqrt(d)     dk = dS^T q / sqrt(d)

    (Dao et al., "FlashAttention", 2022, Appendix B.2.) The exponents are computed in float32, because rounding
    them to bf16 would change P by one percent.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attention`."""
        o: Tensor
        o, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, o, log_sum)  # log_sum: (B, H, M) float32
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        saved = ctx.saved_tensors  # read once: under checkpointing, each access recomputes them
        heads = saved[0].shape[:2]
        q, k, v, o, log_sum, g = (x.flatten(0, 1) for x in (*saved, gradients[0]))  # B * H matrices each
        scale = q.shape[-1] ** -0.5
        p = torch.baddbmm(-log_sum.unsqueeze(-1), q.float(), k.float().transpose(1, 2), alpha=scale).exp_()
        dv = torch.bmm(p.to(g.dtype).transpose(1, 2), g)
        dp = torch.bmm(g, v.transpose(1, 2))
        ds = p.mul_(dp - (g * o).sum(-1, keepdim=True, dtype=torch.float32)).to(q.dtype)
        scaled = partial(torch.baddbmm, q.new_zeros(1, 1, 1), beta=0, alpha=scale)  # rounds once, after scaling
        dq, dk = scaled(ds, k), scaled(ds.transpose(1, 2), q)
        return dq.unflatten(0, heads), dk.unflatten(0, heads), dv.unflatten(0, heads)
