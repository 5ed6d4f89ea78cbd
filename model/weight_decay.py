"""Which parameters weight decay applies to."""

from torch import nn
from torch.nn.modules.conv import _ConvNd


def decay_mask(model: nn.Module) -> dict[str, bool]:
    """True for kernels, by parameter name; False for biases, norms, class token, position embeddings (authors' code).

    A kernel is the weight of a linear or convolutional layer: told by the layer, not by the number of dimensions, which
    ZeRO-3 hides and position embeddings share.
    """
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    return {name: name in kernels for name, _ in model.named_parameters()}
