"""The table of formats. A new one is a module and a line here.

A module has these functions, as far as the table says that it reads or writes:

    recognise(url, files) -> bool                  whether a file or a folder looks like this format; quick
    read(url, files) -> Weights                    raises WeightsError
    write(weights, url, files, *, dtype) -> None   dtype: of the written tensors; raises WeightsError for what the
                                                   format cannot hold, before anything is written
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Format:
    """One line of the table."""

    module: str
    """Dotted path. The module is imported on first use, so that what it needs may be missing otherwise."""
    reads: bool = True
    writes: bool = True

    def load(self) -> Any:
        """The module."""
        return import_module(self.module)


FORMATS = {  # in the order in which they are asked whether they recognise a file
    "export": Format("model.weights.export"),
    "npz": Format("model.weights.npz"),
    "timm": Format("model.weights.timm"),
    "huggingface": Format("model.weights.huggingface"),
    "onnx": Format("model.weights.onnx", reads=False),
}
