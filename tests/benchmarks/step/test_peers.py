"""Contenders of other libraries: they train as ours does, and a different network is refused."""

import functools
from collections.abc import Callable

import pytest
import torch

import model
from benchmarks.step import peers, worker
from benchmarks.step.task import synthetic
from model.objectives import dense_targets, softmax_cross_entropy
from tests.benchmarks.step.tiny import CPU, TASK, task


def test_a_peers_step_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a library's network has the losses of a plain loop with AdamW, decay of kernels, and clipping."""
    settings = peers.OPTIMIZER.model_copy(update={"lr": 1e-2})
    monkeypatch.setattr(peers, "OPTIMIZER", settings)
    monkeypatch.setitem(
        peers.BUILDERS, "timm", (lambda task: model.VisionTransformer(task.config), lambda output: output)
    )
    torch.manual_seed(0)
    peer = peers.Peer(task(impl="timm"), CPU)
    torch.manual_seed(0)
    vit = model.VisionTransformer(TASK.config)
    assert peer.parameters == sum(p.numel() for p in vit.parameters()) == worker.count_parameters(TASK)

    mask = model.decay_mask(vit)
    groups = [
        {"params": [p for name, p in vit.named_parameters() if mask[name] == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    batch = synthetic(TASK.config, 4, CPU)
    expected, norms = [], []
    for _ in range(6):
        logits = vit(batch.images.float() / 127.5 - 1)
        loss = softmax_cross_entropy(logits, dense_targets(batch.labels, batch.weights, 10)).mean()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    losses = [float(peer.step(batch)) for _ in expected]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    assert max(norms) > 1, "nothing was clipped"
    assert losses[-1] < 0.5 * losses[0]


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = model.VisionTransformer(model.vit_config("B/16", **{**TASK.sizes, "depth": 1}))
    monkeypatch.setitem(peers.BUILDERS, "timm", (lambda task: smaller, lambda output: output))
    with pytest.raises(RuntimeError, match="parameters instead of"):
        worker.answer(task(impl="timm"))


@pytest.mark.servers
def test_a_compiled_peer_is_one_graph_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every batch, the compiler gets fixed sizes. This compiler only records them."""
    batches: list[list[object]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
        images = [x for x in inputs if isinstance(x, torch.Tensor) and x.shape[1:] == (3, 64, 64)]
        symbols = [x for x in inputs if not isinstance(x, torch.Tensor)]  # a variable size would be an input
        batches.append([*(x.shape[0] for x in images), *symbols])
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    monkeypatch.setitem(
        peers.BUILDERS, "timm", (lambda task: model.VisionTransformer(task.config), lambda output: output)
    )
    shallow = {**TASK.sizes, "depth": 1}
    worker.answer(task(impl="timm", compiled=True, batches=(2, 4), profile=False, sizes=shallow))
    assert batches == [[2], [4]]
