"""Which parameters weight decay applies to."""

from torch import nn
from torch.nn.modules.conv import _ConvNd


def decay_mask(model: nn.Module) -> dict[str, bool]:
    """By parameter name: True for kernels; False for biases, norms, class token, position embeddings (authors' code).

    A kernel is the weight of a linear or convolutional layer. The number of dimensions does not identify it: ZeRO-3
    hides it, and position embeddings have as many.
    """
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    return {name: name in kernels for name, _ in model.named_parameters()}
