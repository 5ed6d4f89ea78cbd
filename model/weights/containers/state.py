"""State dictionaries of other libraries: one file or several, safetensors or PyTorch, alone or in a folder."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.weights.containers.pytorch import read_pytorch, write_pytorch
from model.weights.containers.safetensors import read_safetensors, write_safetensors
from model.weights.weights import FLOATS, Files, LazyTensor, WeightsError, join, reporting

PYTORCH = (".pth", ".pt", ".bin")
NAMES = ("model.safetensors", "pytorch_model.bin")
LARGEST_JSON = 64 << 20  # bytes


def read_state(url: str, files: Files) -> dict[str, LazyTensor]:
    """The tensors of a file or of a Hub folder by the names in the file. Those of safetensors are read later.

    A folder has `model.safetensors`, `pytorch_model.bin`, or one of them in parts that an index lists.

    Raises:
        WeightsError: no such file, a damaged one, or a tensor that is not of floating point.
    """
    if not files.is_folder(url):
        return _floats(_read_file(url, files), url)
    for name in NAMES:
        if files.exists(join(url, name)):
            return _floats(_read_file(join(url, name), files), join(url, name))
        if files.exists(index := join(url, f"{name}.index.json")):
            return _floats(_read_parts(url, index, files), index)
    raise WeightsError(f"{url}: the folder has neither {' nor '.join(NAMES)}")


def read_json(url: str, files: Files) -> dict[str, Any]:
    """A JSON object. Raises `WeightsError` if the file is missing, too large for settings, or holds anything else."""
    with reporting(url), files.open_read(url) as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise WeightsError(f"{url}: is larger than {LARGEST_JSON >> 20} MiB, and no settings are")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{url}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{url}: is not a JSON object")
    return content


def write_json(content: Mapping[str, Any], url: str, files: Files) -> None:
    """Writes a JSON object."""
    with reporting(url), files.open_write(url) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_state(
    tensors: Mapping[str, Tensor], url: str, files: Files, *, dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Writes a state dictionary: by its name a PyTorch file (`PYTORCH`), which has no metadata, or safetensors."""
    if url.endswith(PYTORCH):
        with reporting(url), files.open_write(url) as file:
            write_pytorch({name: tensors[name].to(dtype) for name in tensors}, file)
    else:
        write_safetensors(tensors, url, files, dtype=dtype, metadata=metadata)


def metadata_of(url: str, files: Files) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty for a PyTorch file."""
    with reporting(url), files.open_read(url) as file:
        safe = is_safetensors(file.read(9))
    return read_safetensors(url, files)[1] if safe else {}


def is_safetensors(start: bytes) -> bool:
    """Whether a file's first 9 bytes are the length of a JSON header and its opening brace."""
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _read_file(url: str, files: Files) -> dict[str, LazyTensor]:
    with reporting(url), files.open_read(url) as file:
        start = file.read(9)
        if not url.endswith(".safetensors") and not is_safetensors(start):
            file.seek(0)
            return {name: _held(tensor) for name, tensor in read_pytorch(file, url).items()}
    lazy, _ = read_safetensors(url, files)
    # The readers hold `lazy`, which closes the file when the last of them is gone.
    return {name: entry._replace(read=partial(lazy.__getitem__, name)) for name, entry in lazy.entries.items()}


def _read_parts(folder: str, index: str, files: Files) -> dict[str, LazyTensor]:
    places = read_json(index, files).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) and "/" not in p for p in places.values()):
        raise WeightsError(f"{index}: has no weight_map of tensor names and file names")
    parts = {part: _read_file(join(folder, part), files) for part in sorted(set(places.values()))}
    missing = [name for name, part in places.items() if name not in parts[part]]
    if missing:
        raise WeightsError(f"{index}: {missing[0]} is not in {places[missing[0]]}, where the index has it")
    return {name: parts[part][name] for name, part in places.items()}


def _floats(state: dict[str, LazyTensor], url: str) -> dict[str, LazyTensor]:
    for name, entry in state.items():
        if entry.dtype not in FLOATS:
            raise WeightsError(
                f"{url}: {name} is of {entry.dtype}; weights are floating-point numbers of 16 to 64 bits"
            )
    return state


def _held(tensor: Tensor) -> LazyTensor:
    read: Callable[[], Tensor] = tensor.detach
    return LazyTensor(tuple(tensor.shape), tensor.dtype, read)
