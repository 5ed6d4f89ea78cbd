"""Vision Transformers: the network, its objectives, and what it costs. Depends on torch, numpy and fsspec."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from model.variants import ViTConfig, vit_config

if TYPE_CHECKING:
    from model.cost.flops import forward_macs, training_flops
    from model.vit import VisionTransformer, checkpoint_blocks, compile_blocks, create_model
    from model.weight_decay import decay_mask
    from model.weights.load import load, load_weights

__all__ = [
    "ViTConfig",
    "VisionTransformer",
    "checkpoint_blocks",
    "compile_blocks",
    "create_model",
    "decay_mask",
    "forward_macs",
    "load",
    "load_weights",
    "training_flops",
    "vit_config",
]

# Names that need torch are imported on first use, so that a job file is checked without waiting for torch.
_WITH_TORCH = {
    "VisionTransformer": "model.vit",
    "checkpoint_blocks": "model.vit",
    "compile_blocks": "model.vit",
    "create_model": "model.vit",
    "decay_mask": "model.weight_decay",
    "forward_macs": "model.cost.flops",
    "load": "model.weights.load",
    "load_weights": "model.weights.load",
    "training_flops": "model.cost.flops",
}


def __getattr__(name: str) -> Any:
    """Imports a name of `model` that needs torch."""
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
