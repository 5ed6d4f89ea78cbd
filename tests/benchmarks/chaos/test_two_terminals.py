"""The verdict on two commands that started one job at the same moment."""

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.chaos.two_terminals import Ended, Traces, verdict

TRAINED = Ended(11, 0, "trained 3 steps")
LEFT = Ended(12, 2, "error: a.yaml: name = x: me on here (process 11, Ray) trains this run; stop that command first")
ONCE = Counter(range(3))
GOOD = Traces(identities=1, ledger=ONCE, points=ONCE, tracked=1, final=1)


def test_one_trains_and_the_other_names_it() -> None:
    assert verdict([TRAINED, LEFT], GOOD, 3) == ""
    assert verdict([LEFT, TRAINED], GOOD, 3) == ""


@pytest.mark.parametrize(
    ("pair", "traces", "reason"),
    [
        ([TRAINED, replace(TRAINED, pid=12)], GOOD, "exit codes 0 and 0, not 0 and 2"),
        ([replace(LEFT, pid=11), LEFT], GOOD, "exit codes 2 and 2, not 0 and 2"),
        ([replace(TRAINED, pid=13), LEFT], GOOD, "does not name process 13"),
        ([TRAINED, replace(LEFT, output="error: (process 11, Ray)")], GOOD, "does not name process 11"),
        ([TRAINED, LEFT], replace(GOOD, identities=2), "2 identities, not 1"),
        ([TRAINED, LEFT], replace(GOOD, tracked=2), "2 runs in MLflow, not 1"),
        ([TRAINED, LEFT], replace(GOOD, final=2), "2 checkpoints of the last step, not 1"),
        ([TRAINED, LEFT], replace(GOOD, final=0), "0 checkpoints of the last step, not 1"),
        ([TRAINED, LEFT], replace(GOOD, ledger=ONCE + Counter([1])), "1 steps in the ledger"),
        ([TRAINED, LEFT], replace(GOOD, points=Counter(range(2))), "1 points in MLflow"),
    ],
)
def test_everything_else_is_named(pair: list[Ended], traces: Traces, reason: str) -> None:
    assert reason in verdict(pair, traces, 3)
