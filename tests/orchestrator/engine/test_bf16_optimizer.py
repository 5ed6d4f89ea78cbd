"""ZeRO 1 in bf16, compared with the same arithmetic by hand in torch's own optimizers."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.local.ranks import run_ranks
from orchestrator.engine.step import Engine
from orchestrator.job.choices import SGD, AdamW
from orchestrator.job.sections import Parallel

IMAGES = 8
CLIP = 0.5  # norm; some gradients here exceed it, some do not


class TwoLayers(nn.Module):
    """Two layers side by side. The second one can be left out, and then has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(3 * 4 * 4, 5)
        self.sometimes = nn.Linear(3 * 4 * 4, 5)
        self.both = True

    def forward(self, images: Tensor, seeds: Tensor | None) -> Tensor:
        x = images.flatten(1)
        logits: Tensor = self.always(x) + self.sometimes(x) if self.both else self.always(x)
        return logits


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels[:, 0], reduction="none")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sgd", [False, True])
def test_it_equals_the_plain_loop_with_float32_sums(workers: int, sgd: bool) -> None:
    run_ranks(workers, trains_as_by_hand, sgd)


def trains_as_by_hand(sgd: bool) -> None:
    """Micro-batches of two images; norms above and below CLIP; a layer without gradients; a skipped step."""
    torch.manual_seed(0)
    network = TwoLayers()
    masters = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    twin = copy.deepcopy(network).bfloat16()
    settings = (
        SGD(name="sgd", lr=0.1, weight_decay=0.1, grad_clip=CLIP)
        if sgd
        else AdamW(name="adamw", lr=0.1, eps=0.1, weight_decay=0.1, grad_clip=CLIP)
    )
    engine = Engine(
        network,
        cross_entropy,
        dict.fromkeys(masters, True),
        optimizer=settings,
        parallel=Parallel.model_validate({"zero_stage": 1, "precision": "bf16", "gradient_reduction": "float32"}),
        micro_batch=2,
        local_batch=IMAGES // dist.get_world_size(),
        device=torch.device("cpu"),
    )
    kind = torch.optim.SGD if sgd else torch.optim.AdamW
    options = (
        {"momentum": settings.momentum} if isinstance(settings, SGD) else {"betas": settings.betas, "eps": settings.eps}
    )
    by_hand = kind(list(masters.values()), lr=0.1, weight_decay=settings.weight_decay, **options)  # type: ignore[arg-type]

    local = IMAGES // dist.get_world_size()
    mine = slice(dist.get_rank() * local, (dist.get_rank() + 1) * local)
    norms = []
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (IMAGES, 3, 4, 4), dtype=torch.uint8, generator=generator)
        images[:] = 127 if step % 3 == 2 else images  # grey: small gradients
        labels = torch.randint(0, 5, (IMAGES, 1), generator=generator)
        network.both = twin.both = step % 2 == 0
        batch = (images[mine], labels[mine], torch.ones(IMAGES, 1)[mine], torch.ones(IMAGES, dtype=torch.bool)[mine])
        if step == 5:  # a skipped step must leave nothing, also in the layer that the next step leaves out
            network.both, engine.objective = True, lambda *batch: cross_entropy(*batch) * torch.inf
            assert not engine.train_step(*batch, None, lr=0.1).applied
            network.both, engine.objective = False, cross_entropy
        assert engine.train_step(*batch, None, lr=0.1).applied

        sums = {name: torch.zeros_like(master) for name, master in masters.items()}
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(masters[name])
        for i in range(0, IMAGES, 2):
            twin.zero_grad()
            pixels = (images[i : i + 2].float() / 127.5 - 1).bfloat16()
            (cross_entropy(twin(pixels, None), labels[i : i + 2], torch.ones(2, 1)).sum() / IMAGES).backward()
            for name, p in twin.named_parameters():
                sums[name] += 0 if p.grad is None else p.grad
        for name, master in masters.items():
            master.grad = sums[name]
        norms.append(float(nn.utils.clip_grad_norm_(masters.values(), CLIP)))
        assert engine.gradient_norm() == pytest.approx(norms[-1], rel=0.01)
        by_hand.step()
        for name, found in network.named_parameters():
            # weights are rounded to bf16
            torch.testing.assert_close(found.float(), masters[name].detach(), rtol=0.01, atol=1e-3)
    assert min(norms) < CLIP < max(norms), norms
