"""Checks of the places that a job writes to, before anything starts."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import storage
from data.errors import DataError
from orchestrator.job.errors import JobError, Mistakes, unexpected_errors_in
from orchestrator.job.kinds import AnyRun, NetworkJob
from orchestrator.job.mistakes import problem
from orchestrator.run.paths import PathError, resolve_url

PLACEHOLDER = "YOUR-BUCKET"  # in the job files that come with the project
TRACKING_SCHEMES = ("sqlite:///", "postgresql", "mysql", "mssql", "http://", "https://", "databricks")
NAME_BYTES = 255  # of a file's or a folder's name on a local disk
PATH_BYTES = 800  # of a run's folder: a bucket takes 1,024 for its files
READ_ONLY = ("http://", "https://")


@contextmanager
def each(job: AnyRun, found: Mistakes) -> Iterator[None]:
    """Collects what is wrong with one thing, so that the next is looked at, too."""
    with found.collected(), unexpected_errors_in(job.source):
        yield


def check_places(job: AnyRun, found: Mistakes) -> None:
    """Check the run's folder, the database of MLflow and the cache. What is wrong is added to `found`."""
    _check_lengths(job, found)
    if not too_long(job.checkpoint.url):
        with each(job, found):
            _check_writable(job, "checkpoint.url", job.checkpoint.url)
    with each(job, found):
        _check_tracking(job)
    with each(job, found):
        _check_cache(job)


def _check_cache(job: AnyRun) -> None:
    if job.data.cache_dir is None:
        return
    folder = resolve(job, "data.cache_dir", job.data.cache_dir)
    if "://" in folder and not folder.startswith("file://"):
        raise problem(job, "data.cache_dir", "must be a local folder, on each node")


def _check_lengths(job: AnyRun, found: Mistakes) -> None:
    """Check that the run's folder, the database and the packed images have names that their stores take."""
    urls = {"checkpoint.url": job.checkpoint.url, "tracking.uri": job.tracking.uri, "name": job.name}
    if isinstance(job, NetworkJob) and job.data.pack is not None:
        urls["data.pack.to"] = job.data.pack.to
    for key, url in urls.items():
        if longest := too_long(url):
            text = f"a name of {longest:,} bytes; a file's name has at most {NAME_BYTES}"
            found.add(problem(job, key, text))
    with each(job, found):
        run = os.fsencode(f"{resolve(job, 'checkpoint.url', job.checkpoint.url)}/{job.name}")
        if len(run) > PATH_BYTES:
            text = f"with the run's name, {len(run):,} bytes; use at most {PATH_BYTES}"
            raise problem(job, "checkpoint.url", text)


def too_long(url: str) -> int:
    """Bytes of the longest name in a local path, or in that of a database, if no disk takes it; else 0."""
    if "://" in url and not url.startswith("sqlite:///"):
        return 0  # only the whole is limited there
    longest = max(len(os.fsencode(part)) for part in url.split("/"))
    return longest if longest > NAME_BYTES else 0


def _check_writable(job: AnyRun, key: str, url: str) -> None:
    """Checks the scheme and local permissions. Bucket permissions are only known at the first write."""
    resolved = resolve(job, key, url)
    if resolved.startswith(READ_ONLY):
        raise problem(job, key, "cannot be written over HTTP; use a local path, gs:// or s3://")
    if resolved.startswith("memory://"):
        raise problem(job, key, "one process's memory, which workers do not share; use a local path, gs:// or s3://")
    if "://" in resolved:
        try:
            storage.check_reachable(resolved)
            storage.resolve(resolved)
        except DataError as error:
            raise at_url(job, key, url, resolved, str(error)) from error
        return
    folder = next(folder for folder in [Path(resolved), *Path(resolved).parents] if folder.exists())
    if not folder.is_dir():
        raise problem(job, key, f"{folder} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise problem(job, key, f"no right to write in {folder} ({error.strerror})") from error


def _check_tracking(job: AnyRun) -> None:
    uri = resolve(job, "tracking.uri", job.tracking.uri)
    if not uri.startswith(TRACKING_SCHEMES):
        raise problem(
            job, "tracking.uri", f"MLflow keeps runs in a database or on a server: {', '.join(TRACKING_SCHEMES)}..."
        )


def resolve(job: AnyRun, key: str, url: str) -> str:
    if PLACEHOLDER in url:
        raise problem(job, key, f"put your own bucket in place of {PLACEHOLDER}, in the file or with --set")
    try:
        return resolve_url(url)
    except PathError as error:
        raise problem(job, key, str(error).removeprefix(f"{url}: ")) from error


def at_url(job: AnyRun, key: str, url: str, resolved: str, text: str) -> JobError:
    """The error of a URL, which tells where a relative path was looked for."""
    text = text.removeprefix(f"{resolved}: ")
    return problem(job, key, text if url == resolved else f"{text} (looked for at {resolved})")
