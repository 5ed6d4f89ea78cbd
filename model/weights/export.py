"""Our folder of a trained model.

    model.safetensors    the tensors, by the names of `VisionTransformer.state_dict()`
    model.json           every setting of the architecture, preprocessing, class names, provenance; size and SHA-256 of
                         model.safetensors. It is written last and makes the folder a model.

The file model.safetensors alone is a model, too: its metadata repeats settings and preprocessing.
"""

import dataclasses
import json
import os
from typing import Any

import torch

from model.variants import ModelConfigError, ViTConfig, vit_config
from model.weights.containers.safetensors import read_safetensors, write_safetensors
from model.weights.weights import (
    Files,
    LazyTensors,
    Preprocessing,
    Weights,
    WeightsError,
    join,
    reporting,
)

TENSORS, SETTINGS = "model.safetensors", "model.json"
FORMAT = 1
CROPS = ("resize", "center", "resize_center")
METADATA_KEY = "vit"  # in the safetensors file: the settings
LONGEST_SETTINGS = 1 << 26  # bytes of model.json
FIELDS = tuple(field.name for field in dataclasses.fields(ViTConfig))
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float16: "float16", torch.float64: "float64"}


def recognise(url: str, files: Files) -> bool:
    """Whether `url` is a folder with model.json, or a safetensors file that this module wrote."""
    if files.is_folder(url):
        return files.exists(join(url, SETTINGS))
    return url.endswith(".safetensors") and METADATA_KEY in read_safetensors(url, files)[1]


def read(url: str, files: Files) -> Weights:
    """Raises `WeightsError`: a file is missing or damaged, or the two files do not belong together."""
    if not files.is_folder(url):
        tensors, metadata = read_safetensors(url, files)
        return _weights(url, _json(url, metadata[METADATA_KEY].encode()), tensors)
    record = _json(join(url, SETTINGS), _content(join(url, SETTINGS), files))
    if not files.exists(join(url, TENSORS)):
        raise WeightsError(f"{url}: {TENSORS} is missing; export the model again")
    tensors, _ = read_safetensors(join(url, TENSORS), files)
    stored = record.get("weights")
    expected = stored.get("bytes") if isinstance(stored, dict) else None
    with reporting(url), files.open_read(join(url, TENSORS)) as file:
        length = file.seek(0, os.SEEK_END)
    if expected != length:
        raise WeightsError(f"{url}: {SETTINGS} is of {TENSORS} of {expected} bytes, not of {length}; export it again")
    return _weights(join(url, SETTINGS), record, tensors)


def write(weights: Weights, url: str, files: Files, *, dtype: torch.dtype = torch.float32) -> None:
    """Writes the folder `url`, in the memory of one tensor. A model that it held is replaced.

    Raises:
        WeightsError: the settings are of no network, or a file cannot be written. The folder then holds no model.
    """
    config = config_of(weights, url)
    network = dataclasses.asdict(config)
    if "head.weight" not in weights.tensors:
        network["num_classes"] = None
    record: dict[str, Any] = {"format": FORMAT, **network, "preprocessing": _preprocessing(weights.preprocessing)}
    if files.exists(join(url, SETTINGS)):
        with reporting(url), files.open_write(join(url, SETTINGS)) as file:
            file.write(b'{"incomplete": "a model is being written into this folder"}\n')
    metadata = {"format": "pt", METADATA_KEY: json.dumps(record)}
    size, sha256 = write_safetensors(weights.tensors, join(url, TENSORS), files, dtype=dtype, metadata=metadata)
    record["class_names"] = list(weights.class_names) if weights.class_names is not None else None
    record["provenance"] = weights.about
    record["weights"] = {"file": TENSORS, "dtype": DTYPE_NAMES[dtype], "bytes": size, "sha256": sha256}
    with reporting(url), files.open_write(join(url, SETTINGS)) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def config_of(weights: Weights, url: str) -> ViTConfig:
    """The configuration of the network; with one class if the weights have no head.

    Raises:
        WeightsError: there is no such network, or the file does not determine it.
    """
    if "name" not in weights.settings:
        raise WeightsError(f"{url}: does not say the number of heads, and no known variant has its sizes")
    try:
        return vit_config(**{"num_classes": 1} | weights.settings)
    except (ModelConfigError, TypeError, AttributeError) as error:
        raise WeightsError(f"{url}: settings of no network ({error})") from error


def _preprocessing(values: Preprocessing) -> dict[str, Any]:
    crop = "resize" if values.resize is None else "resize_center" if values.squash else "center"
    return dataclasses.asdict(values) | {"crop": crop}


def _content(url: str, files: Files) -> bytes:
    with reporting(url), files.open_read(url) as file:
        content = file.read(LONGEST_SETTINGS + 1)
    if len(content) > LONGEST_SETTINGS:
        raise WeightsError(f"{url}: is too long for the settings of a model")
    return content


def _json(url: str, content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{url}: is damaged: no JSON") from error
    if not isinstance(record, dict):
        raise WeightsError(f"{url}: is damaged: no table")
    if "incomplete" in record:
        raise WeightsError(f"{url}: its model was not written to the end; export the model again")
    if type(record.get("format")) is not int or "name" not in record:
        raise WeightsError(f"{url}: is not the settings of a model that this program exported")
    if record["format"] > FORMAT:
        raise WeightsError(f"{url}: format {record['format']} is of a newer version of this program")
    return record


def _weights(url: str, record: dict[str, Any], tensors: LazyTensors) -> Weights:
    """Weights with the settings of a file."""
    with reporting(url):
        settings = {field: record[field] for field in FIELDS if record.get(field) is not None}
        kept = record["preprocessing"]
        if (crop := kept.get("crop", "resize")) not in CROPS:
            raise WeightsError(f"{url}: preprocessing.crop = {crop!r} is unknown; use {', '.join(CROPS)}")
        values = {field.name: kept[field.name] for field in dataclasses.fields(Preprocessing) if field.name in kept}
        values |= {key: tuple(values[key]) for key in ("mean", "std") if key in values}
        if crop == "resize":
            values["resize"] = None
        elif values.get("resize") is None:  # the usual margin of evaluation
            values["resize"] = values["image_size"] * 256 // 224
        values["squash"] = crop == "resize_center"
        names, about = record.get("class_names"), record.get("provenance", {})
        if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
            raise WeightsError(f"{url}: class_names is no list of names")
        if not isinstance(about, dict):
            raise WeightsError(f"{url}: provenance is no table")
        stored = record.get("weights", {})
        about = about | ({"sha256": stored["sha256"]} if isinstance(stored.get("sha256"), str) else {})
        weights = Weights(settings, tensors, Preprocessing(**values), tuple(names) if names else None, about)
        config_of(weights, url)
    return weights
