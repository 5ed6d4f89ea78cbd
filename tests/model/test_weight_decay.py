import pytest
import torch
from torch import nn

from model import create_model, decay_mask


def test_only_kernels_decay() -> None:
    model = create_model("Ti/8", image_size=16, depth=1, representation_size=4)
    assert decay_mask(model) == {
        "embedding.class_token": False,
        "embedding.position": False,
        "embedding.projection.weight": True,
        "embedding.projection.bias": False,
        "blocks.0.norm1.weight": False,
        "blocks.0.norm1.bias": False,
        "blocks.0.attention.qkv.weight": True,
        "blocks.0.attention.qkv.bias": False,
        "blocks.0.attention.out.weight": True,
        "blocks.0.attention.out.bias": False,
        "blocks.0.norm2.weight": False,
        "blocks.0.norm2.bias": False,
        "blocks.0.mlp.fc1.weight": True,
        "blocks.0.mlp.fc1.bias": False,
        "blocks.0.mlp.fc2.weight": True,
        "blocks.0.mlp.fc2.bias": False,
        "norm.weight": False,
        "norm.bias": False,
        "pre_logits.weight": True,
        "pre_logits.bias": False,
        "head.weight": True,
        "head.bias": False,
    }


@pytest.mark.parametrize("name", ["Ti/16", "H/14"])
def test_every_parameter_is_in_the_mask(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, pool="gap")
    mask = decay_mask(model)
    assert set(mask) == {name for name, _ in model.named_parameters()}
    # 4 kernels per block, the patch projection and the head.
    assert sum(mask.values()) == 4 * len(model.blocks) + 2


def test_kernels_are_recognised_by_their_layer_not_by_their_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for parameter in model.parameters():
        parameter.data = torch.empty(0)  # as ZeRO-3 leaves a partitioned parameter
    assert decay_mask(model) == {"0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False}
