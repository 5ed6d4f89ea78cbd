"""FLOPs and activation memory of a model, by formula."""

from model.layers.recompute import CheckpointMode, require_mode
from model.variants import ViTConfig, grid_side


def forward_macs(config: ViTConfig, image_size: int | None = None) -> int:
    """Multiply-accumulates of the forward pass, per image of `image_size` pixels a side (default: the configured size).

    Counts only matrix products and attention, as usual: not norms, GELU, softmax and sums.
    """
    patches = grid_side(image_size or config.image_size, config.patch_size) ** 2
    width, head_inputs = config.width, config.representation_size or config.width

    embedding = patches * 3 * config.patch_size**2 * width
    blocks = config.depth * block_macs(config, patches + config.num_prefix_tokens)
    pre_logits = width * (config.representation_size or 0)
    head = head_inputs * config.num_classes
    return embedding + blocks + pre_logits + head


def block_macs(config: ViTConfig, tokens: int, used: int | None = None, *, recomputed: bool = False) -> int:
    """Multiply-accumulates of one encoder block: of its forward pass, or of its recomputation.

    Args:
        tokens: inputs of the block.
        used: how many of its outputs are used (None: all). q, k and v are computed for every token, the rest only for
            the used ones.
        recomputed: count what full checkpointing computes a second time. That is all but the MLP's second product,
            because the backward pass does not read its result; with dropout it is repeated too, because the layer's
            mask is made after it.
    """
    used = tokens if used is None else used
    width, hidden = config.width, config.mlp_dim
    mlp_products = 1 if recomputed and not config.dropout else 2

    projections = (3 * tokens + used) * width**2  # q, k, v; out
    attention = 2 * used * tokens * width  # q k^T, and probabilities times v
    mlp = mlp_products * used * width * hidden
    return projections + attention + mlp


def training_flops(config: ViTConfig, image_size: int | None = None) -> int:
    """Floating-point operations of one training step, per image: 6 for each multiply-accumulate of the forward pass.

    A multiply-accumulate is two operations, and the backward pass costs two forward passes. Not counted: recomputation
    and the optimizer. Not subtracted: what a model that uses only its class token saves in its last block. So the
    number describes the model, not how it is run. This convention reproduces the ViT paper's Table 6.
    """
    return 6 * forward_macs(config, image_size)


def recomputed_flops(config: ViTConfig, checkpointing: CheckpointMode) -> int:
    """Floating-point operations that a training step does a second time for activation checkpointing, per image.

    Only matrix products and attention are counted, so `selective` repeats none. `full` repeats every block, see
    `block_macs`; of the last block of a model that uses only its class token, it repeats what training computes.
    Added to the operations of a training step without checkpointing, this is what the device does.

    Raises:
        ValueError: unknown checkpointing mode.
    """
    require_mode(checkpointing)
    if checkpointing != "full":
        return 0
    tokens = config.num_tokens
    used_of_last = 1 if config.pool == "token" else tokens
    whole_block = block_macs(config, tokens, recomputed=True)
    last_block = block_macs(config, tokens, used_of_last, recomputed=True)
    return 2 * ((config.depth - 1) * whole_block + last_block)


def activation_bytes(config: ViTConfig, checkpointing: CheckpointMode = "none", precision_bytes: int = 2) -> int:
    """Peak memory of one image's activations in a training step, in bytes, at the configured image size.

    Counts what the encoder's blocks keep for the backward pass, plus what the last block needs in addition when its own
    backward pass begins. Assumes that blocks are not compiled, that attention does not store its probabilities, and
    that the allocator's memory is not fragmented. Not counted: parameters, gradients, the input image, and the loss (a
    few numbers per class).

    Args:
        precision_bytes: bytes per element: 2 in bfloat16, 4 in float32.

    Raises:
        ValueError: unknown checkpointing mode.
    """
    require_mode(checkpointing)
    tokens = config.num_tokens
    stream = tokens * config.width * precision_bytes  # one activation as wide as the model
    hidden = tokens * config.mlp_dim * precision_bytes  # one as wide as the MLP
    norm_statistics = 2 * 2 * tokens * 4  # mean and inverse deviation of two norms, float32
    attention_statistics = config.heads * tokens * 4  # log of the softmax's denominator, float32
    masks = tokens * (2 * config.width + config.mlp_dim) if config.dropout else 0  # one byte per element

    # Inputs of norm1, qkv, attention (3), out, norm2, fc1; of GELU and fc2.
    whole_block = 8 * stream + 2 * hidden + norm_statistics + attention_statistics + masks
    match checkpointing:
        case "none":
            kept, recomputed = whole_block, 0
        case "selective":
            # Kept: the block's input and the outputs of qkv (3), attention, out, fc2; of fc1. Recomputed: the outputs
            # of norm1, norm2 and GELU. (norm2's input is recomputed too, but releases the output of out.)
            kept = 7 * stream + hidden + attention_statistics
            recomputed = 2 * stream + hidden + norm_statistics + masks
        case "full":
            kept, recomputed = stream, whole_block - stream

    # The peak adds the gradient of the block's output and the larger of two: the gradient of the GELU's output, or,
    # with dropout, the three 32-bit words per element that become the mask, plus the gradient that waits for the
    # recomputed block.
    hashing = 3 * 4 * tokens * config.mlp_dim + (stream if recomputed else 0) if config.dropout else 0
    at_its_peak = recomputed + stream + max(hidden, hashing)
    if config.pool == "gap":
        return config.depth * kept + at_its_peak
    # Of the last block, training computes only the class token. In every mode, its input, norm1's output, qkv (3) and
    # the gradient of qkv (3) exist at once. The peak of the previous block is as above.
    last = 8 * stream + norm_statistics // 2
    return (config.depth - 1) * kept + (max(last, at_its_peak) if config.depth > 1 else last)
