"""Attention by products on a CPU in bf16, against exact attention and against PyTorch's own fused kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import model
from model.layers import attention as module
from model.layers import cpu_bfloat16
from model.layers.attention import LONGEST, BackwardByProducts, attention
from model.layers.recompute import CheckpointMode

needs_bf16 = pytest.mark.skipif(not cpu_bfloat16.CPU_HAS_BFLOAT16_PRODUCTS, reason="a CPU without bf16 products")
# (queries, keys): square; only the class token, as in the last block; a length that is no multiple of a tile
LENGTHS = [(64, 64), (1, 197), (257, 257)]


def operands(queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As in the model: views of one tensor, with scores of about 10, at which rounding is visible."""
    torch.manual_seed(0)
    packed = (2 * torch.randn(2, keys, 3, 3, 80)).bfloat16().to(dtype).requires_grad_()
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    q.retain_grad(), k.retain_grad(), v.retain_grad()
    return q[:, :, :queries], k, v


def gradients(function: object, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of q, k and v, in float64."""
    q, k, v = operands(queries, keys, dtype)
    o = function(q, k, v)  # type: ignore[operator]
    torch.manual_seed(1)
    found = torch.autograd.grad(o, (q, k, v), torch.randn(o.shape).bfloat16().to(dtype))
    return [x.detach().double() for x in (o, *found)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_as_exact_as_the_fused_kernel(queries: int, keys: int) -> None:
    exact = gradients(F.scaled_dot_product_attention, queries, keys, torch.float64)
    fused = gradients(F.scaled_dot_product_attention, queries, keys, torch.bfloat16)
    ours = gradients(BackwardByProducts.apply, queries, keys, torch.bfloat16)
    assert torch.equal(ours[0], fused[0]), "the forward pass is the fused kernel"
    for mine, truth in zip(ours[1:], exact[1:], strict=True):
        assert mine.shape == truth.shape
        assert error(mine, truth) < 2 * 2**-8, "two units of bf16; with scores rounded to bf16 it is more"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_and_evaluation_use_the_fused_kernel(dtype: torch.dtype) -> None:
    for found, expected in zip(
        gradients(attention, 33, 33, dtype),
        gradients(F.scaled_dot_product_attention, 33, 33, dtype),
        strict=True,
    ):
        assert torch.equal(found, expected)


@needs_bf16
def test_products_are_used_when_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    apply = BackwardByProducts.apply
    monkeypatch.setattr(module.BackwardByProducts, "apply", lambda *x: calls.append(x[1].shape[2]) or apply(*x))
    for keys, grad in ((9, True), (9, False), (LONGEST, True), (LONGEST + 1, True)):
        with torch.set_grad_enabled(grad):
            attention(*operands(1, keys, torch.bfloat16))
    assert calls == [9, LONGEST]


@needs_bf16
@pytest.mark.parametrize(
    ("mode", "compiled"),
    [
        ("selective", False),
        ("full", False),
        pytest.param("selective", True, marks=pytest.mark.servers),
    ],
)
def test_compiled_and_checkpointed_it_is_the_same(mode: CheckpointMode, compiled: bool) -> None:
    found = []
    for changed in (False, True):
        torch.manual_seed(0)
        vit = model.create_model("Ti/16", image_size=64, depth=2, num_classes=5).bfloat16()
        torch.nn.init.normal_(vit.head.weight, std=0.05)
        if changed:
            model.checkpoint_blocks(vit, mode)
        if changed and compiled:
            model.compile_blocks(vit)
        images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        vit(images).float().square().sum().backward()
        found.append([p.grad.double() for p in vit.parameters() if p.grad is not None])
    for changed_, plain in zip(*found[::-1], strict=True):
        assert error(changed_, plain) <= (0.03 if compiled else 0)
