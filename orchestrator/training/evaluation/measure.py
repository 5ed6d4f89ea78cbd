"""What each worker of an evaluation runs: measure a trained network on sets, and leave the counts in the run's folder.

RESULTS          metrics by name, and what each set is
answers/SET.npz  `answers`, `digest` of the set, and counts by class (`evaluation/tally.py`)
"""

import io
import json
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from data import MaskedSample, storage
from data.shards.index import CLASS_MAP
from model import VisionTransformer
from model.objectives import dense_targets
from orchestrator import names
from orchestrator.checkpoint.as_model.trained import ModelError
from orchestrator.checkpoint.weights import read_model
from orchestrator.cluster.watchdog import Heartbeat
from orchestrator.engine.settings import PRECISIONS
from orchestrator.engine.step import Objective
from orchestrator.job.data_sections import MeasuredSet
from orchestrator.job.kinds import JOB, EvaluateJob
from orchestrator.job.tables import EVALUATORS, OBJECTIVES, load_extensions
from orchestrator.redact import redact_error, redact_logs
from orchestrator.training.build import worker_device
from orchestrator.training.evaluation.frozen import Frozen
from orchestrator.training.evaluation.metrics import expected_calibration_error, standard_error
from orchestrator.training.evaluation.tally import Counts, count
from orchestrator.training.measurement import HeldOutSet, Measurement

RESULTS = "results.json"
SHOWN_BAD = 5  # unusable images of a set that are named on the terminal


class TooManyBad(Exception):
    """More images of a set than `data.max_bad_fraction` cannot be used. The text is one line."""


def measure(config: dict[str, Any]) -> None:
    """Measure, and end. An evaluation that must not go on ends on all ranks, and is not restarted.

    Args:
        config: `job`, the resolved job as plain data; `models`, for each kind of weights the URL of the network at its
            step; `run_url`, the folder of the results; `board`, the progress actor.
    """
    redact_logs()
    try:
        load_extensions(config["job"]["extensions"])
        job = JOB.validate_python(config["job"])
        assert isinstance(job, EvaluateJob)
        worker = _Worker(job, config["run_url"], config["board"])
        results = {weights: worker.measure(weights, url) for weights, url in config["models"].items()}
        if dist.get_rank() == 0:
            storage.write_atomic(f"{config['run_url']}/{RESULTS}", json.dumps(results).encode())
    except (ModelError, TooManyBad) as stop:
        ray.get(config["board"].stop.remote(str(stop)))
    except Exception as error:
        if (redacted := redact_error(error)) is not error:
            raise redacted from None
        raise


class _Worker:
    """One worker.

    Args:
        job: with absolute URLs, image size and objective.
        run_url: the folder of the results.
        board: the progress actor.
    """

    def __init__(self, job: EvaluateJob, run_url: str, board: Any) -> None:
        self._job = job
        self._run_url = run_url
        self._board = board
        self._device = worker_device(job)
        self._heartbeat = Heartbeat(board, dist.get_rank(), job.cluster.hang_timeout)
        self._evaluators = {name: EVALUATORS.bound(keys, name) for name, keys in job.evaluators.items()}
        self._bad: dict[str, int] = {}

    def measure(self, weights: str, url: str) -> dict[str, Any]:
        """Metrics of the network at `url` by name, its step, and how each set was read."""
        with self._heartbeat.in_background():
            network, classes, step = self._network(url)
        measurement = Measurement(network, self._job, step, classes, self._heartbeat.around, self._report_bad)
        metrics: dict[str, float] = {}
        for name, settings in self._job.data.eval.items():
            self._say(f"measuring {name} ({weights} weights)")
            with measurement.open(name, settings.url, settings.augment, settings.positive) as held_out:
                found = self._count(network, held_out, name, settings, classes, weights)
            metrics |= {f"{names.held_out(name)}/{metric}": value for metric, value in found.items()}
        for name, evaluate in self._evaluators.items():
            self._say(f"evaluating {name} ({weights} weights)")
            metrics |= {f"{name}/{metric}": value for metric, value in evaluate(measurement).items()}
        return {"step": step, "metrics": metrics}

    def _network(self, url: str) -> tuple[Frozen, int, int]:
        trained = read_model(url, self._say)
        with torch.device("meta"):
            network = VisionTransformer(trained.config)
        network.load_state_dict(trained.tensors, assign=True)
        share = -(-self._job.batch_size // dist.get_world_size())
        frozen = Frozen(network, PRECISIONS[self._job.parallel.precision], share, self._device)
        return frozen, trained.config.num_classes, trained.step

    def _count(
        self, network: Frozen, held_out: HeldOutSet, name: str, settings: MeasuredSet, classes: int, weights: str
    ) -> dict[str, float]:
        assert self._job.objective is not None
        assert settings.rule is not None
        class_map = held_out.index.about.get(CLASS_MAP)
        started = time.monotonic()
        counts = count(
            network,
            held_out,
            self._objective(classes),
            rule=settings.rule,
            num_classes=classes,
            sigmoid=getattr(self._job.objective, "loss", None) == "sigmoid",
            shared=sorted({k for of_class in class_map.values() for k in of_class}) if class_map else None,
        )
        seconds = time.monotonic() - started
        limit, total = self._job.data.max_bad_fraction, counts.images + counts.bad
        if counts.bad > limit * total:
            text = f"{counts.bad:,} of {total:,} images of {name} cannot be used"
            raise TooManyBad(f"{text}, more than data.max_bad_fraction = {limit:g}")
        if dist.get_rank() == 0:
            self._keep(counts, held_out.index.digest, f"{name}.{weights}")
        return metrics_of(counts) | {"images_per_second": counts.images / max(seconds, 1e-9)}

    def _objective(self, classes: int) -> Objective:
        assert self._job.objective is not None
        loss = OBJECTIVES.bound(self._job.objective)
        return lambda logits, labels, weights: loss(logits, dense_targets(labels, weights, classes))

    def _keep(self, counts: Counts, digest: str, name: str) -> None:
        content = io.BytesIO()
        arrays = {
            key: value
            for key in ("class_images", "class_right", "confusion")
            if (value := getattr(counts, key)) is not None
        }
        np.savez_compressed(content, answers=counts.answers, digest=digest, **arrays)
        storage.write_atomic(f"{self._run_url}/answers/{name}.npz", content.getvalue())

    def _report_bad(self, name: str, bad: Iterable[MaskedSample]) -> None:
        for sample in bad:
            self._bad[name] = self._bad.get(name, 0) + 1
            if self._bad[name] <= SHOWN_BAD:
                self._board.say.remote(f"{name}: {sample.key or 'a sample'} in {sample.shard}: {sample.cause}")

    def _say(self, line: str) -> None:
        if dist.get_rank() == 0:
            self._board.say.remote(line)


def metrics_of(counts: Counts) -> dict[str, float]:
    """Rates and their standard errors, by name: `loss`, each accuracy and its `_se`, `ece`, `images`, `bad_samples`,
    and `judged_images` if the rule leaves out some."""
    metrics = {"loss": counts.loss / counts.images if counts.images else float("nan")}
    for name, right in counts.right.items():
        accuracy = right / counts.judged if counts.judged else float("nan")
        metrics[name] = accuracy
        metrics[f"{name}_se"] = standard_error(accuracy, counts.judged)
    metrics["ece"] = expected_calibration_error(counts.bins)
    metrics["images"], metrics["bad_samples"] = float(counts.images), float(counts.bad)
    if counts.judged != counts.images:
        metrics["judged_images"] = float(counts.judged)
    return metrics
