"""The checks of a job that need the world, before anything starts: data is there, labels fit, the run can be saved.

They import neither Ray nor torch.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data import Index, Order, SampleOrder, open_index, storage
from data.errors import DataError
from data.loading.budget import needed_bytes
from orchestrator.job.choices import Pack, feature_sets
from orchestrator.job.errors import JobError
from orchestrator.job.kinds import AnyRun, EvaluateJob, NetworkJob
from orchestrator.job.mistakes import problem
from orchestrator.job.sections import Model
from orchestrator.job.tables import SOURCES
from orchestrator.redact import print_warning
from orchestrator.run.class_names import LabelledSet, check_classes, warn_of_labels, with_class_names
from orchestrator.run.paths import PathError, resolve_url
from orchestrator.run.schedule import Calendar
from orchestrator.run.training_set import TrainingSet, TrainingSetError, open_training_set

PLACEHOLDER = "YOUR-BUCKET"  # in the job files that come with the project
TRACKING_SCHEMES = ("sqlite:///", "postgresql", "mysql", "mssql", "http://", "https://", "databricks")
NAME_BYTES = 255  # of a file's or a folder's name on a local disk
PATH_BYTES = 800  # of a run's folder: a bucket takes 1,024 for its files
MASKED_WARNING, MASKED_ERROR = 0.1, 0.5  # shares of the training slots that have no sample
READ_ONLY = ("http://", "https://")


@dataclass(frozen=True)
class Inputs:
    """What a job reads, and the calendar that follows from it.

    Attributes:
        train: the training set.
        held_out: indexes of `data.eval`, by name.
        calendar: the lengths of the run in steps.
    """

    train: TrainingSet
    held_out: dict[str, Index]
    calendar: Calendar

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the sets of `data.eval`, by name."""
        return {name: index.digest for name, index in self.held_out.items()}


def open_inputs(job: NetworkJob) -> Inputs:
    """Open everything that a job needs.

    Packs the images of `data.pack` first, if they are not there yet.

    Raises:
        JobError: something is not there, does not fit, or cannot be written.
    """
    _check_lengths(job)
    _check_writable(job, "checkpoint.url", job.checkpoint.url)
    _resolve(job, "tracking.uri", job.tracking.uri)
    _check_tracking(job)
    if job.data.pack is not None:
        _pack(job, job.data.pack)
    sources: list[LabelledSet] = []
    train = _training_set(job, sources)
    _check_masked(job, train)
    held_out = {name: _open(job, f"data.eval.{name}.url", held_out.url) for name, held_out in job.data.eval.items()}
    _check_classes(job, sources, held_out)
    _check_positive(job, held_out)
    _check_memory(job, train, held_out)
    _check_feature_sets(job)
    if job.data.cache_dir is not None:
        _check_cache(job, job.data.cache_dir)
    return Inputs(train, held_out, _calendar(job, train))


def open_sets(job: EvaluateJob, num_classes: int, image_size: int) -> dict[str, Index]:
    """Open the sets that an evaluation measures on, and check where its results go. Their indexes by name.

    Args:
        job: as loaded.
        num_classes: of the network's head.
        image_size: side of its input in pixels.

    Raises:
        JobError: something is not there, does not fit, or cannot be written.
    """
    _check_lengths(job)
    _check_writable(job, "checkpoint.url", job.checkpoint.url)
    _resolve(job, "tracking.uri", job.tracking.uri)
    _check_tracking(job)
    augments = {f"data.eval.{name}": one.augment for name, one in job.data.eval.items()}
    augments |= {key: one.augment for key, one in feature_sets(job.evaluators).items()}
    for key, augment in augments.items():
        if augment.resize is not None and augment.resize < image_size:
            text = f"smaller than the input of {image_size} pixels, which is cut out of it"
            raise problem(job, f"{key}.augment.resize", text)
    held_out = {}
    for name, one in job.data.eval.items():
        key = f"data.eval.{name}.url"
        held_out[name] = index = _open_labelled(job, key, one.url)
        if index.num_classes > num_classes:
            _check_labels(job, "model.init_from", num_classes, key, one.url, index)
    _check_positive(job, held_out)
    _check_feature_sets(job)
    if job.data.cache_dir is not None:
        _check_cache(job, job.data.cache_dir)
    return held_out


def _training_set(job: NetworkJob, sources: list[LabelledSet]) -> TrainingSet:
    """The training set. The sets that it consists of are added to `sources`."""

    def open_set(key: str, url: str) -> Index:
        sources.append(LabelledSet(key, url, _open(job, key, url)))
        return sources[-1].index

    try:
        return open_training_set(
            job.data.train,
            seed=job.seed,
            batch_size=job.batch_size,
            resolve=partial(_resolve, job),
            open_set=open_set,
        )
    except TrainingSetError as error:
        raise problem(job, error.key, str(error)) from error


def _check_masked(job: NetworkJob, train: TrainingSet) -> None:
    """A slot without a sample costs as much as one with."""
    share, samples = train.order.masked_share, train.order.num_samples
    if share <= MASKED_WARNING:
        return
    text = f"{share:.0%} of the training slots would be empty, since data.train has {samples:,} samples"
    if share > MASKED_ERROR:
        raise problem(job, "batch_size", f"{text}; use {samples:,} or less")
    print_warning(str(problem(job, "batch_size", f"{text}; a batch size that divides them costs less")))


def _calendar(job: NetworkJob, train: TrainingSet) -> Calendar:
    """The calendar of the run, whose parts fit each other."""
    calendar = Calendar.of(job, train.order.steps_per_epoch)
    warmup, total = calendar.warmup_steps, calendar.total_steps
    if warmup > total:
        raise problem(job, "schedule.warmup", f"{warmup} steps are longer than the run of {total}; null = no warm-up")
    if job.profile is not None and job.profile.steps[1] > total:
        raise problem(job, "profile.steps", f"beyond the run of {total} steps")
    return calendar


def _check_positive(job: AnyRun, held_out: Mapping[str, Index]) -> None:
    for name, index in held_out.items():
        if job.data.eval[name].positive and not index.multi_label:
            raise problem(job, f"data.eval.{name}.positive", "its images have one label each, without weights; use 0")


def _check_classes(job: NetworkJob, sources: Sequence[LabelledSet], held_out: Mapping[str, Index]) -> None:
    if not isinstance(job.model, Model):
        return
    named = [
        (name, LabelledSet(f"data.eval.{name}.url", one.url, held_out[name])) for name, one in job.data.eval.items()
    ]
    warn_of_labels(job, [*sources, *(one for _, one in named)])
    compared = [*sources, *(one for name, one in named if job.data.eval[name].check_classes)]
    check_classes(job, compared, job.model.num_classes)


def _check_memory(job: NetworkJob, train: TrainingSet, held_out: dict[str, Index]) -> None:
    """The encoded and decoded images of a worker fit into `data.memory`, with the fewest workers that the job takes."""
    if job.data.memory is None:
        return
    slots = range(-(-job.batch_size // job.cluster.min_workers))
    sets: dict[str, tuple[Index, Order]] = {"data.train": (train.index, train.order)}
    for name, index in held_out.items():
        sets[f"data.eval.{name}"] = index, SampleOrder(index, batch_size=job.batch_size, shuffle=False)
    for key, (index, order) in sets.items():
        needed = needed_bytes(index, order, slots, job.model.image_size, job.data.prefetch)
        if needed > job.data.memory:
            raise problem(
                job,
                "data.memory",
                f"a worker needs {needed:,} bytes for {len(slots):,} images of {key} a step; give more, or lower "
                f"data.train.block ({job.data.train.block}), data.train.lanes or data.prefetch",
            )


def _check_feature_sets(job: AnyRun) -> None:
    """The sets of evaluators of frozen features: one label an image, and no class that is only tested."""
    for key, settings in feature_sets(job.evaluators).items():
        train = _open_labelled(job, f"{key}.train", settings.train)
        test = _open_labelled(job, f"{key}.test", settings.test)
        for part, index in (("train", train), ("test", test)):
            if index.multi_label:
                raise problem(job, f"{key}.{part}", "its images have several labels each; one is needed")
        if test.num_classes > train.num_classes:
            text = f"{test.num_classes} classes, and {key}.train has {train.num_classes}"
            raise problem(job, f"{key}.test", text)


def _check_cache(job: AnyRun, folder: str) -> None:
    if "://" in folder and not folder.startswith("file://"):
        raise problem(job, "data.cache_dir", "must be a local folder, on each node")


def _open(job: NetworkJob, key: str, url: str) -> Index:
    if not isinstance(job.model, Model):
        return _open_any(job, key, url)
    index = _open_labelled(job, key, url)
    if index.num_classes > job.model.num_classes:
        _check_labels(job, "model.num_classes", job.model.num_classes, key, url, index)
    return index


def _open_labelled(job: AnyRun, key: str, url: str) -> Index:
    index = _open_any(job, key, url)
    if index.label_rule().unlabelled and not index.label_counts:
        raise problem(job, key, "its images have no labels: it was indexed with --unlabelled")
    return index


def _open_any(job: AnyRun, key: str, url: str) -> Index:
    resolved = _resolve(job, key, url)
    try:
        storage.check_reachable(resolved)
        return with_class_names(open_index(resolved))
    except DataError as error:
        raise _at(job, key, url, resolved, str(error)) from error


def _check_labels(job: AnyRun, head: str, num_classes: int, key: str, url: str, index: Index) -> None:
    """Stray labels beyond the classes are bad samples, to be masked; more of them are a mistake in the job."""
    outside = sum(count for label, count in index.label_counts.items() if label >= num_classes)
    if not index.label_counts or outside > job.data.max_bad_fraction * index.num_samples:
        text = f"fewer than the {index.num_classes} classes of {key} = {url}"
        raise problem(job, head, text if head == "model.num_classes" else f"its head has {num_classes} classes, {text}")


def _pack(job: NetworkJob, settings: Pack) -> None:
    folder = _resolve(job, "data.pack.to", settings.to)
    try:
        SOURCES.bound(settings)(folder)
    except (DataError, OSError) as error:
        raise problem(job, "data.pack.to", str(error)) from error


def _check_lengths(job: AnyRun) -> None:
    """Check that the run's folder, the database and the packed images have names that their stores take."""
    urls = {"checkpoint.url": job.checkpoint.url, "tracking.uri": job.tracking.uri, "name": job.name}
    if isinstance(job, NetworkJob) and job.data.pack is not None:
        urls["data.pack.to"] = job.data.pack.to
    for key, url in urls.items():
        if "://" in url and not url.startswith("sqlite:///"):
            continue  # only the whole is limited there
        longest = max(len(os.fsencode(part)) for part in url.split("/"))
        if longest > NAME_BYTES:
            raise problem(job, key, f"a name of {longest} bytes; a file's name has at most {NAME_BYTES}")
    run = os.fsencode(f"{_resolve(job, 'checkpoint.url', job.checkpoint.url)}/{job.name}")
    if len(run) > PATH_BYTES:
        raise problem(job, "checkpoint.url", f"with the run's name, {len(run)} bytes; use at most {PATH_BYTES}")


def _check_writable(job: AnyRun, key: str, url: str) -> None:
    """Checks the scheme and local permissions. Bucket permissions are only known at the first write."""
    resolved = _resolve(job, key, url)
    if resolved.startswith(READ_ONLY):
        raise problem(job, key, "cannot be written over HTTP; use a local path, gs:// or s3://")
    if resolved.startswith("memory://"):
        raise problem(job, key, "one process's memory, which workers do not share; use a local path, gs:// or s3://")
    if "://" in resolved:
        try:
            storage.check_reachable(resolved)
            storage.resolve(resolved)
        except DataError as error:
            raise _at(job, key, url, resolved, str(error)) from error
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
    uri = _resolve(job, "tracking.uri", job.tracking.uri)
    if not uri.startswith(TRACKING_SCHEMES):
        raise problem(
            job, "tracking.uri", f"MLflow keeps runs in a database or on a server: {', '.join(TRACKING_SCHEMES)}..."
        )


def _resolve(job: AnyRun, key: str, url: str) -> str:
    if PLACEHOLDER in url:
        raise problem(job, key, f"put your own bucket in place of {PLACEHOLDER}, in the file or with --set")
    try:
        return resolve_url(url)
    except PathError as error:
        raise problem(job, key, str(error).removeprefix(f"{url}: ")) from error


def _at(job: AnyRun, key: str, url: str, resolved: str, text: str) -> JobError:
    """The error of a URL, which tells where a relative path was looked for."""
    text = text.removeprefix(f"{resolved}: ")
    return problem(job, key, text if url == resolved else f"{text} (looked for at {resolved})")
