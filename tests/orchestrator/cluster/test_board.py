"""The progress actor is stopped or killed: a new one takes its place, and knows what the others know."""

import io
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from data.clusters import joining
from orchestrator.cluster import display, watchdog
from orchestrator.cluster.board import END, START_SECONDS, Board, Progress
from orchestrator.cluster.display import Display
from orchestrator.cluster.failures import FailurePolicy
from orchestrator.cluster.watchdog import Watchdog
from tests.cluster import RayHead, until


@pytest.fixture(scope="module")
def connected(ray_head: RayHead) -> Iterator[None]:
    ray.init(address=ray_head.address, **joining.QUIET)
    joining.keep_pages_off()
    yield
    ray.shutdown()


@pytest.fixture
def board(connected: None) -> Iterator[Any]:
    board = Board.remote()  # type: ignore[attr-defined]
    yield board
    ray.kill(board)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSTOP, "a: the progress actor has not answered for "),
        (signal.SIGKILL, "a: the progress actor died; a new one has taken its place\n"),
    ],
)
def test_a_new_one(
    board: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    said: str,
) -> None:
    """It ends what was asked meanwhile, and the terminal goes on where it was."""
    silent = 1.0 if number == signal.SIGSTOP else 60.0
    for name, value in {"SILENT_SECONDS": silent, "ANSWER_SECONDS": 0.5, "LOG_SECONDS": 0.0}.items():
        monkeypatch.setattr(display, name, value)
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 1.0)
    dog = Watchdog(board, 1000.0)
    dog.after_worker_group_start(SimpleNamespace(get_workers=lambda: [worker(0), worker(1)]))
    first = Progress(step=7, total_steps=90, first_step=5, note="", workers=2)
    assert ray.get(board.update.remote(first)) == 0
    reminded: list[bool] = []

    def remind() -> None:
        reminded.append(True)
        board.want_end.remote()

    shown = io.StringIO()
    with Display(board, "a", stream=shown, renewed=remind):
        until(lambda: "a: step 7/90 (8%), 2 workers\n" in shown.getvalue(), "the progress", 60)
        _, _, process = ray.get(board.read.remote())
        os.kill(process, number)
        if number == signal.SIGSTOP:
            assert dog._silence() == {}, "the controller does not wait for it"
        board.say.remote("said meanwhile")
        until(lambda: reminded and "a: said meanwhile\n" in shown.getvalue(), "a new one", 60)
        assert said in shown.getvalue()
        until(lambda: ray.get(board.steps.remote()) == (7, 2), "that it knows the step", 60)
        assert ray.get(board.update.remote(first)) == END
        ray.get(board.update.remote(Progress(step=9, total_steps=90, first_step=5, note="", workers=2)))
        until(lambda: "a: step 9/90 (10%), 2 workers\n" in shown.getvalue(), "the progress", 60)
    assert ray.get(board.silence.remote()) == {}
    dog._silence()
    until(lambda: ray.get(board.silence.remote()).keys() == {0, 1}, "the workers", 60)
    assert all(-START_SECONDS <= seconds < 60 - START_SECONDS for seconds in ray.get(board.silence.remote()).values())
    assert "starting workers" not in shown.getvalue()
    assert reminded == [True]
    assert "raylet" not in "".join(capfd.readouterr()), "what Ray says of it in pages"


def worker(rank: int) -> Any:
    return SimpleNamespace(distributed_context=SimpleNamespace(world_rank=rank))


def test_what_it_knows_of_the_steps() -> None:
    """Without Ray: nothing at first, then the present workers' own steps."""
    board = Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    assert board.steps() is None
    board.new_group(1)
    assert board.steps() == (0, 0)
    board.update(Progress(step=20, total_steps=50, first_step=20))
    assert board.steps() == (20, 0)
    board.update(Progress(step=26, total_steps=50, first_step=20))
    assert board.steps() == (26, 6)
    board.group_gone()
    board.new_group(1)
    assert board.steps() == (26, 0), "of the new workers"


def test_a_failure_that_the_board_knows_nothing_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as every other; the job does not end for it."""
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.exceptions import WorkerGroupError

    policy = FailurePolicy(FailureConfig(max_failures=1), board=None)
    monkeypatch.setattr(policy, "_steps", lambda: None)
    error = WorkerGroupError("one", {0: ValueError("a bug")})
    assert policy.make_decision(error) == FailureDecision.RETRY
    assert policy.make_decision(error) == FailureDecision.RAISE
