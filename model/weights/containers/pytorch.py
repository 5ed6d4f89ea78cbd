"""State dictionaries in PyTorch files (`.pth`, `.pt`, `pytorch_model.bin`), read without running code from the file.

A PyTorch file is a pickle, and a pickle may name any function to call. torch's restricted reader accepts tensors,
numbers, strings and containers, and refuses every other name before it is looked up.
"""

import re
import warnings
from typing import IO, Any

import torch
from torch import Tensor

from model.weights.weights import WeightsError, reporting

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dictionary."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def read_pytorch(file: IO[bytes], url: str) -> dict[str, Tensor]:
    """The tensors of a state dictionary by name, on the CPU, of the file's dtypes.

    A dictionary inside of `WRAPPERS` is unwrapped, and `PREFIXES` that all names share are removed. Entries that are
    no tensors (an epoch, a name) are left out.

    Args:
        file: readable and seekable.
        url: of the file, for messages.

    Raises:
        WeightsError: the file is damaged, holds anything but tensors and plain values, or has no state dictionary.
    """
    with reporting(url):
        start = file.read(262)
        file.seek(0)
    if start.endswith(b"ustar"):
        raise WeightsError(f"{url}: is a tar file, as torch before version 0.1.10 wrote: save it anew with torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about pickle protocols and TorchScript; the error says it, too
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise WeightsError(f"{url}: {_reason(error)}") from error
    state = _state_dict(content)
    if not state:
        raise WeightsError(
            f"{url}: the file holds no state dictionary: a dictionary of tensors by name, alone or under "
            f"{', '.join(WRAPPERS)}"
        )
    return state


def write_pytorch(state: dict[str, Tensor], file: IO[bytes]) -> None:
    """Writes a state dictionary as torch.save does, each tensor with storage of its own."""
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, file)


def _state_dict(content: Any) -> dict[str, Tensor]:
    while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if isinstance(content.get(k), dict)]):
        content = inner[0]
    if not isinstance(content, dict):
        return {}
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _reason(error: Exception) -> str:
    """Why torch refused a file, on one line."""
    text = str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"the pickle names {named[1]}, and only tensors and plain values are read; no code of the file was run"
    if "TorchScript" in text:
        return "a TorchScript archive holds code: save the state dictionary alone (torch.save(model.state_dict(), ...))"
    first = next(iter(text.splitlines()), "").partition(". ")[0][:200]
    return (
        f"not a complete PyTorch file that holds tensors alone ({type(error).__name__}{': ' if first else ''}{first}); "
        "no code of the file was run"
    )
