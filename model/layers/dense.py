"""Dense layers and the patch projection, each created together with its initialisation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.layers.cpu_bfloat16 import Float32Linear, conv2d_in_float32, through_float32

Initializer = Callable[[Tensor], object]


class Dense(nn.Linear):
    """A linear layer whose initialisation is an argument, instead of torch's default."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Initializer, bias: Initializer = nn.init.zeros_) -> None:
        self.initializers = (kernel, bias)  # set first: the base class's constructor calls reset_parameters
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        kernel, bias = self.initializers
        kernel(self.weight)
        bias(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        # As a matrix: with more dimensions, the linear function that DeepSpeed uses under ZeRO-3 adds the bias in
        # place to a product that selective checkpointing has kept, and the second pass would add it again.
        rows = x.flatten(0, -2)
        if through_float32(rows):
            return Float32Linear.apply(rows, self.weight, self.bias).unflatten(0, x.shape[:-1])
        return super().forward(rows).unflatten(0, x.shape[:-1])


class PatchProjection(nn.Conv2d):
    """Cuts the image into P x P patches and projects each one linearly to D features: a convolution of stride P."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__(3, width, kernel_size=patch_size, stride=patch_size)

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if through_float32(x):
            return conv2d_in_float32(x, self.weight, self.bias, self.stride[0])  # type: ignore[arg-type]
        return super().forward(x)


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fills with a normal distribution of variance 1 / fan_in, truncated at two standard deviations (flax's default).

    Truncation multiplies the standard deviation by 0.8796, so the distribution to truncate is that much wider.
    """
    fan_in = weight[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.no_grad()
def xavier_uniform_thirds_(weight: Tensor) -> None:
    """Initialises the fused qkv kernel (3D, D) as three projections D -> D, not as one projection D -> 3D."""
    for third in weight.chunk(3):
        nn.init.xavier_uniform_(third)
