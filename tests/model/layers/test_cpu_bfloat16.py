"""bf16 products through float32, against torch's own bf16 operators and against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import model
from model.layers import cpu_bfloat16
from model.layers.cpu_bfloat16 import Float32Linear


def operands() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = (37, 24), (16, 24), (16,)
    x, weight, bias = (torch.randn(shape).bfloat16().requires_grad_() for shape in shapes)
    return x, weight, bias


def test_results_and_gradients_are_those_of_exact_products_rounded_once() -> None:
    x, weight, bias = operands()
    y = Float32Linear.apply(x, weight, bias)
    g = torch.randn(y.shape).bfloat16()
    y.backward(g)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert y.dtype == torch.bfloat16
    for found, expected in (
        (y, exact),
        (x.grad, g.double() @ weight.double()),
        (weight.grad, g.double().t() @ x.double()),
        (bias.grad, g.double().sum(0)),
    ):
        assert found is not None
        # float32 error can tip a rounding, so one unit of the 8-bit significand
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)


def test_a_whole_model_agrees_with_torchs_own_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vit = model.create_model("ViT-Ti/16", num_classes=5, image_size=32, depth=2).bfloat16()
    torch.nn.init.normal_(vit.head.weight, std=0.05)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    results = []
    for native in (True, False):
        monkeypatch.setattr(cpu_bfloat16, "CPU_HAS_BFLOAT16_PRODUCTS", native)
        vit.zero_grad()
        logits = vit(images)
        logits.float().square().sum().backward()
        results.append((logits.detach().float(), vit.blocks[0].attention.qkv.weight.grad.float().clone()))
    (logits, gradient), (logits32, gradient32) = results
    assert not torch.equal(logits, logits32), "both went the same way"
    assert (logits - logits32).norm() < 0.02 * logits.norm()
    assert (gradient - gradient32).norm() < 0.05 * gradient.norm()
