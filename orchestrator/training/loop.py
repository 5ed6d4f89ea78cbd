"""The training loop. Every worker of a run executes `train` from top to bottom; it reads as the recipe.

The step is the state: samples, augmentation, learning rate, dropout and evaluation points of step t follow from the job
and t. A restart restores weights, optimizer state, t and the accounting totals, and goes on at t.
"""

from pkgutil import resolve_name
from typing import Any

import ray

from orchestrator.checkpoint.initial import InitialError
from orchestrator.checkpoint.upload import TakenOver
from orchestrator.cluster.board import Ended
from orchestrator.history.quarantine import TooManyBadSamples
from orchestrator.job.kinds import JOB, NetworkJob
from orchestrator.job.tables import load_extensions
from orchestrator.redact import redact_error, redact_logs
from orchestrator.training.build import Parts, RunPlace, build
from orchestrator.training.health import Diverged, RollBack


def train(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A run that must not go on ends here, on all ranks, and is not restarted.

    Args:
        config: `job`, the resolved job as plain data with absolute URLs; `task`, the dotted path of the job's `Task`;
            `run_url`, the run's folder; `run_id`, its identity in MLflow; `lock`, the token of the command that owns
            it; `held_out`, digests of its held-out sets by name; `board`, the progress actor.
    """
    redact_logs()  # every log record of this process, including libraries'
    try:
        load_extensions(config["job"]["extensions"])  # before the job that may name what they add
        job = JOB.validate_python(config["job"])
        assert isinstance(job, NetworkJob)
        task = resolve_name(config["task"])(job)
        place = RunPlace(*(config[part] for part in ("run_url", "run_id", "lock", "held_out", "board")))
        train_to_the_end(build(job, task, place))
    except (InitialError, TooManyBadSamples, Diverged, TakenOver, Ended) as stop:
        ray.get(config["board"].stop.remote(str(stop), ended=isinstance(stop, Ended)))
    except Exception as error:
        if (redacted := redact_error(error)) is not error:
            raise redacted from None  # Ray logs the traceback
        raise


def train_to_the_end(p: Parts) -> None:
    """One attempt after another, until the run is complete."""
    with p.history:
        step = 0
        while not p.calendar.is_over(step):
            step = attempt(p)
        p.history.end()


def attempt(p: Parts) -> int:
    """Train from the newest checkpoint. Returns the steps done; 0 if the run is rolled back."""
    try:
        return train_from_checkpoint(p)
    except RollBack as reason:
        p.checkpoints.roll_back(reason)
        return 0
    finally:
        p.batches.close()


def train_from_checkpoint(p: Parts) -> int:
    """Restore the newest checkpoint and train to the end of the run. Returns the steps done."""
    step = p.checkpoints.resume()
    if p.held_out.is_owed(step) and (notice := p.held_out.measure(step)):
        p.checkpoints.leave(step, notice)

    for batch in p.batches.after(step):
        # 1. One optimizer step.
        lr, seeds = p.calendar.lr(batch.step), p.task.seeds(batch)
        result = p.engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=lr)
        step = batch.step + 1
        p.history.stepped(step, result, batch)
        p.health.stepped(result, batch, seeds)  # raises RollBack or Diverged

        # 2. Once in a while: a point of the curves.
        if p.calendar.log_due(step):
            p.history.log_training(
                step,
                lr=lr,
                gradient_norm=p.engine.gradient_norm(),
                epoch=p.calendar.epoch(step),
                health=p.health.metrics(),
            )

        # 3. Once in a while: the held-out sets, unless this attempt has to end. Then save, and leave.
        notice = p.notices.agree()
        if notice is None and p.calendar.evaluation_due(step):
            notice = p.held_out.measure(step)
        if notice is not None:
            p.checkpoints.leave(step, notice)

        # 4. Once in a while: a checkpoint, and if the weights are the best so far. The last one is waited for.
        if p.calendar.save_due(step) or p.checkpoints.is_best(step):
            p.checkpoints.save(step, wait=p.calendar.is_over(step))
    return step
