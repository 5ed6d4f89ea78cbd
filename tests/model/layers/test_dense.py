"""The dense layer and its initialisations. tests/model/test_vit.py tests the distributions in a whole network."""

import math

import torch
from torch import nn

from model.layers.dense import Dense, lecun_normal_, xavier_uniform_thirds_


def test_a_dense_layer_is_a_linear_layer_with_the_given_initialisation() -> None:
    layer = Dense(3, 2, kernel=nn.init.ones_, bias=lambda bias: nn.init.constant_(bias, 5.0))
    x = torch.arange(24.0).view(2, 4, 3)
    assert torch.equal(layer(x), (x.sum(-1, keepdim=True) + 5.0).expand(2, 4, 2))
    assert not Dense(3, 2, kernel=nn.init.ones_).bias.any()


def test_lecun_normal_is_scaled_to_the_inputs_of_one_output() -> None:
    torch.manual_seed(0)
    weight = lecun_normal_(torch.empty(400, 3, 8, 8))  # a convolution's: 192 inputs
    assert math.isclose(weight.std().item(), 192**-0.5, rel_tol=0.01)
    assert weight.abs().max() <= 2 * 192**-0.5 / 0.8796


def test_the_thirds_of_a_fused_kernel_are_initialised_as_square_kernels() -> None:
    torch.manual_seed(0)
    weight = torch.empty(3 * 64, 64)
    xavier_uniform_thirds_(weight)
    torch.manual_seed(0)
    for third in weight.chunk(3):
        assert torch.equal(third, nn.init.xavier_uniform_(torch.empty(64, 64)))
