"""Parameters, FLOPs and activation memory of a model, as numbers and as text."""

import dataclasses
from typing import Any

import torch

from model.cost.flops import activation_bytes, forward_macs, training_flops
from model.layers.recompute import MODES
from model.variants import ViTConfig
from model.vit import VisionTransformer

PRECISIONS = {"bf16": 2, "float32": 4}  # bytes per element of an activation


def summarize(config: ViTConfig) -> dict[str, Any]:
    """The costs of the model `config`, as plain numbers. Allocates no weights.

    Keys: `config` (all fields), `parameters` (number by part of the model, and their `total`), `forward_macs` and
    `training_flops` (per image), `activation_bytes` (per image, by precision and checkpointing mode).
    """
    with torch.device("meta"):
        model = VisionTransformer(config)
    parameters = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()
    }
    return {
        "config": dataclasses.asdict(config),
        "parameters": parameters | {"total": sum(parameters.values())},
        "forward_macs": forward_macs(config),
        "training_flops": training_flops(config),
        "activation_bytes": {
            precision: {mode: activation_bytes(config, mode, size) for mode in MODES}
            for precision, size in PRECISIONS.items()
        },
    }


def render(summary: dict[str, Any]) -> str:
    """A summary as text for a terminal."""
    config = ViTConfig(**summary["config"])
    lines = [
        f"{config.name} at {config.image_size} x {config.image_size} pixels, {config.num_classes:,} classes",
        f"  {config.depth} blocks, width {config.width}, MLP {config.mlp_dim}, {config.heads} heads; "
        f"{config.grid} x {config.grid} patches of {config.patch_size} x {config.patch_size} pixels",
        f"  pool {config.pool}, dropout {config.dropout:g}, GELU {config.gelu}, norm epsilon {config.norm_eps:g}",
        "",
        "parameters",
    ]
    lines += [f"  {part:<12}{count:>16,}" for part, count in summary["parameters"].items()]
    lines += [
        "",
        "arithmetic per image",
        f"  {'forward':<12}{summary['forward_macs'] / 1e9:>16,.3f} GMACs",
        f"  {'training':<12}{summary['training_flops'] / 1e9:>16,.2f} GFLOPs (6 x MACs: forward and backward)",
        "",
        "activation memory per image, by activation checkpointing (MiB)",
        "  " + " " * 12 + "".join(f"{mode:>16}" for mode in MODES),
    ]
    for precision, by_mode in summary["activation_bytes"].items():
        lines.append(f"  {precision:<12}" + "".join(f"{by_mode[mode] / 2**20:>16,.1f}" for mode in MODES))
    return "\n".join(lines)
