"""Vision Transformers: the network, its objectives, and its arithmetic. Depends on torch alone."""

from model.checkpointing import checkpoint_blocks
from model.flops import forward_macs, training_flops
from model.variants import ViTConfig, vit_config
from model.vit import VisionTransformer, compile_blocks, create_model
from model.weight_decay import decay_mask

__all__ = [
    "ViTConfig",
    "VisionTransformer",
    "checkpoint_blocks",
    "compile_blocks",
    "create_model",
    "decay_mask",
    "forward_macs",
    "training_flops",
    "vit_config",
]
