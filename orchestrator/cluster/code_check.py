"""The check that workers run the driver's code: if not, the run ends in one line.

Nodes have a checkout of their own unless a job is submitted with a working directory, and a checkout may change while a
run waits for nodes. So each group of workers is asked for the digest of its code before any object of this project is
unpickled there. The functions that compute the digest are sent by value (`run/provenance.py`), because a worker with
other code may lack every module that is imported here. Older drivers do not check.
"""

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.run import provenance

SHOWN_DIGITS = 12  # of a digest
ANSWER_SECONDS = 30.0  # for a process to start on this node


class OtherCode(RuntimeError):
    """Workers run other code than the driver. The message is one line."""


class SameCode(WorkerGroupCallback):
    """Ends the run if its workers have other code. Runs in Ray Train's controller.

    Args:
        digest: of the driver's code.
    """

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Called by Ray Train once the workers' processes run, before they unpickle anything of this project.

        Raises:
            OtherCode: a worker has other code, or none.
        """
        ray.cloudpickle.register_pickle_by_value(provenance)
        digests = ray.get([worker.execute_async(provenance.imported_code_digest) for worker in workers])
        for worker, digest in zip(workers, digests, strict=True):
            if digest != self._digest:
                raise OtherCode(_message(f"the worker on {worker.metadata.node_ip}", digest, self._digest))
        return {}


def other_code_here(digest: str) -> str | None:
    """How the code of Ray's processes on this node differs from the driver's; None if it does not, or Ray is gone."""
    ray.cloudpickle.register_pickle_by_value(provenance)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=here)(provenance.imported_code_digest)
    try:
        found = ray.get(task.remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError:
        return None
    return None if found == digest else _message("Ray on the driver's node", found, digest)


def _message(where: str, found: str | None, expected: str) -> str:
    theirs = "has none" if found is None else f"has digest {found[:SHOWN_DIGITS]}"
    return (
        f"the workers run other code than this command: {where} {theirs}, this command {expected[:SHOWN_DIGITS]}; "
        "update the nodes or submit with --working-dir; if the code was changed meanwhile, run the command again"
    )
