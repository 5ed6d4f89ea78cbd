"""What MLflow did not get of a run that is complete, because it was away at the end, is delivered by the next call."""

from typing import Any

from orchestrator.job.kinds import NetworkJob
from orchestrator.run.folder import run_url
from orchestrator.run.inputs import Inputs
from orchestrator.run.summary import write_summary
from orchestrator.tracking.description import describe_run
from orchestrator.tracking.tracker import Tracker

REACH_SECONDS = 30.0
"""How long a tracking server is waited for."""

DELIVERY_SECONDS = 600.0
"""How long the delivery may take once it was reached. What is left then comes with the next call."""


def is_incomplete(summary: dict[str, Any]) -> bool:
    """Whether MLflow was away when the run of this summary ended."""
    return summary.get("mlflow_run_id") is None or not summary.get("mlflow_complete", True)


def deliver_rest(job: NetworkJob, run_id: str, inputs: Inputs, summary: dict[str, Any]) -> bool:
    """Bring to MLflow what a complete run still owes it, and end its run there. Returns whether that was done.

    Then `summary`, here and in the run's folder, tells where the run is in MLflow. A call that is interrupted, or that
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
