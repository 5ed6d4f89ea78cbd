"""Activation checkpointing does not change results. What it keeps and recomputes is tested in cost/test_flops.py."""

import pytest
import torch
from torch import Tensor, nn

from model import VisionTransformer, checkpoint_blocks, create_model


def tiny_model(dropout: float, mode: str) -> VisionTransformer:
    torch.manual_seed(0)
    model = create_model("Ti/8", image_size=32, depth=3, num_classes=7, dropout=dropout)
    nn.init.normal_(model.head.weight, std=0.1)
    checkpoint_blocks(model, mode)  # type: ignore[arg-type]
    return model


def step(model: VisionTransformer) -> list[Tensor]:
    """Logits and all gradients of one step."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits = model(images, torch.tensor([1, 2, 3]))
    logits.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    return [logits, *gradients]


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_bitwise_those_without_checkpointing(mode: str, dropout: float) -> None:
    for expected, actual in zip(step(tiny_model(dropout, "none")), step(tiny_model(dropout, mode)), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_with_deepspeeds_linear(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more than two dimensions, ZeRO-3's linear function adds the bias in place to a product that is kept."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    results = []
    for each in ("none", mode):
        model = tiny_model(0.2, each)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        results.append(step(model))
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_parameter_names_do_not_change() -> None:
    assert list(tiny_model(0.0, "full").state_dict()) == list(tiny_model(0.0, "none").state_dict())


def test_unseeded_dropout_draws_once_for_both_passes() -> None:
    gradients = []
    for mode in ("none", "full"):
        model = tiny_model(0.3, mode)
        torch.manual_seed(5)
        model(torch.ones(2, 3, 32, 32)).sum().backward()
        gradients.append(model.blocks[0].mlp.fc1.weight.grad)
    assert torch.equal(*gradients)


def test_nothing_is_checkpointed_without_gradients() -> None:
    model = tiny_model(0.0, "full").eval()
    calls = []
    model.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.ones(1, 3, 32, 32))
    assert len(calls) == 1


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'some' is not one of none, selective, full"):
        tiny_model(0.0, "some")
