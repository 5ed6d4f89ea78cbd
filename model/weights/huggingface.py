"""Hugging Face's Vision Transformer: a folder of `config.json`, `model.safetensors` and `preprocessor_config.json`.

`ViTForImageClassification` has a head on the class token and no pre-logits; `ViTModel` has a pooler (a dense layer and
tanh), which is what pre-logits are, and no head. Names are read in both spellings; the old one is written, because all
versions of transformers read it:

    old    encoder.layer.N.attention.attention.query     attention.output.dense      intermediate.dense, output.dense
    new    layers.N.attention.q_proj                     attention.o_proj            mlp.fc1, mlp.fc2

`config.json` says the GELU and the norm's epsilon. Its defaults (the error function, 1e-12) are not the authors'.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from model.weights.containers.state import read_json, read_state, write_json, write_state
from model.weights.export import config_of
from model.weights.translation.geometry import entries_of, joined, part_of, settings_of_tensors, zeros
from model.weights.translation.naming import Naming
from model.weights.translation.preprocessing import from_huggingface, to_huggingface
from model.weights.weights import Files, LazyTensor, LazyTensors, Weights, WeightsError, join

CLASSIFIER, ENCODER = "ViTForImageClassification", "ViTModel"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
NAMING = Naming(  # in the old spelling, without the prefix `vit.` of a classifier
    library="Hugging Face",
    block="encoder.layer.{}.",
    blocks={
        "norm1": "layernorm_before",
        "attention.q": "attention.attention.query",
        "attention.k": "attention.attention.key",
        "attention.v": "attention.attention.value",
        "attention.out": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    layers={
        "embedding.projection": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "pre_logits": "pooler.dense",
        "head": "classifier",
    },
    tensors={"embedding.class_token": "embeddings.cls_token", "embedding.position": "embeddings.position_embeddings"},
)
OLD_NAMES = {  # new spelling -> old
    r"^layers\.": "encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
GELUS = {
    **dict.fromkeys(("gelu", "gelu_python"), "erf"),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "tanh"),
}
WRITTEN = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
DEFAULT_EPS, DEFAULT_HEADS = 1e-12, 12


def recognise(url: str, files: Files) -> bool:
    """Whether a folder's config.json is of transformers: it names a model type, of any kind, or classes."""
    if not (files.is_folder(url) and files.exists(join(url, CONFIG))):
        return False
    config = read_json(join(url, CONFIG), files)
    return "architecture" not in config and ("model_type" in config or "architectures" in config)


def read(url: str, files: Files) -> Weights:
    """A folder of either class, in either spelling.

    Raises:
        WeightsError: damaged, or not exactly our network: a model type, a setting or a tensor has no place there.
    """
    config = read_json(join(url, CONFIG), files)
    _require_vit(config, url)
    state = read_state(url, files)
    if CLASSIFIER in config.get("architectures", ()):
        # Old files of classifiers may keep the pooler of the encoder that they were made from. It is not used.
        state = {name: entry for name, entry in state.items() if not name.startswith("vit.pooler.")}
    tensors = to_ours(state, url)
    settings = settings_of_tensors(tensors, _number(config, "num_attention_heads", DEFAULT_HEADS, url), url)
    for key, ours in (("num_hidden_layers", "depth"), ("image_size", "image_size"), ("patch_size", "patch_size")):
        said = config.get(key, settings[ours])
        if said not in (settings[ours], [settings[ours]] * 2):
            raise WeightsError(f"{url}: config.json says {key} = {said!r}, and the tensors are of {settings[ours]}")
    act, eps = config.get("hidden_act", "gelu"), config.get("layer_norm_eps", DEFAULT_EPS)
    if not isinstance(act, str) or act not in GELUS:
        raise WeightsError(f"{url}: hidden_act = {act!r} is no GELU by the error function or by tanh")
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise WeightsError(f"{url}: layer_norm_eps = {eps!r} is no positive number below 1")
    settings |= {"gelu": GELUS[act], "norm_eps": float(eps)}
    preprocessor = join(url, PREPROCESSOR)
    said_how = read_json(preprocessor, files) if files.exists(preprocessor) else {}
    return Weights(
        settings,
        LazyTensors(tensors),
        from_huggingface(said_how, settings["image_size"], preprocessor),
        _class_names(config, settings.get("num_classes")),
        {"format": "huggingface", "architecture": next(iter(config.get("architectures") or [ENCODER]))},
    )


def write(weights: Weights, url: str, files: Files, *, dtype: torch.dtype) -> None:
    """Writes a folder: `ViTForImageClassification`, or without a head `ViTModel`, whose pooler holds pre-logits.

    Raises:
        WeightsError: the model has pre-logits and a head, or averages its patches.
    """
    config = config_of(weights, url)
    has_head = "num_classes" in weights.settings
    if config.representation_size is not None and has_head:
        raise WeightsError(
            "Hugging Face has pre-logits in ViTModel (as its pooler) and a head in ViTForImageClassification, and no "
            "class with both: the layer pre_logits and the head that reads it would be lost "
            "(--drop pre_logits drops the layer and makes a new head of zeros)"
        )
    if config.pool != "token":
        raise WeightsError("Hugging Face's Vision Transformer has a class token: average pooling would be lost")
    written: dict[str, Any] = {
        "architectures": [CLASSIFIER if has_head else ENCODER],
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": WRITTEN[config.gelu],
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pooler_output_size": config.representation_size or config.width,
        "pooler_act": "tanh",
    }
    if has_head:
        names = weights.class_names or [f"LABEL_{number}" for number in range(config.num_classes)]
        written["id2label"] = {str(number): name for number, name in enumerate(names)}
        written["label2id"] = {name: number for number, name in enumerate(names)}
    prefix = "vit." if has_head else ""
    tensors = {
        name if name.startswith("classifier.") else prefix + name: entry
        for name, entry in _to_theirs(entries_of(weights.tensors)).items()
    }
    model = join(url, "model.safetensors")
    write_state(LazyTensors(tensors), model, files, dtype=dtype, metadata={"format": "pt"})
    write_json(written, join(url, CONFIG), files)
    write_json(to_huggingface(weights.preprocessing), join(url, PREPROCESSOR), files)


def to_ours(state: Mapping[str, LazyTensor], url: str) -> dict[str, LazyTensor]:
    """Their tensors, in either spelling, by our names; query, key and value fused. A missing qkv bias is zeros.

    Raises:
        WeightsError: a tensor has no place in our network, or query, key or value is missing.
    """
    old = {}
    for name, entry in state.items():
        name = name.removeprefix("vit.")
        for pattern, replacement in OLD_NAMES.items():
            name = re.sub(pattern, replacement, name)
        old[name] = entry
    found = NAMING.ours(old, url)
    tensors = {name: entry for name, entry in found.items() if not re.search(r"\.attention\.[qkv]\.", name)}
    blocks = sorted({name.split(".")[1] for name in found if name.startswith("blocks.")}, key=int)
    for block in (f"blocks.{number}.attention" for number in blocks):
        for kind in ("weight", "bias"):
            parts = [found[name] for letter in "qkv" if (name := f"{block}.{letter}.{kind}") in found]
            if len(parts) == 3:
                tensors[f"{block}.qkv.{kind}"] = joined(parts, 0, url)
            elif parts or kind == "weight":
                raise WeightsError(
                    f"{url}: {block}: {len(parts)} of the three {kind}s of query, key and value are there"
                )
            else:
                kernel = tensors[f"{block}.qkv.weight"]
                tensors[f"{block}.qkv.bias"] = zeros(kernel.shape[:1], kernel.dtype)
    return tensors


def _to_theirs(entries: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    theirs = {}
    for name, entry in entries.items():
        if ".attention.qkv." in name:
            for third, letter in enumerate("qkv"):
                theirs[NAMING.theirs(name.replace("qkv", letter))] = part_of(entry, third, 3)
        else:
            theirs[NAMING.theirs(name)] = entry
    return theirs


def _require_vit(config: Mapping[str, Any], url: str) -> None:
    """Raises `WeightsError` for another model type or class, and for settings without a place in our network."""
    kind, classes = config.get("model_type", "vit"), config.get("architectures") or [ENCODER]
    if kind != "vit" or not isinstance(classes, list) or classes not in ([CLASSIFIER], [ENCODER]):
        known = {"deit": "has a distillation token", "swin": "has stages of falling resolution"}
        known |= {"clip": "has a norm before the encoder and a text model", "beit": "has relative positions"}
        known |= {
            "dinov2": "has layer scale",
            "dinov3_vit": "has rotary positions",
            "vit_hybrid": "begins with a ResNet",
        }
        why = f"; {kind} {known[kind]}" if isinstance(kind, str) and kind in known else ""
        raise WeightsError(
            f"{url}: model_type = {kind!r}, architectures = {classes!r}: only {CLASSIFIER} and {ENCODER} of 'vit' can "
            f"be held{why}"
        )
    for key, only in (("num_channels", 3), ("pooler_act", "tanh")):
        if config.get(key, only) != only:
            raise WeightsError(f"{url}: {key} = {config[key]!r} of config.json: only {only!r} can be held")


def _number(config: Mapping[str, Any], key: str, default: int, url: str) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise WeightsError(f"{url}: {key} = {value!r} of config.json is no positive whole number")
    return value


def _class_names(config: Mapping[str, Any], num_classes: int | None) -> tuple[str, ...] | None:
    labels = config.get("id2label")
    if not isinstance(labels, dict) or num_classes is None or len(labels) != num_classes:
        return None
    names = [labels.get(str(number)) for number in range(num_classes)]
    if not all(isinstance(name, str) for name in names) or names == [f"LABEL_{n}" for n in range(num_classes)]:
        return None
    return tuple(map(str, names))
