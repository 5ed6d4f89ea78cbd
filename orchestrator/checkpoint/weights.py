"""Any model's URL, read: the one function that init_from, predict and features use.

URL                                        an exported model (`as_model/export.py`)
URL[@STEP | @last | @best][#live | #ema]   a run (`as_model/trained.py`)
URL                                        a file of another format (`model/weights/formats.py`), such as .npz
"""

import hashlib
from collections.abc import Callable

import torch

from data import storage
from model.variants import ModelConfigError, vit_config
from model.weights import load
from model.weights.weights import WeightsError, shape_of
from orchestrator.checkpoint.as_model.export import is_export, read_export
from orchestrator.checkpoint.as_model.trained import ModelError, Trained, read_trained, run_address
from orchestrator.job.data_sections import HeldOutAugment


def read_model(url: str, warn: Callable[[str], None], *, values: bool = True) -> Trained:
    """Read any model.

    Args:
        url: of an exported model or of a run.
        warn: receives a line for each newer checkpoint of a run that cannot be used.
        values: read the weights. Else the tensors are of the meta device: names and shapes, for a check that is cheap.

    Raises:
        ModelError: there is no such model, or it is damaged; the text is one line.
        Exception: the store's error.
    """
    if (address := run_address(url)) is not None:
        return read_trained(address, warn, values=values)
    if is_export(url):
        return read_export(url, values=values)
    if not storage.exists(url):
        raise ModelError(f"{url}: does not exist")
    if storage.is_folder(url):
        raise ModelError(f"{url}: neither the folder of a run (no job.yaml) nor an exported model (no model.json)")
    try:
        return _read_file(url, values=values)
    except (WeightsError, ModelConfigError) as error:
        raise ModelError(str(error) if str(error).startswith(url) else f"{url}: {error}") from error


def _read_file(url: str, *, values: bool) -> Trained:
    """A file as `model.weights` reads it. Its SHA-256 is that of its names and float32 values."""
    weights = load.read(url, storage)
    head = shape_of(weights.tensors, "head.bias") if "head.bias" in weights.tensors else (1,)
    config = vit_config(**{"num_classes": head[0], **weights.settings})
    tensors, digest = {}, hashlib.sha256()
    for name in sorted(weights.tensors):
        if values:
            tensors[name] = weights.tensors[name].detach().float().contiguous()
            digest.update(name.encode())
            digest.update(tensors[name].numpy().data.cast("B"))
        else:
            tensors[name] = torch.empty(shape_of(weights.tensors, name), device="meta")
    of = weights.preprocessing
    return Trained(
        config=config,
        tensors=tensors,
        augment=HeldOutAugment(crop="resize") if of.resize is None else HeldOutAugment(crop="center", resize=of.resize),
        class_names=list(weights.class_names or ()),
        step=0,
        metrics={},
        origin={
            "sha256": digest.hexdigest(),
            "preparable": {of.mean, of.std} == {(0.5, 0.5, 0.5)} and of.interpolation == "bilinear",
        },
    )
