"""What the command delivers to MLflow itself: the rest of a complete run, and that a run was stopped."""

from dataclasses import replace
from typing import Any

from orchestrator.job.kinds import NetworkJob
from orchestrator.run.folder import run_url
from orchestrator.run.inputs import Inputs
from orchestrator.run.summary import write_summary
from orchestrator.tracking.description import describe_run
from orchestrator.tracking.points import Status
from orchestrator.tracking.tracker import Tracker

REACH_SECONDS = 30.0
"""How long to wait for a tracking server."""

DELIVERY_SECONDS = 600.0
"""How long the delivery may take once the server was reached. The next call delivers what is left then."""

STOP_SECONDS = 10.0
"""How long a command that a person or a system stopped takes to say so in MLflow."""

FAILURE_SECONDS = 60.0
"""How long a command whose run failed takes to say so in MLflow: nothing waits for its end."""


def is_incomplete(summary: dict[str, Any]) -> bool:
    """Whether MLflow lacks part of the complete run with this summary."""
    return summary.get("mlflow_run_id") is None or not summary.get("mlflow_complete", True)


def deliver_rest(job: NetworkJob, run_id: str, inputs: Inputs, summary: dict[str, Any]) -> bool:
    """Deliver to MLflow what it lacks of a complete run, and end its run there. Returns whether that was done.

    Then `summary`, here and in the run's folder, says where the run is in MLflow. A call that is interrupted, or that
    does not reach MLflow, loses nothing and may be repeated.
    """
    description = describe_run(
        job, run_id, inputs.train, inputs.held_out, workers=summary["workers"], device=summary["device"]["name"]
    )
    tracker = Tracker.beside(description, run_url(job), system_seconds=None)
    tracker.flush(REACH_SECONDS)
    if not tracker.close("FINISHED", timeout=0.0 if tracker.run_id is None else DELIVERY_SECONDS):
        return False
    summary |= {"mlflow_run_id": tracker.run_id, "mlflow": tracker.url_hint(), "mlflow_complete": True}
    write_summary(run_url(job), summary)
    return True


def deliver_stop(job: NetworkJob, run_id: str, inputs: Inputs, status: Status, seconds: float) -> bool:
    """Deliver the points that the workers left behind, and end the run in MLflow, within so many seconds.

    Call it once the workers have ended. Returns whether that was done; what was not delivered stays with the run.
    """
    description = describe_run(job, run_id, inputs.train, inputs.held_out, workers=0, device="")
    description = replace(description, tags=job.tracking.tags)  # those of the workers stay as they are
    tracker = Tracker.beside(description, run_url(job), system_seconds=None)
    return tracker.close(status, timeout=seconds)
