"""infra/local/ranks.py: results by rank, and the error of a rank that fails."""

import pytest
import torch
import torch.distributed as dist

from infra.local.ranks import run_ranks


def sum_of_ranks(added: int) -> int:
    total = torch.tensor(dist.get_rank() + added)
    dist.all_reduce(total)
    return 10 * int(total) + dist.get_rank()


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("on purpose")
    dist.barrier()  # rank 1 never arrives


def test_ranks_are_joined_and_results_are_in_their_order() -> None:
    assert run_ranks(2, sum_of_ranks, 1) == [30, 31]


def test_a_rank_that_fails_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)a rank failed.*fail_on_rank_1.*ValueError: on purpose"):
        run_ranks(2, fail_on_rank_1)
