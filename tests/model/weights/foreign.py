"""Files of other libraries, made by code of the tests' own, and the networks' definitions in plain numpy, float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.special import erf

from model.weights.convert import outputs
from model.weights.weights import Weights

Array = NDArray[Any]
WIDTH, DEPTH, MLP, HEADS, PATCH, SIDE, CLASSES = 24, 3, 50, 4, 4, 12, 5
GRID = (SIDE // PATCH) ** 2


def pixels(batch: int = 2, seed: int = 1) -> Array:
    """(batch, 3, SIDE, SIDE) float32, the network's input."""
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 3, SIDE, SIDE)).astype(np.float32)


def timm_state(
    *, token: bool = True, positions: int | None = None, qkv_bias: bool = True, seed: int = 0
) -> dict[str, Array]:
    """A state dictionary by timm's names."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    state = {"cls_token": normal(1, 1, WIDTH)} if token else {}
    state["pos_embed"] = normal(1, GRID + token if positions is None else positions, WIDTH)
    state |= {"patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": normal(WIDTH)}
    layers = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (MLP, WIDTH),
        "mlp.fc2": (WIDTH, MLP),
    }
    for n in range(DEPTH):
        for norm in ("norm1", "norm2"):
            state |= {f"blocks.{n}.{norm}.weight": 1 + normal(WIDTH), f"blocks.{n}.{norm}.bias": normal(WIDTH)}
        for layer, shape in layers.items():
            state[f"blocks.{n}.{layer}.weight"] = normal(*shape)
            if qkv_bias or layer != "attn.qkv":
                state[f"blocks.{n}.{layer}.bias"] = normal(shape[0])
    state |= {"norm.weight": 1 + normal(WIDTH), "norm.bias": normal(WIDTH)}
    return state | {"head.weight": normal(CLASSES, WIDTH), "head.bias": normal(CLASSES)}


def timm_config(architecture: str = "vit_base_patch16_224", **args: Any) -> dict[str, Any]:
    """A Hub folder's config.json for `timm_state`."""
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return {
        "architecture": architecture,
        "num_classes": CLASSES,
        "num_features": WIDTH,
        "model_args": sizes | {"mlp_ratio": MLP / WIDTH} | args,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": CLASSES,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def huggingface_state(*, new: bool = False, pooler: int | None = None, **timm: Any) -> dict[str, Array]:
    """`timm_state` by Hugging Face's names, old or new. With `pooler` features, it is a ViTModel."""
    state, prefix = timm_state(**timm), "" if pooler else "vit."
    old = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    now = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    inner = (now if new else old) | {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    thirds = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    found = {}
    for name, array in state.items():
        if name.startswith("blocks."):
            _, n, layer, *rest = name.replace("attn.", "attn@").replace("mlp.", "mlp@").split(".")
            layer, block = layer.replace("@", "."), f"{prefix}{'layers' if new else 'encoder.layer'}.{n}"
            if layer == "attn.qkv":
                for third, part in zip(thirds, np.split(array, 3), strict=True):
                    found[f"{block}.attention.{third}.{rest[0]}"] = np.ascontiguousarray(part)
            else:
                found[f"{block}.{inner[layer]}.{rest[0]}"] = array
    layers = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for ours, theirs in layers.items():
        found |= {f"{prefix}{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    found |= {f"{prefix}embeddings.cls_token": state["cls_token"]}
    found |= {f"{prefix}embeddings.position_embeddings": state["pos_embed"]}
    if pooler is None:
        return found | {"classifier.weight": state["head.weight"], "classifier.bias": state["head.bias"]}
    rng = np.random.default_rng(9)
    found["pooler.dense.weight"] = (0.3 * rng.standard_normal((pooler, WIDTH))).astype(np.float32)
    return found | {"pooler.dense.bias": rng.standard_normal(pooler).astype(np.float32)}


def huggingface_config(architecture: str = "ViTForImageClassification", **keys: Any) -> dict[str, Any]:
    """A folder's config.json for `huggingface_state`."""
    config: dict[str, Any] = {"architectures": [architecture], "model_type": "vit", "hidden_size": WIDTH}
    config |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": MLP}
    config |= {"image_size": SIDE, "patch_size": PATCH, "id2label": {str(n): f"class {n}" for n in range(CLASSES)}}
    return config | keys


def folder(path: Path, config: dict[str, Any], state: dict[str, Array], **others: dict[str, Any]) -> str:
    """A Hub folder; `others` are more JSON files by name."""
    path.mkdir()
    for name, content in ({"config": config} | others).items():
        (path / f"{name}.json").write_text(json.dumps(content))
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def gelu(x: Array, kind: str) -> Array:
    """x Phi(x): by the error function, or the approximation by tanh (Hendrycks and Gimpel, 2016)."""
    if kind == "erf":
        return x * (1 + erf(x / np.sqrt(2))) / 2
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def features(state: dict[str, Array], images: Array, *, kind: str, eps: float = 1e-6, heads: int = HEADS) -> Array:
    """What timm's network gives to its head, by the definition: (B, D) float64. `state` has timm's names."""
    s = {name: array.astype(np.float64) for name, array in state.items()}
    kernel = s["patch_embed.proj.weight"]
    patch, width = kernel.shape[2], len(kernel)
    side = images.shape[2] // patch
    cut = images.astype(np.float64).reshape(len(images), 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    x = cut.reshape(len(images), side * side, -1) @ kernel.reshape(width, -1).T + s["patch_embed.proj.bias"]
    if "cls_token" in s:
        token = np.repeat(s["cls_token"], len(x), 0)
        if s["pos_embed"].shape[1] == side * side:
            x = np.concatenate([token, x + s["pos_embed"]], 1)
        else:
            x = np.concatenate([token, x], 1) + s["pos_embed"]
    else:
        x = x + s["pos_embed"]
    for n in range(len({name.split(".")[1] for name in s if name.startswith("blocks.")})):

        def dense(y: Array, layer: str, block: str = f"blocks.{n}") -> Array:
            return y @ s[f"{block}.{layer}.weight"].T + s.get(f"{block}.{layer}.bias", 0)

        def norm(y: Array, layer: str, block: str = f"blocks.{n}") -> Array:
            return layer_norm(y, s[f"{block}.{layer}.weight"], s[f"{block}.{layer}.bias"], eps)

        q, k, v = np.split(dense(norm(x, "norm1"), "attn.qkv"), 3, -1)
        mixed = []
        for head in np.split(np.arange(width), heads):
            scores = q[..., head] @ k[..., head].transpose(0, 2, 1) / np.sqrt(width // heads)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[..., head])
        x = x + dense(np.concatenate(mixed, -1), "attn.proj")
        x = x + dense(gelu(dense(norm(x, "norm2"), "mlp.fc1"), kind), "mlp.fc2")
    x = layer_norm(x, s["norm.weight"], s["norm.bias"], eps)
    return x[:, 0] if "cls_token" in s else x.mean(1)


def logits(state: dict[str, Array], images: Array, *, kind: str, eps: float = 1e-6, heads: int = HEADS) -> Array:
    """timm's logits by the definition: (B, K) float64."""
    head = {name: array.astype(np.float64) for name, array in state.items() if name.startswith("head.")}
    return features(state, images, kind=kind, eps=eps, heads=heads) @ head["head.weight"].T + head["head.bias"]


def ours(weights: Weights, images: Array) -> Array:
    """Our network's logits (B, K), or without a head its features (B, D), for normalised images."""
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (weights.preprocessing.mean, weights.preprocessing.std))
    found: Array = outputs(weights, torch.from_numpy(images * std + mean), torch.float32)[-1].numpy()
    return found


def close(found: Array, wanted: Array) -> bool:
    """Whether numbers are equal to 1e-5 x the largest."""
    return bool(np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())
