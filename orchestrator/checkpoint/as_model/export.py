"""An exported model: a folder that anybody can use, on any store.

    model.safetensors    the weights, float32 or bf16, by the names of our parameters
    README.md            the model card
    model.json           every setting of the architecture, preprocessing, class names, provenance; size and SHA-256 of
                         the weights. It is written last and makes the folder a model.

Writing and reading take the memory of the weights and of one tensor.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from data import storage
from model import ViTConfig, vit_config
from orchestrator.checkpoint.as_model.card import card
from orchestrator.checkpoint.as_model.trained import ModelError, Trained
from orchestrator.checkpoint.as_model.whole import CHUNK, Damaged, Hashed, read_header
from orchestrator.job.data_sections import HeldOutAugment
from orchestrator.names import split_held_out

WEIGHTS, SETTINGS, CARD = "model.safetensors", "model.json", "README.md"
FORMAT = 1
Dtype = Literal["float32", "bf16"]
_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16}
_TYPES = {"float32": "F32", "bf16": "BF16"}
_FIELDS = tuple(field.name for field in dataclasses.fields(ViTConfig))


def check_empty(to: str) -> None:
    """Check that nothing would be replaced.

    Raises:
        ModelError: there is a file, or a folder that holds something.
        Exception: the store's error.
    """
    if storage.contents(to):
        raise ModelError(f"{to}: is not empty; name another folder, or use --force to replace the model in it")
    if storage.exists(to) and not storage.is_folder(to):
        raise ModelError(f"{to}: is a file; name a folder")


def write_export(model: Trained, to: str, dtype: Dtype = "float32") -> None:
    """Write a model into a folder. Files of other names stay.

    Args:
        to: URL or path of the folder.
        dtype: of the weights in the file.

    Raises:
        Exception: the store's error; the folder then holds no model.
    """
    to = to.rstrip("/")
    storage.remove(f"{to}/{SETTINGS}")  # first: until the end, the folder holds no model
    try:
        size, sha256 = _write_weights(f"{to}/{WEIGHTS}", model.tensors, dtype)
        settings = _settings(model, dtype, size, sha256)
        storage.write_atomic(f"{to}/{CARD}", card(model, settings, to).encode())
        storage.write_atomic(f"{to}/{SETTINGS}", (json.dumps(settings, indent=1) + "\n").encode())
    except BaseException:
        with suppress(Exception):  # of any store; the first error counts
            storage.remove(f"{to}/{WEIGHTS}")
        raise


def is_export(url: str) -> bool:
    """Whether a folder holds an exported model."""
    return storage.exists(storage.join(url, SETTINGS))


def is_current(url: str, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether a folder holds the model of a run as it is now: of this step, with the metrics of its held-out sets."""
    try:
        record, _ = _read_settings(url)
    except (ModelError, FileNotFoundError):
        return False
    origin = record["provenance"]
    measured = {name: value for name, value in metrics.items() if split_held_out(name)}
    return bool(origin["step"] == step and origin["accuracy"] == measured)


def read_export(url: str, *, values: bool = True) -> Trained:
    """Read an exported model.

    Args:
        values: read the weights. Else the tensors are of the meta device.

    Raises:
        ModelError: a file is damaged, or not of this network.
        Exception: the store's error.
    """
    url = url.rstrip("/")
    record, config = _read_settings(url)
    shapes = _shapes(config)
    try:
        if values:
            tensors = _read_weights(url, shapes, record["weights"]["sha256"])
        else:
            if storage.size(f"{url}/{WEIGHTS}") != record["weights"]["bytes"]:
                raise Damaged(f"{WEIGHTS} is missing or cut short")
            tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except Damaged as error:
        raise ModelError(f"{url}: {error}; export it again, or put back a copy") from error
    except FileNotFoundError:
        raise ModelError(f"{url}: {WEIGHTS} is missing; export it again, or put back a copy") from None
    origin = record["provenance"]
    return Trained(
        config=config,
        tensors=tensors,
        augment=HeldOutAugment.model_validate(
            {"crop": record["preprocessing"]["crop"], "resize": record["preprocessing"]["resize"]}
        ),
        class_names=record["class_names"],
        step=origin["step"],
        metrics=origin["accuracy"],
        origin=origin | {"sha256": record["weights"]["sha256"]},
    )


def _settings(model: Trained, dtype: Dtype, size: int, sha256: str) -> dict[str, Any]:
    preprocessing = {
        "image_size": model.config.image_size,
        "crop": model.augment.crop,
        "resize": model.augment.resize,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    return {
        "format": FORMAT,
        **dataclasses.asdict(model.config),
        "preprocessing": preprocessing,
        "class_names": model.class_names,
        "provenance": {**model.origin, "accuracy": model.metrics},
        "weights": {"file": WEIGHTS, "dtype": dtype, "bytes": size, "sha256": sha256},
    }


def _write_weights(url: str, tensors: Mapping[str, Tensor], dtype: Dtype) -> tuple[int, str]:
    """Write a safetensors file; returns its size in bytes and its SHA-256."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    width, end = {"float32": 4, "bf16": 2}[dtype], 0
    for name, tensor in tensors.items():
        begin, end = end, end + width * tensor.numel()
        header[name] = {"dtype": _TYPES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with storage.open_write(url) as file:
        for content in (len(text).to_bytes(8, "little"), text):
            digest.update(content)
            file.write(content)
        for tensor in tensors.values():
            for part in _bytes(tensor, dtype):
                digest.update(part)
                file.write(part)
    return 8 + len(text) + end, digest.hexdigest()


def _bytes(tensor: Tensor, dtype: Dtype) -> Iterator[memoryview]:
    """The bytes of a tensor, in parts."""
    flat = tensor.reshape(-1)
    for begin in range(0, flat.numel(), CHUNK):
        part = flat[begin : begin + CHUNK]
        stored = part if dtype == "float32" else part.to(torch.bfloat16).view(torch.int16)
        yield stored.contiguous().numpy().data.cast("B")


def _read_settings(url: str) -> tuple[dict[str, Any], ViTConfig]:
    try:
        record = json.loads(storage.read(f"{url}/{SETTINGS}"))
        if record["format"] > FORMAT:
            raise ModelError(f"{url}/{SETTINGS}: format {record['format']} is of a newer version of this program")
        record["class_names"] = record["class_names"] or []
        record["provenance"] = {"step": 0, "accuracy": {}} | record["provenance"]  # a converted model has none of a run
        config = vit_config(**{field: record[field] for field in _FIELDS if field in record})
        crop, origin = record["preprocessing"]["crop"], record["provenance"]
        HeldOutAugment.model_validate({"crop": crop, "resize": record["preprocessing"]["resize"]})
        known = isinstance(record["class_names"], list) and isinstance(origin["accuracy"], dict)
        if not known or not isinstance(origin["step"], int) or not isinstance(record["weights"]["sha256"], str):
            raise ValueError("a value of another type")
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ModelError(f"{url}/{SETTINGS}: damaged ({reason}); export the model again, or put back a copy") from error
    return record, config


def _shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    from model import VisionTransformer

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in VisionTransformer(config).named_parameters()}


def _read_weights(url: str, shapes: Mapping[str, tuple[int, ...]], sha256: str) -> dict[str, Tensor]:
    with storage.open_read(f"{url}/{WEIGHTS}", CHUNK) as stream:
        source = Hashed(stream, WEIGHTS)
        header = read_header(source, WEIGHTS)
        header.pop("__metadata__", None)
        try:
            entries = sorted((e["data_offsets"], name, e["dtype"], tuple(e["shape"])) for name, e in header.items())
        except (KeyError, TypeError) as error:
            raise Damaged(f"{WEIGHTS} is no safetensors file") from error
        if {name: shape for _, name, _, shape in entries} != dict(shapes):
            odd = sorted(set(shapes.items()) ^ {(name, shape) for _, name, _, shape in entries})[0][0]
            raise Damaged(f"{WEIGHTS} is not of the network in {SETTINGS}: {odd} differs")
        found, position = {}, 0
        for (begin, end), name, dtype, shape in entries:
            tensor = torch.empty(shape, dtype=_NAMES.get(dtype, torch.float32))
            if dtype not in _NAMES or begin != position or end - begin != tensor.nbytes:
                raise Damaged(f"{WEIGHTS}: {name} has a wrong type or place")
            source.copy_to(tensor.view(-1).view(torch.uint8).numpy().data)
            found[name], position = tensor.float(), end
        source.finish()
    if source.digest.hexdigest() != sha256:
        raise Damaged(f"{WEIGHTS} does not match its SHA-256")
    return {name: found[name] for name in shapes}
