"""Which samples each step trained on, for whoever wants proof rather than arithmetic (`tracking.record_samples`).

Each rank writes what it trained since the last checkpoint beside the checkpoints:

    {run}/samples/000000100-000000200-rank-00001-1763800000000000000.json     steps 100 .. 199 of one attempt

Steps that were lost in a crash and done again are in two attempts; the later one is what the weights hold.
"""

import json
from collections import defaultdict

import fsspec
from torch import Tensor


class Ledger:
    """Collects one rank's sample ids; `write` at every checkpoint.

    `attempt` numbers the starts of the run's workers, rising, and is the same on all ranks.
    """

    def __init__(self, run_url: str, rank: int, attempt: int) -> None:
        self._folder, self._rank, self._attempt = f"{run_url}/samples", rank, attempt
        self._steps: dict[int, list[int]] = {}

    def record(self, step: int, ids: Tensor, valid: Tensor) -> None:
        """Note the samples of a step; masked slots are left out."""
        self._steps[step] = ids[valid].tolist()

    def write(self) -> None:
        """Write what was noted since the last time."""
        if not self._steps:
            return
        first, last = min(self._steps), max(self._steps) + 1
        fs, folder = fsspec.core.url_to_fs(self._folder)
        fs.makedirs(folder, exist_ok=True)
        path = f"{folder}/{first:09d}-{last:09d}-rank-{self._rank:05d}-{self._attempt}.json"
        fs.pipe_file(path, json.dumps({"attempt": self._attempt, "steps": self._steps}).encode())
        self._steps = {}


def trained_samples(run_url: str) -> dict[int, list[int]]:
    """The sample ids of every step in a run's final history, sorted, read from its ledger."""
    fs, folder = fsspec.core.url_to_fs(f"{run_url}/samples")
    steps: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # step -> attempt -> ids
    for path in fs.ls(folder, detail=False):
        record = json.loads(fs.cat_file(path))
        for step, ids in record["steps"].items():
            steps[int(step)][record["attempt"]] += ids
    return {step: sorted(by_attempt[max(by_attempt)]) for step, by_attempt in sorted(steps.items())}
