"""`model.init_from`: the weights of another run, or a file of weights, in a network that is to be trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from model import VisionTransformer
from orchestrator.checkpoint.as_model.place import Misfit, Placed, place
from orchestrator.checkpoint.as_model.trained import ModelError
from orchestrator.checkpoint.weights import read_model
from orchestrator.job.sections import Encoder


class InitialError(ValueError):
    """There are no such weights, or the network cannot take them. The text is one line."""


@dataclass(frozen=True)
class Initial:
    """Weights that were loaded.

    Attributes:
        placed: what became of them.
        sha256: of what was read.
    """

    placed: Placed
    sha256: str


def load_initial(network: VisionTransformer, settings: Encoder, warn: Callable[[str], None]) -> Initial:
    """Load the weights of `init_from`, whole or not at all.

    Args:
        network: new.
        settings: the job's section `model`, with an absolute URL.
        warn: receives a line for each newer checkpoint that cannot be used.

    Raises:
        InitialError: there are no such weights, or they do not fit.
        Exception: the store's error.
    """
    return _load(network, settings, warn, values=True)


def check_initial(settings: Encoder, warn: Callable[[str], None]) -> None:
    """Check that the weights of `init_from` are there and fit, from shapes alone.

    Raises:
        InitialError: they are not, or do not.
        Exception: the store's error.
    """
    with torch.device("meta"):
        network = VisionTransformer(settings.vit_config())
    _load(network, settings, warn, values=False)


def _load(network: VisionTransformer, settings: Encoder, warn: Callable[[str], None], *, values: bool) -> Initial:
    assert settings.init_from is not None
    try:
        trained = read_model(settings.init_from, warn, values=values)
        return Initial(place(network, trained.tensors, settings.head), trained.origin["sha256"])
    except (ModelError, Misfit) as error:
        raise InitialError(str(error).removeprefix(f"{settings.init_from}: ")) from error
