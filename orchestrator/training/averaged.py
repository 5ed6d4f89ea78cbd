"""Measuring the averaged weights (`optimizer.ema`): they take the place of the live ones meanwhile.

Both are exchanged in place, in memory alone. Checkpoints are written from copies that are made at other times: a kill
loses nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from orchestrator.checkpoint.fragments import held_fragments, optimizer_state, publish_weights
from orchestrator.cluster.notices import EvaluationCutOff
from orchestrator.engine.average import EMA
from orchestrator.engine.step import Engine

CHUNK = 2**24  # elements that are exchanged at a time


@contextmanager
def averaged_weights(engine: Engine) -> Iterator[None]:
    """Compute with the averaged weights; afterwards the live ones are there again, bit by bit. Collective.

    Before the first update both are the same.
    """
    exchange(engine)
    publish_weights(engine)
    try:
        yield
    except EvaluationCutOff:  # on all ranks; then the run is saved
        exchange(engine)
        publish_weights(engine)
        raise
    except BaseException:  # on this rank alone: nothing is collective any more
        exchange(engine)
        raise
    exchange(engine)
    publish_weights(engine)


@torch.no_grad()
def exchange(engine: Engine) -> None:
    """Exchange this rank's float32 weights with their averages."""
    for flat in {id(f.flat): f.flat for f in held_fragments(engine)}.values():
        average = optimizer_state(engine, flat).get(EMA)
        if average is not None:
            _exchange(flat.detach().view(-1), average.view(-1))


def _exchange(one: Tensor, other: Tensor) -> None:
    for begin in range(0, one.numel(), CHUNK):
        a, b = one[begin : begin + CHUNK], other[begin : begin + CHUNK]
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)
