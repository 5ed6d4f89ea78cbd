"""The checks of a job that need the world, before anything starts: data is there, labels fit, the run can be saved.

They import neither Ray nor torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from data import Index, Order, SampleOrder
from data.errors import DataError
from data.loading.budget import needed_bytes
from orchestrator.job.choices import HeldOutAugment, Pack, feature_sets
from orchestrator.job.errors import JobError, Mistakes
from orchestrator.job.kinds import EvaluateJob, NetworkJob
from orchestrator.job.mistakes import problem
from orchestrator.job.sections import Model
from orchestrator.job.tables import SOURCES
from orchestrator.redact import print_warning
from orchestrator.run.checks.places import check_places, each, resolve, too_long
from orchestrator.run.checks.sets import check_feature_sets, check_labels, check_positive, open_any, open_labelled
from orchestrator.run.class_names import LabelledSet, check_classes, warn_of_labels
from orchestrator.run.pack import expected_sets
from orchestrator.run.schedule import Calendar
from orchestrator.run.training_set import TrainingSet, TrainingSetError, open_training_set

MASKED_WARNING, MASKED_ERROR = 0.1, 0.5  # shares of the training slots that have no sample


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


@dataclass(frozen=True)
class Outlook:
    """What a job will read, before its images are packed.

    Attributes:
        inputs: what is known; None if the source of `data.pack` cannot say what it will make.
        to_pack: URLs of the sets that are not packed yet. Their indexes in `inputs` have no bytes and no digest.
    """

    inputs: Inputs | None
    to_pack: tuple[str, ...]


def open_inputs(job: NetworkJob) -> Inputs:
    """Open everything that a job needs.

    Packs the images of `data.pack`, if they are not there yet and nothing else is wrong.

    Raises:
        JobError: something is not there, does not fit, or cannot be written.
    """
    outlook = look_ahead(job)
    return outlook.inputs if outlook.inputs is not None and not outlook.to_pack else pack_inputs(job)


def look_ahead(job: NetworkJob) -> Outlook:
    """Check everything that a job needs; packs and writes nothing.

    Raises:
        JobError: with a line for each thing that is not there, does not fit, or cannot be written.
    """
    found = Mistakes()
    expected: dict[str, Index | None] = {}
    with each(job, found):
        if job.data.pack is not None and not too_long(job.data.pack.to):
            expected = expected_sets(job.data.pack, resolve(job, "data.pack.to", job.data.pack.to))
    inputs = _checked(job, expected, found)
    found.report()
    return Outlook(inputs, tuple(expected))


def pack_inputs(job: NetworkJob) -> Inputs:
    """Pack the images of `data.pack`, and open everything that a job needs. Call `look_ahead` before.

    Raises:
        JobError: the images cannot be packed, or what was packed does not fit.
    """
    if job.data.pack is not None:
        _pack(job, job.data.pack)
    found = Mistakes()
    inputs = _checked(job, {}, found)
    found.report()
    assert inputs is not None
    return inputs


def open_sets(job: EvaluateJob, num_classes: int, image_size: int) -> dict[str, Index]:
    """Open the sets that an evaluation measures on, and check where its results go. Their indexes by name.

    Args:
        job: as loaded.
        num_classes: of the network's head.
        image_size: side of its input in pixels.

    Raises:
        JobError: with a line for each thing that is not there, does not fit, or cannot be written.
    """
    found = Mistakes()
    check_places(job, found)
    augments: dict[str, HeldOutAugment] = {f"data.eval.{name}": one.augment for name, one in job.data.eval.items()}
    augments |= {key: one.augment for key, one in feature_sets(job.evaluators).items()}
    for key, augment in augments.items():
        if augment.resize is not None and augment.resize < image_size:
            text = f"smaller than the input of {image_size} pixels, which is cut out of it"
            found.add(problem(job, f"{key}.augment.resize", text))
    held_out = {}
    for name, one in job.data.eval.items():
        key = f"data.eval.{name}.url"
        with each(job, found):
            held_out[name] = index = open_labelled(job, key, one.url)
            if index.num_classes > num_classes:
                check_labels(job, "model.init_from", num_classes, key, one.url, index)
    check_positive(job, held_out, found)
    check_feature_sets(job, found)
    found.report()
    return held_out


def _checked(job: NetworkJob, expected: Mapping[str, Index | None], found: Mistakes) -> Inputs | None:
    """The inputs; None if something is wrong, which is in `found`, or is not known before it is packed.

    Args:
        expected: sets that are not packed yet, by URL; None if their contents are not known.
    """
    check_places(job, found)
    check_feature_sets(job, found)

    open_set = partial(_open, job, expected)
    sources: dict[str, Index | None] = {}
    for key, source in job.data.train.all_sources().items():
        with each(job, found):
            sources[f"{key}.url"] = open_set(f"{key}.url", source.url)
        if source.exclude is not None:
            with each(job, found):
                resolve(job, f"{key}.exclude", source.exclude)
    held_out: dict[str, Index | None] = {}
    for name, settings in job.data.eval.items():
        with each(job, found):
            held_out[name] = open_set(f"data.eval.{name}.url", settings.url)
    tests = {name: index for name, index in held_out.items() if index is not None}
    with each(job, found):
        _check_classes(job, sources, tests)
    check_positive(job, tests, found)

    if len(sources) < len(job.data.train.all_sources()) or None in sources.values():
        return None
    train = calendar = None
    with each(job, found):
        train = _training_set(job, sources)
        calendar = _calendar(job, train)
    if train is not None:
        with each(job, found):
            _check_masked(job, train, quiet=bool(found))
        with each(job, found):
            _check_memory(job, train, tests)
    if train is None or calendar is None or len(tests) < len(job.data.eval):
        return None
    return Inputs(train, tests, calendar)


def _training_set(job: NetworkJob, sources: Mapping[str, Index | None]) -> TrainingSet:
    """The training set, whose sources are open, by key."""

    def opened(key: str, url: str) -> Index:
        index = sources[key]
        assert index is not None
        return index

    try:
        return open_training_set(
            job.data.train,
            seed=job.seed,
            batch_size=job.batch_size,
            resolve=partial(resolve, job),
            open_set=opened,
        )
    except TrainingSetError as error:
        lines = [line for one in (error, *error.others) for line in problem(job, one.key, str(one)).lines]
        raise JobError(*lines) from error


def _check_masked(job: NetworkJob, train: TrainingSet, *, quiet: bool) -> None:
    """A slot without a sample costs as much as one with. `quiet`: without a warning."""
    share, samples = train.order.masked_share, train.order.num_samples
    if share <= MASKED_WARNING:
        return
    text = f"{share:.0%} of the training slots would be empty, since data.train has {samples:,} samples"
    if share > MASKED_ERROR:
        raise problem(job, "batch_size", f"{text}; use {samples:,} or less")
    if not quiet:
        print_warning(str(problem(job, "batch_size", f"{text}; a batch size that divides them costs less")))


def _calendar(job: NetworkJob, train: TrainingSet) -> Calendar:
    """The calendar of the run, whose parts fit each other."""
    calendar = Calendar.of(job, train.order.steps_per_epoch)
    warmup, total = calendar.warmup_steps, calendar.total_steps
    found = Mistakes()
    if warmup > total:
        text = f"{warmup:,} steps are longer than the run of {total:,}; null = no warm-up"
        found.add(problem(job, "schedule.warmup", text))
    if job.profile is not None and job.profile.steps[1] > total:
        found.add(problem(job, "profile.steps", f"beyond the run of {total:,} steps"))
    found.report()
    return calendar


def _check_classes(job: NetworkJob, sources: Mapping[str, Index | None], held_out: Mapping[str, Index]) -> None:
    if not isinstance(job.model, Model):
        return
    urls = {f"{key}.url": source.url for key, source in job.data.train.all_sources().items()}
    trained = [LabelledSet(key, urls[key], index) for key, index in sources.items() if index is not None]
    named = [
        (name, LabelledSet(f"data.eval.{name}.url", job.data.eval[name].url, index)) for name, index in held_out.items()
    ]
    warn_of_labels(job, [*trained, *(one for _, one in named)])
    compared = [*trained, *(one for name, one in named if job.data.eval[name].check_classes)]
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
        if not index.num_bytes:
            continue  # it is not packed yet
        needed = needed_bytes(index, order, slots, job.model.image_size, job.data.prefetch)
        if needed > job.data.memory:
            raise problem(
                job,
                "data.memory",
                f"a worker needs {needed:,} bytes for {len(slots):,} images of {key} a step; give more, or lower "
                f"data.train.block ({job.data.train.block}), data.train.lanes or data.prefetch",
            )


def _open(job: NetworkJob, expected: Mapping[str, Index | None], key: str, url: str) -> Index | None:
    """The index of a set of the job; None if its contents are not known before it is packed.

    Args:
        expected: sets that are not packed yet, by URL.
    """
    if (resolved := resolve(job, key, url).rstrip("/")) in expected:
        index = expected[resolved]
        if index is None or job.data.train.exclude is not None:  # a list of exclusions names the packed set
            return None
    else:
        index = open_labelled(job, key, url) if isinstance(job.model, Model) else open_any(job, key, url)
    if isinstance(job.model, Model) and index.num_classes > job.model.num_classes:
        check_labels(job, "model.num_classes", job.model.num_classes, key, url, index)
    return index


def _pack(job: NetworkJob, settings: Pack) -> None:
    folder = resolve(job, "data.pack.to", settings.to)
    try:
        SOURCES.bound(settings)(folder)
    except (DataError, OSError) as error:
        raise problem(job, "data.pack.to", str(error)) from error
