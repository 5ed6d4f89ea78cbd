"""Weights from a URL into a model: `read`, `load`, `load_weights`, `place`."""

from typing import Literal

from model.vit import VisionTransformer
from model.weights.weights import PLAIN, Files, Weights

Head = Literal["keep", "new"]


def read(url: str, files: Files = PLAIN) -> Weights:
    """The weights at `url`, of any format that can be read. Tensors are read later, one at a time.

    Raises:
        WeightsError: nothing is there, it is of no known format, or it is damaged.
    """
    raise NotImplementedError


def load(url: str, files: Files = PLAIN) -> VisionTransformer:
    """The model at `url`, built from the file's own configuration, float32, in evaluation mode.

    A file without a head gives a model with a head of zeros; `model.features` does not use it.

    Raises:
        WeightsError: as `read`, or the tensors do not fit the file's own configuration.
    """
    raise NotImplementedError


def load_weights(model: VisionTransformer, url: str, *, head: Head = "keep", files: Files = PLAIN) -> str:
    """Loads the weights at `url` into `model`, all or nothing. Arguments and result as in `place`.

    Raises:
        WeightsError: as `read` and `place`. The model is unchanged then.
    """
    return place(model, read(url, files), head=head)


def place(model: VisionTransformer, weights: Weights, *, head: Head = "keep") -> str:
    """Copies weights into a model, all or nothing, and reports in two lines what was loaded and what was not.

    Args:
        head: "keep" loads the head. "new" resets it (zeros) and does not read the file's head; pre-logits and the class
            token may then differ, too: what only the file has is dropped, what only the model has stays as
            initialised, and the report names both.

    Raises:
        WeightsError: weights and model do not fit. The message lists what is missing and what is left over on both
            sides, with shapes. The model is unchanged.
    """
    raise NotImplementedError
