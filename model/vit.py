"""The Vision Transformer ("An Image is Worth 16x16 Words", ICLR 2021).

    images -> patches -> linear projection -> + class token -> + position embeddings
           -> depth x { z += attention(norm(z)); z += mlp(norm(z)) } -> norm -> class token -> head

Shapes in comments: B images, N tokens, D width, H heads, d = D / H, K classes. Details that the paper omits follow the
authors' code, because its published weights assume them: biases, and by default LayerNorm epsilon 1e-6 and tanh GELU.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.attention import attention
from model.layers.dense import Dense, PatchProjection, lecun_normal_, xavier_uniform_thirds_
from model.layers.dropout import SampleDropout, fold_in
from model.layers.position import resize_position_embeddings
from model.layers.recompute import CheckpointMode, checkpointed, require_mode
from model.variants import ViTConfig, grid_side, vit_config


class PatchEmbedding(nn.Module):
    """Images (B, 3, height, width) -> tokens (B, N, D): patches, class token in front, position embeddings added."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_size, self.grid, self.num_prefix_tokens = config.patch_size, config.grid, config.num_prefix_tokens
        self.projection = PatchProjection(config.patch_size, config.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "token" else None
        self.position = nn.Parameter(torch.empty(1, config.num_tokens, config.width).normal_(std=0.02))
        self.dropout = SampleDropout(config.dropout, place=0)

    def forward(self, images: Tensor, seeds: Tensor | None) -> Tensor:
        grid = (grid_side(images.shape[2], self.patch_size), grid_side(images.shape[3], self.patch_size))
        images = images.to(self.projection.weight.dtype)
        x = self.projection(images).flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h * w, D), row by row
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.dropout(x + self._position_at(grid), seeds)

    def _position_at(self, grid: tuple[int, int]) -> Tensor:
        if grid == (self.grid, self.grid):
            return self.position
        return resize_position_embeddings(self.position, grid, self.num_prefix_tokens)


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d)) v in each head (ViT paper, Appendix A)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Dense(width, 3 * width, kernel=xavier_uniform_thirds_)
        self.out = Dense(width, width, kernel=nn.init.xavier_uniform_)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """x: (B, N, D). The `first` tokens attend to all tokens (None: all tokens do)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        q = q[:, :, :first]
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))  # heads side by side again: (B, N or first, D)


class MLP(nn.Module):
    """Two dense layers with a GELU between them. The dropout layers are numbered from `first_place`."""

    def __init__(self, config: ViTConfig, first_place: int) -> None:
        super().__init__()
        width, hidden, dropout = config.width, config.mlp_dim, config.dropout
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        tiny = partial(nn.init.normal_, std=1e-6)
        self.fc1 = Dense(width, hidden, kernel=nn.init.xavier_uniform_, bias=tiny)
        self.fc2 = Dense(hidden, width, kernel=nn.init.xavier_uniform_, bias=tiny)
        self.dropout1 = SampleDropout(dropout, first_place)
        self.dropout2 = SampleDropout(dropout, first_place + 1)

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        x = self.dropout1(F.gelu(self.fc1(x), approximate=self.approximate), seeds)
        return self.dropout2(self.fc2(x), seeds)


class EncoderBlock(nn.Module):
    """Attention, then MLP; each reads the normalised tokens and adds to the tokens (ViT paper, equations 2 and 3).

    Dropout follows every dense layer except the qkv projection (Appendix B.1). Attention probabilities have no dropout.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.heads)
        self.dropout = SampleDropout(config.dropout, place=0)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config, first_place=1)

    def forward(
        self, x: Tensor, seeds: Tensor | None, checkpointing: CheckpointMode = "none", first: int | None = None
    ) -> Tensor:
        """Returns the first `first` tokens of the block's output (None: all). The others are only attended to.

        x: (B, N, D). seeds: (B,) int64, of this block; None if dropout is inactive.
        """
        return checkpointed(checkpointing, self._layers, x, seeds, first)

    def _layers(self, x: Tensor, seeds: Tensor | None, first: int | None) -> Tensor:
        x = x[:, :first] + self.dropout(self.attention(self.norm1(x), first), seeds)
        return x + self.mlp(self.norm2(x), seeds)


class VisionTransformer(nn.Module):
    """A Vision Transformer, initialised as in the authors' code, with random numbers of torch's generator."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing: CheckpointMode = "none"  # set by checkpoint_blocks
        width, head_inputs = config.width, config.representation_size or config.width
        self.embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.pre_logits = Dense(width, head_inputs, kernel=lecun_normal_) if config.representation_size else None
        constant = partial(nn.init.constant_, val=config.head_bias)
        self.head = Dense(head_inputs, config.num_classes, kernel=nn.init.zeros_, bias=constant)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Logits (B, K), of the parameters' dtype.

        Args:
            images: (B, 3, height, width), floating point in [-1, 1]; cast to the parameters' dtype. Height and width
                may be any multiples of the patch size; for another size than the configured one, position embeddings
                are resized on the fly.
            seeds: (B,) int64, one per sample. A sample's dropout masks depend only on its seed. None draws seeds from
                torch's generator. Unused in evaluation and without dropout.

        Raises:
            ValueError: the patches do not tile the images.
        """
        return self.head(self.features(images, seeds))

    def features(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The input of the head, (B, representation_size or D). Arguments as in `forward`."""
        if not self.training or self.config.dropout == 0:
            seeds = None
        elif seeds is None:
            seeds = torch.randint(2**63 - 1, (images.shape[0],), device=images.device)
        x = self.embedding(images, seeds)
        for index, block in enumerate(self.blocks):
            # Only the class token of the last block is used. Training does not compute the other tokens to the end,
            # which saves 3/4 of a block. Evaluation computes them, so that they can be inspected.
            used = 1 if self.training and self.config.pool == "token" and index == len(self.blocks) - 1 else None
            x = block(x, None if seeds is None else fold_in(seeds, index), self.checkpointing, used)
        # LayerNorm acts on each token separately, so the class token can be selected before it.
        x = self.norm(x[:, 0]) if self.config.pool == "token" else self.norm(x).mean(dim=1)
        return x if self.pre_logits is None else torch.tanh(self.pre_logits(x))


def create_model(name: str, num_classes: int = 1000, image_size: int = 224, **overrides: Any) -> VisionTransformer:
    """The model called `name`, freshly initialised. See `vit_config` for the arguments."""
    return VisionTransformer(vit_config(name, num_classes, image_size, **overrides))


def checkpoint_blocks(model: VisionTransformer, mode: CheckpointMode) -> None:
    """Sets what the encoder blocks keep for the backward pass, starting with the next forward pass.

    Raises `ValueError` for an unknown mode.
    """
    require_mode(mode)
    model.checkpointing = mode


def compile_blocks(model: VisionTransformer) -> None:
    """Compiles the encoder blocks in place, at their first call. All but the last share one small graph.

    Activation checkpointing is part of the graph, so all its modes work. Parameter names do not change.
    """
    for block in model.blocks:
        block.compile()
