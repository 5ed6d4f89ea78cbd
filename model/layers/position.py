"""Position embeddings at another resolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embeddings(embed: Tensor, new_grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
    """Resizes the grid part of learned position embeddings in two dimensions and keeps the prefix (ViT paper, 3.2).

    Bilinear with aligned corners: old and new corner patches coincide, and everything between them is interpolated
    linearly. The authors' code computes the same with `scipy.ndimage.zoom(order=1)`. The function is differentiable, so
    a model can be trained at the new size while its parameters keep the old one.

    Args:
        embed: (1, num_prefix_tokens + g * g, D); the grid of g x g patches row by row.
        new_grid: patches down and across, (h, w).
        num_prefix_tokens: number of leading entries without a position in the image (the class token).

    Returns:
        (1, num_prefix_tokens + h * w, D), of the dtype of `embed`; interpolated in float32.

    Raises:
        ValueError: the grid part is not square.
    """
    prefix, grid = embed[:, :num_prefix_tokens], embed[:, num_prefix_tokens:]
    side = math.isqrt(grid.shape[1])
    if side * side != grid.shape[1]:
        raise ValueError(f"position embeddings: {grid.shape[1]} grid entries do not make a square grid")
    image = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, g, g)
    image = F.interpolate(image.float(), size=new_grid, mode="bilinear", align_corners=True).to(embed.dtype)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)
