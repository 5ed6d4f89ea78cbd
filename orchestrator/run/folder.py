"""The folder of a run, `{checkpoint.url}/{name}`: its files, and whether a job may continue the run.

    run.json        the run's identity, the digest of its training set, and the code that trains it
    job.yaml        the resolved job as it was last started, without credentials
    classes.json    names of the training set's classes, if they have names (`run/class_names.py`)
    initial.json    the weights that it began with, if there are any (`write_initial`)
    step-*/         checkpoints (`checkpoint/restore.py`)
    samples/        sample ids by step, if the job asks for them (`history/ledger.py`)
    profile/        traced steps, if the job asks for them (`history/profile/profiler.py`)
    first-step      the time of the run's first step
    lock            who trains the run (`run/lock/`)
    measured.json   the held-out sets that it has measured (`run/measured.py`)
    summary.json    the result, once the run is complete

Ray Train stores nothing of a run (`cluster/checkpoint_report.py`).
"""

import json
import re
import time
import uuid
from contextlib import suppress
from typing import Any

import yaml
from pydantic import ValidationError

from data import storage
from orchestrator.job.errors import JobError
from orchestrator.job.kinds import AnyRun, NetworkJob
from orchestrator.job.safe_yaml import parse_without_aliases
from orchestrator.redact import redact_fields
from orchestrator.run.provenance import provenance
from orchestrator.run.recipe import recipe

RUN, JOB, SUMMARY, FIRST_STEP = "run.json", "job.yaml", "summary.json", "first-step"
MANIFEST = "manifest.json"  # of a complete checkpoint
INIT_FROM, HEAD = "model.init_from", "model.head"
INITIAL = "initial.json"
INITIAL_FIELDS = ("url", "sha256", "loaded", "not_loaded")


class OtherRecipe(JobError):
    """The folder holds a run of another recipe or other training data."""


def run_url(job: AnyRun) -> str:
    """The run's folder, of a job with absolute URLs."""
    return f"{job.checkpoint.url.rstrip('/')}/{job.name}"


def has_checkpoint(job: NetworkJob) -> bool:
    """Whether the run of a job with absolute URLs has a complete checkpoint."""
    url = run_url(job)
    names = [name for name in storage.contents(url) if name.startswith("step-")]
    return any(storage.exists(f"{url}/{name}/{MANIFEST}") for name in names)


def check_run(job: NetworkJob, digest: str) -> str | None:
    """Whether this job may continue the run in its folder. Writes nothing.

    A folder whose run never did a step holds nothing to lose: any job may begin there.

    Args:
        job: with absolute URLs.
        digest: of the training set (`run/training_set.py`).

    Returns:
        The run's identity; None if the job begins a new run.

    Raises:
        JobError: the folder holds a run of another recipe or other training data, which this job must not continue,
            or files that cannot be read.
    """
    url = run_url(job)
    if not storage.exists(f"{url}/{RUN}"):
        if storage.exists(f"{url}/{JOB}") and not never_trained(url):
            raise _unusable(job, RUN, "missing", _identity_again(digest))
        return None
    try:
        return _identity(job, digest)
    except OtherRecipe:
        if never_trained(url):
            return None
        raise


def open_run(job: NetworkJob, digest: str) -> str:
    """Write the job into its run's folder; returns the run's identity, which the folder keeps for as long as it exists.

    Call it under the run's lock, since two first starts would give it two identities. Arguments and errors: as
    `check_run`.
    """
    folder, fields = run_url(job), redact_fields(job.model_dump(mode="json"))
    code = {key.removeprefix("code."): value for key, value in provenance().items() if key.startswith("code.")}
    run = {"id": check_run(job, digest) or uuid.uuid4().hex, "train": digest, "code": code}
    storage.write_atomic(f"{folder}/{JOB}", yaml.safe_dump(fields, sort_keys=False).encode())
    storage.write_atomic(f"{folder}/{RUN}", json.dumps(run).encode())  # last: a folder with this file also has a job
    return str(run["id"])


def mark_first_step(url: str) -> None:
    """Note in the folder `url` that the run has done a step."""
    storage.write_atomic(f"{url}/{FIRST_STEP}", f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())


def never_trained(url: str) -> bool:
    """Whether the run in the folder `url` did no step: it has no mark of one, no checkpoint, no points, no result."""
    for name, size in storage.contents(url).items():
        if name in (FIRST_STEP, SUMMARY) or name.startswith("step-"):
            return False
        if size and name.startswith("tracking-") and name.endswith(".jsonl"):
            return False
    return True


def write_initial(run_url: str, record: dict[str, str]) -> None:
    """Note the weights that a run begins with: a record of `INITIAL_FIELDS`.

    Args:
        record: `url`, without credentials; `sha256` of what was read; `loaded` and `not_loaded`, in words.
    """
    storage.write_atomic(f"{run_url}/{INITIAL}", json.dumps(record, indent=1).encode())


def read_initial(run_url: str) -> dict[str, str]:
    """The note of the weights that a run began with; empty if there is none, or a damaged one."""
    try:
        record: Any = json.loads(storage.read(f"{run_url}/{INITIAL}"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    known = isinstance(record, dict) and all(isinstance(record.get(field), str) for field in INITIAL_FIELDS)
    return {field: record[field] for field in INITIAL_FIELDS} if known else {}


def initial_tags(run_url: str) -> dict[str, str]:
    """Tags of the run in MLflow: `init_from.url`, `.sha256`, `.loaded` and `.not_loaded`; none without the note."""
    return {f"init_from.{field}": value for field, value in read_initial(run_url).items()}


def _identity(job: NetworkJob, digest: str) -> str:
    url, remedy = run_url(job), _identity_again(digest)
    run = read_fields(job, RUN, remedy)
    if not isinstance(run.get("id"), str) or not re.fullmatch(r"[0-9a-f]{32}", run["id"]):
        raise _unusable(job, RUN, "damaged (no identity)", remedy)
    if not isinstance(run.get("train"), str):
        raise _unusable(job, RUN, "damaged (no digest)", remedy)
    before, now = _recipe_before(job), recipe(redact_fields(job.model_dump(mode="json")))
    if has_checkpoint(job) and now[INIT_FROM] in (None, before.get(INIT_FROM), read_initial(url).get("url")):
        for key in (INIT_FROM, HEAD):  # the run continues without the weights that it began with
            before.pop(key, None)
            now.pop(key)
    samples = "data.train (digest of its samples)"
    before[samples], now[samples] = run.get("train"), digest
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        advice = "give this job another name, or undo the change"
        if all(key.startswith("schedule.length") for key in changed) and storage.exists(f"{url}/{SUMMARY}"):
            advice = (
                "the run is complete, and its learning rate was planned for this length: give this job another name, "
                f"and `model.init_from: {url}` to begin with the weights of this run"
            )
        where = (f"{job.source}: {key} = {now.get(key)}: the run in {url} was started with" for key in changed)
        raise OtherRecipe(*(f"{text} {before.get(key)}; {advice}" for text, key in zip(where, changed, strict=True)))
    return str(run["id"])


def _recipe_before(job: NetworkJob) -> dict[str, Any]:
    fields = read_fields(job, JOB)
    fields.pop("evaluators", None)  # not part of the recipe; this job may lack the extension that names them
    with suppress(ValidationError):  # of a version with other keys: it is compared as it is
        fields = type(job).model_validate(fields).model_dump(mode="json")  # newer keys get their defaults
    try:
        return recipe(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unusable(job, JOB, "damaged (no resolved job)") from error


def read_fields(job: NetworkJob, name: str, remedy: str = "put back a copy of it") -> dict[str, Any]:
    """The content of a JSON or YAML file of the run's folder.

    Args:
        job: with absolute URLs.
        name: of the file.
        remedy: what to do if it cannot be used, other than to start over.

    Raises:
        JobError: it is damaged, or cannot be read.
    """
    url = run_url(job)
    try:
        content = storage.read(f"{url}/{name}")
        found = json.loads(content) if name.endswith(".json") else parse_without_aliases(content)
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unusable(job, name, f"damaged ({type(error).__name__})", remedy) from error
    except Exception as error:  # of any file system
        if storage.is_outage(error, url):
            raise
        raise _unusable(job, name, f"not readable ({storage.describe(error)})", remedy) from error
    return found


def _identity_again(digest: str) -> str:
    """How a person writes a run's identity again, which its checkpoints name, too."""
    return (
        "put back a copy of it; or, if job and training set are those that it was started with, write "
        f'{{"id": "ID", "train": "{digest}"}} into it, with the "run" of a checkpoint\'s owner.json as ID'
    )


def _unusable(job: NetworkJob, name: str, state: str, remedy: str = "put back a copy of it") -> JobError:
    return JobError(
        f"{job.source}: {run_url(job)}/{name} is {state}; move the run's folder away to start over, or {remedy}"
    )
