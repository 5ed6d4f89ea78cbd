"""A run in an MLflow store, by synchronous requests. Importing this module imports mlflow, which takes seconds.

`connect` may be called any number of times: it finds or makes the run, completes its description, and reads the last
step of each metric in the store. Nothing else is needed after any failure, even if it is unknown whether the last
request was applied.
"""

import json
import logging
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from data import storage
from orchestrator.redact import redact_text
from orchestrator.run.provenance import provenance, requirements_text
from orchestrator.tracking.database import MIGRATION_LOGGERS, make, path_of
from orchestrator.tracking.description import RunDescription, TrackedDataset
from orchestrator.tracking.points import Point, Status
from orchestrator.tracking.refusal import check_experiment

RUN_KEY_TAG = "vit.run_key"
ATTEMPT_TAG = "vit.attempt"
"""How many processes have trained the run, including the present one."""
TRACKER_TAG = "vit.tracker"
"""A random name of the present process. It finds the run that it made in a request whose answer was lost."""

METRICS_A_BATCH = 1000
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36

_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
"""Error codes of requests that will never be accepted."""

_log = logging.getLogger(__name__)


class MlflowRun:
    """The run of `description`. Methods raise what the store raises, and may then be called again after `connect`."""

    def __init__(self, description: RunDescription) -> None:
        self.run_id = ""
        self.started_ms = 0
        self.url: str | None = None
        """Address of the run's page, on a tracking server."""
        self._description = description
        self._artifact_root = _prepare_database(description.uri)
        self._client = MlflowClient(description.uri, registry_uri=description.uri)
        self._name = uuid.uuid4().hex
        self._provenance = provenance()
        self._described = False
        self._texts: dict[str, Any] | None = None
        self._high_water: dict[str, int] = {}

    # ---- the beginning ----

    def connect(self) -> bool:
        """Find the run by its key, or make it; describe it; read the last step of each of its metrics.

        Returns:
            Whether it was made because the run with that key was deleted.
        """
        experiment_id = self._experiment()
        run, instead = self._find(experiment_id), False
        if run is None:
            instead = self._find(experiment_id, ViewType.DELETED_ONLY) is not None
            run = self._create(experiment_id)
        self.run_id, self.started_ms = run.info.run_id, run.info.start_time
        if self._description.uri.startswith(("http://", "https://")):
            self.url = f"{self._description.uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{self.run_id}"
        if run.info.status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        self._high_water = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if not self._described:
            self._describe(run)
            self._described = True
        return instead

    def take_texts(self) -> dict[str, Any] | None:
        """The record of the job file and the package list, for the queue; None if it was taken since `connect`."""
        texts, self._texts = self._texts, None
        return texts

    def _experiment(self) -> str:
        name = self._description.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name, artifact_location=self._artifact_root))
        check_experiment(name, experiment)
        return str(experiment.experiment_id)

    def _find(self, experiment_id: str, view: int = ViewType.ACTIVE_ONLY) -> Run | None:
        """The newest run with our key. A deleted run is not used: the next points begin a new one."""
        key = self._description.run_key
        quote = '"' if "'" in key else "'"
        found = self._client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{RUN_KEY_TAG}` = {quote}{key}{quote}",
            run_view_type=view,
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return found[0] if found else None

    def _create(self, experiment_id: str) -> Run:
        tags = {RUN_KEY_TAG: self._description.run_key, ATTEMPT_TAG: "1", TRACKER_TAG: self._name}
        self._described = False
        return self._client.create_run(experiment_id, tags=tags, run_name=self._description.run_name)

    # ---- the description ----

    def _describe(self, run: Run) -> None:
        """Log parameters, tags and data sets, and prepare files for the queue.

        The job and the provenance of the first attempt become parameters and tags. A parameter's value can never change
        in MLflow, so values that differ in attempt n go to the tags `attempt.n.KEY`, and the files of that attempt to
        `attempts/n`.
        """
        attempt = int(run.data.tags.get(ATTEMPT_TAG, "1"))
        if run.data.tags.get(TRACKER_TAG) != self._name:
            attempt += 1
        params, facts = flatten(self._description.job), self._provenance
        changed = {
            f"attempt.{attempt}.{key}": value
            for now, before in ((params, run.data.params), (facts, run.data.tags))
            for key, value in now.items()
            if key in before and before[key] != value
        }
        new_params = {key: value for key, value in params.items() if key not in run.data.params}
        new_facts = {key: value for key, value in facts.items() if key not in run.data.tags}
        users = {_legal(key): str(value) for key, value in self._description.tags.items()}
        tags = new_facts | changed | users | {ATTEMPT_TAG: str(attempt), TRACKER_TAG: self._name}
        if "code.commit" in facts:
            tags["mlflow.source.git.commit"] = facts["code.commit"]  # MLflow's page shows this one
        self._client.log_batch(
            self.run_id,
            params=[Param(key, value) for key, value in new_params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if self._description.datasets:
            self._client.log_inputs(self.run_id, datasets=[_dataset_input(each) for each in self._description.datasets])
        self._texts = {
            "folder": f"attempts/{attempt}" if changed else "",
            "texts": {"job.yaml": self._description.job_yaml, "requirements.txt": requirements_text()},
        }

    # ---- files ----

    def store_texts(self, folder: str, texts: Mapping[str, str]) -> None:
        """Store small files in a folder of the run, if they are not there already."""
        there = {entry.path for entry in self._client.list_artifacts(self.run_id, folder or None)}
        for name, text in texts.items():
            path = f"{folder}/{name}" if folder else name
            if path not in there:
                self._client.log_text(self.run_id, text, path)

    def store_folder(self, url: str, path: str) -> None:
        """Store the files in the folder `url` with the run, in its folder `path`. They replace earlier ones."""
        with tempfile.TemporaryDirectory(prefix="vit-artifacts-") as local:
            for name in storage.contents(url):
                storage.get_file(f"{url}/{name}", Path(local) / name)
            self._client.log_artifacts(self.run_id, local, path)

    # ---- the points ----

    def send(self, points: Sequence[Point]) -> None:
        """Log points in their order, without those that the store holds already.

        MLflow appends a repeated step instead of replacing it, so a point at or before the last step of its metric is
        left out. A batch may be applied although its answer was lost and `connect` does not see it yet. Then the second
        copy has the same time stamp, and MLflow's databases drop it by their primary key.
        """
        for batch in _batches(self._fresh(points), METRICS_A_BATCH):
            self._log_batch(batch)
            for point in batch:
                self._high_water[point.name] = point.step

    def _fresh(self, points: Iterable[Point]) -> Iterator[Point]:
        """The points with a step after the last one of their metric, in the store and in `points`."""
        last = dict(self._high_water)
        for point in points:
            if point.name not in last or point.step > last[point.name]:
                last[point.name] = point.step
                yield point

    def _log_batch(self, batch: list[Point]) -> None:
        """Log a batch. If the store refuses it for good, find the refused points by halving, and leave them out."""
        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in batch]
        try:
            self._client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code not in _REFUSED or self._client.get_run(self.run_id).info.lifecycle_stage != "active":
                raise
            if len(batch) == 1:
                _log.warning("tracking: MLflow refuses %s: %s", batch[0], redact_text(str(error)))
                return
            middle = len(batch) // 2
            self._log_batch(batch[:middle])
            self._log_batch(batch[middle:])

    # ---- the end ----

    def finish(self, status: Status) -> None:
        """Set the run's status and end time."""
        self._client.set_terminated(self.run_id, status)


def flatten(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as MLflow parameters: dotted keys; strings as they are, every other value as JSON."""
    flat: dict[str, str] = {}
    for key, value in job.items():
        name = _legal(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST_PARAM]
    return flat


def _legal(key: str) -> str:
    """The key with `_` for each character that MLflow does not allow in names."""
    return re.sub(r"[^/\w.\- :]", "_", key)


def _dataset_input(dataset: TrackedDataset) -> DatasetInput:
    """A data set for MLflow, which keeps 36 characters of a digest; the whole digest is a tag of the input."""
    scheme, found, _ = dataset.url.partition("://")
    about = {"about": dict(dataset.about)} if dataset.about else {}
    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest[:LONGEST_DIGEST],
        source_type=scheme if found else "local",
        source=json.dumps({"uri": dataset.url}),
        profile=json.dumps({"num_rows": dataset.num_samples, "num_classes": dataset.num_classes, **about}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", dataset.context), InputTag("digest", dataset.digest)])


def _batches(points: Iterable[Point], size: int) -> Iterator[list[Point]]:
    pending = list(points)
    for first in range(0, len(pending), size):
        yield pending[first : first + size]


def _prepare_database(uri: str) -> str | None:
    """Make a SQLite database; returns the `file:` URI of its artifacts, None for every other store.

    Artifacts lie beside the database, where `mlflow server` on the same database finds them. Other stores have a
    default of their own.
    """
    for logger in MIGRATION_LOGGERS:
        logging.getLogger(logger).setLevel(logging.WARNING)
    path = path_of(uri)
    if path is None:
        return None
    make(path)
    return (path.parent / "artifacts").as_uri()
