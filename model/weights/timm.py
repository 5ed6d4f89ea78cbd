"""timm's Vision Transformer: a Hub folder (`config.json`, `model.safetensors`), or a state dictionary alone.

    cls_token, pos_embed, patch_embed.proj, blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head

The architecture's name and `model_args` in `config.json` determine what the tensors do not: the number of heads, the
GELU (by the error function unless `act_layer` is `gelu_tanh`) and where the norm is. The norm's epsilon is always 1e-6.
timm has no pre-logits any more; old files that hold them are read. (docs/weights.md has the table.)
"""

import json
import math
import re
from typing import Any

import torch

from model.variants import SHAPES, Shape
from model.weights.containers.state import PYTORCH, metadata_of, read_json, read_state, write_json, write_state
from model.weights.export import config_of
from model.weights.translation.geometry import entries_of, joined, settings_of_tensors, zeros
from model.weights.translation.naming import Naming
from model.weights.translation.preprocessing import from_timm, to_timm
from model.weights.weights import Files, LazyTensor, LazyTensors, Weights, WeightsError, join

NAMING = Naming(
    library="timm",
    block="blocks.{}.",
    blocks={
        "norm1": "norm1",
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    layers={"embedding.projection": "patch_embed.proj", "norm": "norm", "pre_logits": "pre_logits.fc", "head": "head"},
    tensors={"embedding.class_token": "cls_token", "embedding.position": "pos_embed"},
)
SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
PLAIN = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge|giant|gigantic)_patch\d+_\d+(?:_miil)?")
POOLED = re.compile(r"vit_(base|large|huge|giant|giantopt|so400m)_patch\d+_(siglip_)?gap_\d+")
TANH = re.compile(r"vit_(base_patch32_siglip|large_patch16_siglip_gap_512|so400m_patch16|giantopt_patch16)\w*")
GELUS = {"gelu": "erf", "gelu_tanh": "tanh"}
ALONE: dict[str, Any] = {"heads": None, "gelu": "erf", "norm_eps": 1e-6}  # of a file without config.json
INERT = {  # arguments that change no logit in evaluation
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("weight_init", "fix_init", "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "num_classes"),
    *("qkv_bias", "no_embed_class", "dynamic_img_size", "strict_img_size", "pretrained", "device", "dtype"),
}
REQUIRED = {  # arguments whose only values here are timm's defaults
    "in_chans": (3,),
    **dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm"), (False,)),
    **dict.fromkeys(("pre_norm", "pool_include_prefix", "dynamic_img_pad"), (False,)),
    **dict.fromkeys(("proj_bias", "final_norm"), (True,)),
    **dict.fromkeys(("init_values", "embed_norm_layer"), (None,)),
    "pos_embed": ("learn",),
    "reg_tokens": (0,),
    "norm_layer": (None, "layernorm"),
}


CONFIG = "config.json"
IN_FILE = "timm_config"
"""Key of a safetensors file's metadata under which `write` keeps config.json, if the file stands alone."""


def recognise(url: str, files: Files) -> bool:
    """Whether a folder's config.json names an architecture of timm, or a file may hold a state dictionary."""
    if not files.is_folder(url):
        return url.endswith((".safetensors", *PYTORCH))
    return files.exists(join(url, CONFIG)) and "architecture" in read_json(join(url, CONFIG), files)


def read(url: str, files: Files) -> Weights:
    """A Hub folder, or a state dictionary. Of a lone PyTorch file, sizes of known variants determine the heads.

    Raises:
        WeightsError: damaged, or not exactly our network: an architecture, an argument or a tensor has no place there.
    """
    folder = files.is_folder(url)
    config = read_json(join(url, CONFIG), files) if folder else _config_in(url, files)
    tensors = to_ours(read_state(url, files), url)
    beyond = architecture_settings(config, url) if config else dict(ALONE)
    settings = settings_of_tensors(tensors, beyond.pop("heads"), url)
    if beyond.get("pool", settings["pool"]) != settings["pool"]:
        raise WeightsError(
            f"{url}: config.json says pool {beyond['pool']!r}, and the tensors are of {settings['pool']!r}"
        )
    about = {"format": "timm"} | ({"architecture": config["architecture"]} if config else {})
    return Weights(
        settings | beyond,
        LazyTensors(tensors),
        from_timm(config.get("pretrained_cfg", config), settings["image_size"], url),
        _class_names(config, settings.get("num_classes")),
        about,
    )


def write(weights: Weights, url: str, files: Files, *, dtype: torch.dtype) -> None:
    """Writes a Hub folder; to a name that ends in .safetensors, .pth, .pt or .bin, the state dictionary alone.

    Raises:
        WeightsError: the model has pre-logits or another epsilon; for a PyTorch file, which has no settings, also
            another GELU, other preprocessing, or heads that its sizes do not imply.
    """
    settings = weights.settings
    if settings.get("representation_size"):
        raise WeightsError(
            "timm's Vision Transformer has no pre-logits: the layer pre_logits and the head that reads it would be "
            "lost (--drop pre_logits drops the layer and makes a new head of zeros)"
        )
    if settings.get("norm_eps", 1e-6) != 1e-6:
        raise WeightsError(f"timm's norm has the epsilon 1e-6, and config.json cannot say {settings['norm_eps']}")
    if url.endswith(PYTORCH):
        _require_sayable(weights, url)
    config = _config_of(weights, url)
    tensors = {NAMING.theirs(name): entry for name, entry in entries_of(weights.tensors).items()}
    if url.endswith((".safetensors", *PYTORCH)):
        write_state(
            LazyTensors(tensors), url, files, dtype=dtype, metadata={"format": "pt", IN_FILE: json.dumps(config)}
        )
        return
    write_state(LazyTensors(tensors), join(url, "model.safetensors"), files, dtype=dtype, metadata={"format": "pt"})
    write_json(config, join(url, CONFIG), files)


def architecture_settings(config: dict[str, Any], url: str) -> dict[str, Any]:
    """What `config.json` says beyond the tensors: `heads`, `gelu`, `norm_eps` and `pool`.

    Raises:
        WeightsError: the architecture or an argument has no place in our network.
    """
    name, args = str(config.get("architecture")), dict(config.get("model_args") or {})
    plain, pooled = PLAIN.fullmatch(name), POOLED.fullmatch(name)
    if not (plain or pooled):
        raise WeightsError(
            f"{url}: architecture {name!r} of config.json is no plain Vision Transformer of timm "
            "(vit_SIZE_patchP_R, vit_SIZE_patchP_gap_R, deit_SIZE_patchP_R)"
        )
    pool = args.pop("global_pool", None) or ("avg" if pooled else "token")
    said = config.get("global_pool") or pool
    class_token = args.pop("class_token", None)
    class_token = not pooled if class_token is None else class_token
    fc_norm = args.pop("fc_norm", None)
    fc_norm = (pool == "avg" and not pooled) if fc_norm is None else fc_norm
    if said != pool or pool not in ("token", "avg"):
        raise WeightsError(
            f"{url}: global_pool = {said!r}: only 'token' and 'avg' can be held, and model_args must say it"
        )
    if pool == "avg" and (class_token or fc_norm):
        raise WeightsError(
            f"{url}: global_pool = 'avg' with class_token = {bool(class_token)} and fc_norm = {bool(fc_norm)}: this "
            "project's average pooling has no class token, and its norm is before the pooling; only "
            "class_token = fc_norm = False is equal"
        )
    if pool == "token" and (fc_norm or not class_token):
        raise WeightsError(f"{url}: global_pool = 'token' with class_token = {class_token} and fc_norm = {fc_norm}")
    act = args.pop("act_layer", None) or ("gelu_tanh" if TANH.fullmatch(name) else "gelu")
    if act not in GELUS:
        raise WeightsError(f"{url}: act_layer = {act!r}: only {' and '.join(GELUS)} can be held")
    heads = args.pop("num_heads", None) or _heads(name)
    for key, value in args.items():
        if key not in INERT and value not in REQUIRED.get(key, ()):
            raise WeightsError(
                f"{url}: model_args.{key} = {value!r} of config.json has no place in this project's network"
            )
    return {"heads": heads, "gelu": GELUS[act], "norm_eps": 1e-6, "pool": "gap" if pool == "avg" else "token"}


def _heads(name: str) -> int:
    size = name.split("_")[1]
    if size == "base" and "_gap_" in name and "siglip" not in name:
        return 16  # timm's vit_base_patch16_gap_224 differs from its other base models
    return next((SHAPES[letter].heads for letter, own in SIZES.items() if own == size), 16)


def to_ours(state: dict[str, LazyTensor], url: str) -> dict[str, LazyTensor]:
    """timm's tensors by our names: without a qkv bias it is zeros; without a class position, that is zeros.

    Raises:
        WeightsError: a tensor has no place in our network.
    """
    tensors = NAMING.ours(state, url)
    for name, kernel in list(tensors.items()):
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".attention.qkv.weight") and bias not in tensors:
            tensors[bias] = zeros(kernel.shape[:1], kernel.dtype)
    position = tensors.get("embedding.position")
    if "embedding.class_token" in tensors and position is not None and len(position.shape) == 3:
        patches, width = position.shape[1:]
        if math.isqrt(patches) ** 2 == patches:  # no_embed_class: positions are added to the patches alone
            tensors["embedding.position"] = joined([zeros((1, 1, width), position.dtype), position], 1, url)
    return tensors


def _config_of(weights: Weights, url: str) -> dict[str, Any]:
    """config.json: the nearest architecture of timm's, and as arguments everything in which the model may differ."""
    config = config_of(weights, url)
    letter, classes = config.name.removeprefix("ViT-").partition("/")[0], weights.settings.get("num_classes", 0)
    pool = "avg" if config.pool == "gap" else "token"
    ratio = config.mlp_dim / config.width
    while int(config.width * ratio) < config.mlp_dim:  # timm rounds down
        ratio = math.nextafter(ratio, math.inf)
    args = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": ratio,
        "class_token": config.pool == "token",
        "global_pool": pool,
        "fc_norm": False,
        "act_layer": "gelu_tanh" if config.gelu == "tanh" else "gelu",
    }
    return {
        "architecture": f"vit_{SIZES[letter]}_patch{14 if letter == 'H' else 16}_224",
        "num_classes": classes,
        "num_features": config.width,
        "global_pool": pool,
        **({} if weights.class_names is None else {"label_names": list(weights.class_names)}),
        "model_args": args,
        "pretrained_cfg": to_timm(weights.preprocessing)
        | {"num_classes": classes, "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"},
    }


def _require_sayable(weights: Weights, url: str) -> None:
    """Raises `WeightsError` for what a PyTorch file, which has no settings, would lose."""
    config, normal = config_of(weights, url), weights.preprocessing
    lost = []
    if config.gelu != "erf":
        lost.append(f"gelu = {config.gelu!r}")
    if Shape(config.depth, config.width, config.mlp_dim, config.heads) not in SHAPES.values():
        lost.append(f"heads = {config.heads}")
    if normal.mean != (0.5, 0.5, 0.5) or normal.std != (0.5, 0.5, 0.5):
        lost.append("mean and std")
    if lost:
        raise WeightsError(
            f"a PyTorch file has no settings, and {', '.join(lost)} would be lost; write the folder (a DST without "
            "suffix) or a .safetensors file"
        )


def _class_names(config: dict[str, Any], num_classes: int | None) -> tuple[str, ...] | None:
    labels = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    if isinstance(labels, dict):
        labels = [labels.get(str(number)) for number in range(len(labels))]
    if not isinstance(labels, list) or len(labels) != num_classes or not all(isinstance(x, str) for x in labels):
        return None
    return tuple(labels)


def _config_in(url: str, files: Files) -> dict[str, Any]:
    text = metadata_of(url, files).get(IN_FILE)
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{url}: {IN_FILE} of the file's metadata is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{url}: {IN_FILE} of the file's metadata is not a JSON object")
    return config
