"""Notices that reach one rank only, on real processes: all ranks act at the same step."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from infra.local.ranks import run_ranks
from orchestrator.cluster.board import END
from orchestrator.cluster.notices import AnswerSigterm, EvaluationCutOff, Notices, Reason


class Context:
    """What Ray Train keeps in a worker, as far as it concerns notices."""

    def __init__(self) -> None:
        self.preemption_context = PreemptionContext()


def notices(what: str, rank: int, step: int) -> list[Reason | None]:
    """What this rank hears at each of six steps; `what` reaches `rank` alone, before `step`."""
    worker = Context()
    context.set_train_context(worker)  # type: ignore[arg-type]
    AnswerSigterm(grace=600).after_init_train_context()
    wanted = [0]
    notices = Notices(torch.device("cpu"), lambda: wanted[0])
    heard = []
    for now in range(6):
        if now == step and rank == dist.get_rank():
            if what == "drain":
                worker.preemption_context.preemption_info = PreemptionInfo(None, {"node": [rank]})
            elif what == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                wanted[0] = {"resize": 5, "end": END}[what]
        heard.append(notices.agree())
    return heard


@pytest.mark.parametrize(
    ("what", "reason"),
    [("drain", Reason.PREEMPTION), ("sigterm", Reason.TERMINATION), ("resize", Reason.RESIZE), ("end", Reason.END)],
)
def test_all_ranks_hear_it_at_the_same_step(what: str, reason: Reason) -> None:
    assert run_ranks(3, notices, what, 1, 4) == [[None] * 4 + [reason] * 2] * 3


def cut_off(items: int, rank: int, at: int) -> tuple[list[int], str]:
    context.set_train_context(Context())  # type: ignore[arg-type]
    wanted = [0]
    notices = Notices(torch.device("cpu"), lambda: wanted[0])
    seen = []
    try:
        for item in notices.check_each(range(items)):
            seen.append(item)
            if dist.get_rank() == rank and item == at:
                wanted[0] = 5
    except EvaluationCutOff as cut:
        return seen, cut.reason.name
    return seen, ""


def test_what_can_be_done_again_is_cut_off_on_all_ranks() -> None:
    assert run_ranks(2, cut_off, 5, 1, 2) == [([0, 1, 2], "RESIZE")] * 2
    assert run_ranks(2, cut_off, 3, 1, 7) == [([0, 1, 2], "")] * 2
