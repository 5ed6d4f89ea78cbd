"""Which rank says what to the board."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch.distributed as dist

from orchestrator.cluster.board import END
from orchestrator.history.reporter import Reporter


class Board:
    """Stands for the actor: notes what is said, and answers each update with the workers wanted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown: list[tuple[int, str]] = []
        self.wanted = 0
        self.say = SimpleNamespace(remote=self.lines.append)
        self.update = SimpleNamespace(remote=self._update)

    def _update(self, progress: Any) -> int:
        self.shown.append((progress.step, progress.note))
        return self.wanted


def test_a_board_that_died_asks_for_nothing(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is an error. Training goes on; a new board answers the next report."""

    def get(ref: object) -> object:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    reporter = Reporter(board, total_steps=50)
    reporter.resume(20)
    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", get)
        assert reporter.wanted() == 0
    board.wanted = END
    reporter.show()
    assert reporter.wanted() == END


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    return Board()


@pytest.mark.parametrize("rank", [0, 1])
def test_progress_and_what_every_rank_has_come_from_rank_0(
    board: Board, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    reporter = Reporter(board, total_steps=50)
    reporter.resume(20)
    reporter.note("evaluating test")
    reporter.say_once("of all")
    reporter.say("of one")
    first = rank == 0
    assert board.lines == ["continuing at step 20 of 50 on 3 workers"] * first + ["of all"] * first + ["of one"]
    assert board.shown == [(20, ""), (20, "evaluating test")] * first


def test_another_number_of_workers_is_wanted(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 learns of it with the answer to a report, once."""
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    reporter = Reporter(board, total_steps=50)
    reporter.resume(0)
    assert reporter.wanted() == 0
    for wanted, expected in ((0, 0), (3, 0), (2, 2), (END, END)):
        board.wanted = wanted
        reporter.show()
        assert reporter.wanted() == expected
        assert reporter.wanted() == 0, "the answer was taken"
    reports = len(board.shown)
    monkeypatch.setattr("orchestrator.history.reporter.SHOW_SECONDS", 0.0)
    reporter.wanted()
    assert len(board.shown) == reports + 1, "it asks by itself, as in a long evaluation"
