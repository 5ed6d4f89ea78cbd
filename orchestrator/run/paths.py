"""Paths of a job file, made absolute.

`~` and `$NAME` are expanded everywhere. This is how a credential gets into a URL,
`postgresql://me:$PASSWORD@host/mlflow`; `redact.py` removes it from everything that is stored. A relative local path
(also that of `sqlite:///runs/mlflow.db`) begins at

1. $VIT_HOME, if it is set;
2. else ~/vit, if the current directory is one that Ray unpacked for a submitted job (`ray job submit --working-dir .`):
   Ray deletes that folder after the job, and the run would go with it;
3. else the current directory.
"""

import os
from pathlib import Path
from typing import TypeVar

from orchestrator.job.choices import FeatureEvaluator
from orchestrator.job.kinds import AnyRun, NetworkJob
from orchestrator.redact import VARIABLE, is_secret_name, redact_text
from orchestrator.run.recipe import FREE_SOURCE_KEYS

RAY_WORKING_DIRECTORY = "/runtime_resources/working_dir_files/"
SQLITE = "sqlite:///"

PROJECT = Path(__file__).resolve().parents[2]
"""The project's folder: a git checkout, or the copy of it that Ray sent to a worker."""

Run = TypeVar("Run", bound=AnyRun)


class PathError(ValueError):
    """A path that cannot be resolved. The message is one line."""


def resolve_url(url: str) -> str:
    """The URL or local path of a job file, made independent of the current directory.

    Raises:
        PathError: it names an environment variable that is not set, or one with the name of a credential in a place
            that is stored.
    """
    public = redact_text(url)
    for found in VARIABLE.finditer(url):
        name = found[1] or found[2]
        if name not in os.environ:
            raise PathError(f"{url}: the environment variable {name} is not set")
        if is_secret_name(name) and found[0] in public:
            raise PathError(f"{url}: {name} would be stored with the run; it may only be used as a password")
    expanded = os.path.expandvars(url)
    if expanded.startswith(SQLITE):
        return SQLITE + _absolute_in_uri(expanded.removeprefix(SQLITE))
    return expanded if "://" in expanded else _absolute(expanded)


def absolute(job: Run) -> Run:
    """The job with every URL made independent of the current directory, for workers and MLflow."""
    fields = job.model_dump(mode="json")
    fields["checkpoint"]["url"] = resolve_url(job.checkpoint.url)
    fields["tracking"]["uri"] = resolve_url(job.tracking.uri)
    if job.model.init_from is not None:
        fields["model"]["init_from"] = resolve_url(job.model.init_from)
    if job.data.cache_dir is not None:
        fields["data"]["cache_dir"] = resolve_url(job.data.cache_dir)
    if isinstance(job, NetworkJob):
        train = fields["data"]["train"]
        for source in (train, *train["sources"].values()):
            source |= {key: resolve_url(source[key]) for key in FREE_SOURCE_KEYS if source[key] is not None}
        if job.data.pack is not None:
            fields["data"]["pack"]["to"] = resolve_url(job.data.pack.to)
    elif job.compare is not None:
        fields["compare"] = resolve_url(job.compare)
    for held_out in fields["data"]["eval"].values():
        held_out["url"] = resolve_url(held_out["url"])
    for name, evaluator in fields["evaluators"].items():
        if isinstance(evaluator.get("url"), str):
            evaluator["url"] = resolve_url(evaluator["url"])
        if isinstance(job.evaluators[name], FeatureEvaluator):
            for one in evaluator["sets"].values():
                one |= {key: resolve_url(one[key]) for key in ("train", "test")}
    resolved: Run = type(job).model_validate(fields)  # type: ignore[assignment]
    resolved.read_from(job.source, job.overrides)
    return resolved


def relative_paths_begin_at() -> Path:
    """The folder that relative local paths of job files are taken from."""
    home = os.environ.get("VIT_HOME")
    if home:
        return Path(home).expanduser().absolute()
    here = Path.cwd()
    return Path.home() / "vit" if RAY_WORKING_DIRECTORY in f"{here}/" else here


def _absolute_in_uri(path: str) -> str:
    """As `_absolute`, for the path of a database's URI: a `%` or `?` in the name of a folder above it is escaped."""
    if path.startswith(("/", "~")):
        return _absolute(path)
    above = str(relative_paths_begin_at()).replace("%", "%25").replace("?", "%3F")
    return os.path.normpath(os.path.join(above, path))


def _absolute(path: str) -> str:
    try:
        return os.path.normpath(relative_paths_begin_at() / Path(path).expanduser())
    except RuntimeError as error:  # ~user of an unknown user
        raise PathError(f"{path}: no such home folder") from error
