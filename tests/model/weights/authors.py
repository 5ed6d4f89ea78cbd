"""The authors' networks as plain numpy arrays: random ones in their names, other spellings, and the forward pass.

Written from the paper's definitions and from the list of names and shapes, with nothing of the package `model`.
"""

import math

import numpy as np

Arrays = dict[str, np.ndarray]
BLOCK = "Transformer/encoderblock_{}/"


def network(
    *,
    patch: int = 4,
    width: int = 12,
    heads: int = 3,
    mlp: int = 20,
    depth: int = 2,
    grid: int = 3,
    classes: int | None = 5,
    representation: int | None = None,
    pooled: bool = False,
    seed: int = 0,
) -> Arrays:
    """Random arrays in the authors' older spelling."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 0.3, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    d = width // heads
    out = {
        "embedding/kernel": draw(patch, patch, 3, width),
        "embedding/bias": draw(width),
        "Transformer/posembed_input/pos_embedding": draw(1, grid * grid + (not pooled), width),
        "Transformer/encoder_norm/scale": draw(width, mean=1),
        "Transformer/encoder_norm/bias": draw(width),
    }
    if not pooled:
        out["cls"] = draw(1, 1, width)
    for i in range(depth):
        b = BLOCK.format(i)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            out |= {f"{b}{norm}/scale": draw(width, mean=1), f"{b}{norm}/bias": draw(width)}
        for part in ("query", "key", "value"):
            out[f"{b}MultiHeadDotProductAttention_1/{part}/kernel"] = draw(width, heads, d)
            out[f"{b}MultiHeadDotProductAttention_1/{part}/bias"] = draw(heads, d)
        out[f"{b}MultiHeadDotProductAttention_1/out/kernel"] = draw(heads, d, width)
        out[f"{b}MultiHeadDotProductAttention_1/out/bias"] = draw(width)
        out |= {f"{b}MlpBlock_3/Dense_0/kernel": draw(width, mlp), f"{b}MlpBlock_3/Dense_0/bias": draw(mlp)}
        out |= {f"{b}MlpBlock_3/Dense_1/kernel": draw(mlp, width), f"{b}MlpBlock_3/Dense_1/bias": draw(width)}
    inputs = width
    if representation is not None:
        out |= {"pre_logits/kernel": draw(width, representation), "pre_logits/bias": draw(representation)}
        inputs = representation
    if classes is not None:
        out |= {"head/kernel": draw(inputs, classes), "head/bias": draw(classes)}
    return out


def newer(arrays: Arrays) -> Arrays:
    """Each kind of layer numbered from zero."""
    renamed = {"LayerNorm_2": "LayerNorm_1", "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    renamed["MlpBlock_3"] = "MlpBlock_0"
    out = {}
    for name, value in arrays.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        out[name] = value
    return out


def prefixed(arrays: Arrays, prefix: str) -> Arrays:
    return {prefix + name: value for name, value in arrays.items()}


def folded(arrays: Arrays) -> Arrays:
    """The class token contains its position; position embeddings are those of the patches, at the top."""
    out = dict(arrays)
    position = out.pop("Transformer/posembed_input/pos_embedding")
    out["cls"] = out["cls"] + position[:, :1]
    out["pos_embedding"] = position[:, 1:]
    return out


def stacked(arrays: Arrays) -> Arrays:
    """All blocks in one set of arrays with a leading axis."""
    out = {name: value for name, value in arrays.items() if "encoderblock_" not in name}
    leaves = [name.removeprefix(BLOCK.format(0)) for name in arrays if name.startswith(BLOCK.format(0))]
    depth = sum(name.endswith("Dense_0/bias") for name in arrays)
    for leaf in leaves:
        out[f"Transformer/encoderblock/{leaf}"] = np.stack([arrays[BLOCK.format(i) + leaf] for i in range(depth)])
    return out


def bfloat16_bits(arrays: Arrays) -> Arrays:
    """The upper halves of the float32 words: bfloat16, rounded towards zero, as 16-bit words."""
    return {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in arrays.items()}


def from_bfloat16_bits(arrays: Arrays) -> Arrays:
    return {name: (value.astype(np.uint32) << 16).view(np.float32) for name, value in arrays.items()}


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def features(arrays: Arrays, images: np.ndarray, *, gelu: str = "tanh", eps: float = 1e-6) -> np.ndarray:
    """The input of the head, in float64. images: (B, 3, height, width). arrays: in the older spelling."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + eps) * w[f"{name}/scale"] + w[f"{name}/bias"]

    def activation(x: np.ndarray) -> np.ndarray:
        if gelu == "erf":
            return x * 0.5 * (1 + erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    p = w["embedding/kernel"].shape[0]
    b, _, height, width = images.shape
    patches = images.astype(np.float64).reshape(b, 3, height // p, p, width // p, p)
    x = np.einsum("bchpwq,pqcd->bhwd", patches, w["embedding/kernel"]) + w["embedding/bias"]
    x = x.reshape(b, -1, x.shape[-1])
    if "cls" in w:
        x = np.concatenate([np.repeat(w["cls"], b, axis=0), x], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(sum(name.endswith("Dense_0/bias") for name in w)):
        block = BLOCK.format(i)
        attention = f"{block}MultiHeadDotProductAttention_1/"
        y = norm(x, f"{block}LayerNorm_0")
        q, k, v = (
            np.einsum("bnd,dhe->bhne", y, w[f"{attention}{part}/kernel"]) + w[f"{attention}{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bhne,bhme->bhnm", q, k) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("bhnm,bhme->bnhe", scores, v)
        x = x + np.einsum("bnhe,hed->bnd", mixed, w[f"{attention}out/kernel"]) + w[f"{attention}out/bias"]
        y = (
            norm(x, f"{block}LayerNorm_2") @ w[f"{block}MlpBlock_3/Dense_0/kernel"]
            + w[f"{block}MlpBlock_3/Dense_0/bias"]
        )
        x = x + activation(y) @ w[f"{block}MlpBlock_3/Dense_1/kernel"] + w[f"{block}MlpBlock_3/Dense_1/bias"]
    x = norm(x, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in w else x.mean(1)
    return np.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"]) if "pre_logits/kernel" in w else x


def logits(arrays: Arrays, images: np.ndarray, *, gelu: str = "tanh", eps: float = 1e-6) -> np.ndarray:
    """(B, K), in float64."""
    x = features(arrays, images, gelu=gelu, eps=eps)
    return x @ arrays["head/kernel"].astype(np.float64) + arrays["head/bias"].astype(np.float64)
