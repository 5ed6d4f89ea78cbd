"""A record of the samples that each step trained on (`tracking.record_samples`), as proof of the order.

Before each checkpoint is complete, each rank writes the samples since the previous one to the run's folder:

    {run}/samples/000000100-000000200-rank-00001-1763800000000000000.json     steps 100 .. 199 of one attempt

Steps that were lost in a crash and trained again are in two attempts; the weights hold the later one.
"""

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable

from torch import Tensor

from data import storage
from orchestrator.tracking.spool import STRANGE

_log = logging.getLogger(__name__)


class Ledger:
    """Collects one rank's sample ids; `write` before every checkpoint is complete.

    `attempt` numbers the starts of the run's workers, rising, and is the same on all ranks.
    """

    def __init__(self, run_url: str, rank: int, attempt: int) -> None:
        self._folder = f"{run_url}/samples"
        self._rank = rank
        self._attempt = attempt

        self._lock = threading.Lock()
        self._steps: dict[int, list[int]] = {}
        self._unwritten: dict[str, bytes] = {}  # content by name

    def record(self, step: int, ids: Tensor, valid: Tensor) -> None:
        """Note the samples of a step; masked slots are left out."""
        with self._lock:
            self._steps[step] = ids[valid].tolist()

    def write(self) -> None:
        """Write the steps since the last call. Call it from one thread; `record` may run at the same time.

        Raises what the store raises; nothing is lost, and the next call tries the same again.
        """
        with self._lock:
            steps, self._steps = self._steps, {}
        if steps:
            name = f"{min(steps):09d}-{max(steps) + 1:09d}-rank-{self._rank:05d}-{self._attempt}.json"
            self._unwritten[name] = json.dumps({"attempt": self._attempt, "steps": steps}).encode()
        for name, content in list(self._unwritten.items()):
            storage.write_atomic(f"{self._folder}/{name}", content)
            del self._unwritten[name]


def trained_samples(run_url: str, warn: Callable[[str], None] = _log.warning) -> dict[int, list[int]]:
    """The sample ids of every step in a run's final history, sorted, read from its ledger.

    `warn` receives a line for each file that is damaged, and is left out.
    """
    steps: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # step -> attempt -> ids
    for name in storage.matching(f"{run_url}/samples", "*.json"):
        url = f"{run_url}/samples/{name}"
        try:
            attempt, ids_by_step = _parse(storage.read(url))
        except Exception as error:  # of the content, or of any file system
            if storage.is_outage(error, run_url) and not isinstance(error, STRANGE):
                raise
            warn(f"{url}: damaged and left out ({type(error).__name__})")
            continue
        for step, ids in ids_by_step.items():
            steps[step][attempt] += ids
    return {step: sorted(by_attempt[max(by_attempt)]) for step, by_attempt in sorted(steps.items())}


def _parse(content: bytes) -> tuple[int, dict[int, list[int]]]:
    """The attempt, and the ids by step. Raises one of `STRANGE` if it is no file of a ledger."""
    record = json.loads(content)
    steps = {int(step): list(ids) for step, ids in record["steps"].items()}
    if {type(number) for numbers in ([record["attempt"]], *steps.values()) for number in numbers} != {int}:
        raise ValueError("no sample ids")
    return record["attempt"], steps
