"""The job: one class for each kind, made of sections, and the checks between sections.

The same classes give the error lines (`job/mistakes.py`), the JSON Schema for editors and the page of keys
(`job/docs.py`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from orchestrator.job import choices, data_sections, sections, tables
from orchestrator.job.values import Count, ImpossibleValue, Section, Text, fits

Seed = Annotated[int, Field(ge=0, lt=2**32)]
AnyObjective = Annotated[choices.Objective, tables.OBJECTIVES]
AnyOptimizer = Annotated[choices.Optimizer, tables.OPTIMIZERS]


@dataclass(frozen=True)
class Origin:
    """Where a job is from. Two jobs with the same keys are equal, also if --set has set them in one of the two.

    Attributes:
        source: the job file.
        overrides: dotted keys that --set has set.
    """

    source: str
    overrides: tuple[str, ...] = field(default=(), compare=False)


class Job(Section):
    """What every kind of job has; `load_job` returns one of the kinds below."""

    kind: str
    """What the job does."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run, which lives in checkpoint.url/name; the file's own name unless given."""
    extensions: list[Text] = Field(default=[])
    """Python modules that add kinds, objectives, optimizers, evaluators or sources, such as [mypackage.lion]. They are
    found beside the job file, in the project's folder and among the installed packages."""
    _origin: Origin = Origin("job")

    @property
    def source(self) -> str:
        """The file that this job was read from, as the user named it: for messages."""
        return self._origin.source

    @property
    def overrides(self) -> tuple[str, ...]:
        """Dotted keys that --set has set: for messages."""
        return self._origin.overrides

    def read_from(self, source: str, overrides: tuple[str, ...]) -> None:
        """Note where this job is from."""
        self._origin = Origin(source, overrides)


class NetworkJob(Job):
    """What every kind that trains one network has."""

    seed: Seed = 0
    """Decides order, augmentation, initialisation and dropout."""
    model: sections.Encoder
    data: data_sections.Data
    optimizer: AnyOptimizer
    """The optimizer: its name and the keys that it has."""
    schedule: sections.Schedule
    batch_size: Count
    """Images in a step, over all workers."""
    parallel: sections.Parallel = sections.Parallel()
    training: sections.Training = sections.Training()
    cluster: sections.Cluster = sections.Cluster()
    checkpoint: sections.Checkpoint = sections.Checkpoint()
    evaluate: sections.Evaluate = sections.Evaluate()
    evaluators: Annotated[dict[str, Section], tables.EVALUATORS] = Field(default={})
    """Evaluators by name, each with its keys: {} if it needs none; null removes it. They measure together with the
    held-out sets, unless their `every` is another time."""
    tracking: sections.Tracking = sections.Tracking()
    profile: sections.Profile | None = None

    @fits("batch_size", "cluster.workers")
    def _each_worker_has_an_image(self) -> Iterator[ImpossibleValue]:
        yield from _too_many_workers(self.batch_size, self.cluster)

    @fits("batch_size", "data.train.lanes")
    def _each_lane_has_a_slot(self) -> Iterator[ImpossibleValue]:
        yield from _too_many_lanes(self.data.train.lanes, self.batch_size)

    @fits("data.train.augment", "model.image_size")
    def _training_crops_are_inside(self) -> Iterator[ImpossibleValue]:
        yield from _small_resize(self.data.train.augment, self.model, "data.train")

    @fits("data.eval", "model.image_size")
    def _held_out_crops_are_inside(self) -> Iterator[ImpossibleValue]:
        for name, held_out in self.data.eval.items():
            yield from _small_resize(held_out.augment, self.model, f"data.eval.{name}")

    @fits("checkpoint.best", "data.eval", "evaluators")
    def _the_best_is_measured(self) -> Iterator[ImpossibleValue]:
        if self.checkpoint.best is not None:
            yield from _not_measured(self.checkpoint.best.metric, self.data.eval, self.evaluators)

    @fits("evaluators", "model.image_size")
    def _crops_of_evaluators_are_inside(self) -> Iterator[ImpossibleValue]:
        for key, settings in choices.feature_sets(self.evaluators).items():
            yield from _small_resize(settings.augment, self.model, key)


class ClassifierJob(NetworkJob):
    """Supervised training of a classifier, from scratch or not."""

    model: sections.Model
    objective: AnyObjective
    """What is minimised."""


class PretrainJob(ClassifierJob):
    """Train on a large labelled set."""

    kind: Literal["pretrain"]


class FinetuneJob(ClassifierJob):
    """Train a pre-trained network under a new head on a smaller set."""

    kind: Literal["finetune"]
    model: sections.FinetunedModel

    @fits("model.init_from")
    def _starts_from_weights(self) -> Iterator[ImpossibleValue]:
        yield from _no_weights(self.model)


class MaskedPatchJob(NetworkJob):
    """Train without labels, by predicting the mean colour of corrupted patches."""

    kind: Literal["masked_patch"]


class EvaluateJob(Job):
    """Measure a trained network on held-out sets."""

    kind: Literal["evaluate"]
    model: sections.Measured
    data: data_sections.HeldOutData = data_sections.HeldOutData()
    objective: Annotated[choices.Objective, tables.OBJECTIVES] | None = None
    """The loss that is reported; null = the one that the network was trained with."""
    evaluators: Annotated[dict[str, Section], tables.EVALUATORS] = Field(default={})
    """Evaluators by name, each with its keys: {} if it needs none; null removes it."""
    weights: Annotated[list[Literal["live", "ema"]], Field(min_length=1)] | None = None
    """Weights to measure: as trained, averaged, or both, which are then compared; null = those of model.init_from."""
    compare: Text | None = None
    """Folder of another evaluation; the answers to each set are compared with it by a paired test."""
    batch_size: Count
    """Images in a step, over all workers."""
    parallel: sections.Arithmetic = sections.Arithmetic(precision="float32")
    cluster: sections.Cluster = sections.Cluster()
    checkpoint: sections.Store = sections.Store()
    tracking: sections.Tracking = sections.Tracking()

    @fits("batch_size", "cluster.workers")
    def _each_worker_has_an_image(self) -> Iterator[ImpossibleValue]:
        yield from _too_many_workers(self.batch_size, self.cluster)

    @fits("data.eval", "evaluators")
    def _something_is_measured(self) -> Iterator[ImpossibleValue]:
        if not (self.data.eval or self.evaluators):
            yield ImpossibleValue("data.eval", "missing; give at least one set, or an evaluator")

    @fits("cluster.workers")
    def _workers_are_a_number(self) -> Iterator[ImpossibleValue]:
        if self.cluster.min_workers != self.cluster.max_workers:
            yield ImpossibleValue("cluster.workers", "a range is only for a job that trains; give a number")

    @fits("evaluators")
    def _there_is_one_time(self) -> Iterator[ImpossibleValue]:
        for name, keys in self.evaluators.items():
            if isinstance(keys, choices.Evaluator) and keys.every is not None:
                yield ImpossibleValue(f"evaluators.{name}.every", "only in a job that trains")


AnyRun = NetworkJob | EvaluateJob
"""A job that is one run of workers on Ray."""


class VtabJob(Job):
    """Fine-tune a pre-trained network on each of the 19 VTAB tasks, with a new head for each."""

    kind: Literal["vtab"]
    seed: Seed = 0
    """Decides order, augmentation, initialisation and dropout."""
    model: sections.Encoder
    data: data_sections.VtabData
    objective: AnyObjective
    """What is minimised."""
    optimizer: AnyOptimizer
    """The optimizer: its name and the keys that it has."""
    schedule: sections.Schedule
    batch_size: Count
    """Images in a step, over all workers."""
    parallel: sections.Parallel = sections.Parallel()
    training: sections.Training = sections.Training()
    cluster: sections.Cluster = sections.Cluster()
    checkpoint: sections.Checkpoint = sections.Checkpoint()
    tracking: sections.Tracking = sections.Tracking()

    @fits("model.init_from")
    def _starts_from_weights(self) -> Iterator[ImpossibleValue]:
        yield from _no_weights(self.model)

    @fits("batch_size", "cluster.workers")
    def _each_worker_has_an_image(self) -> Iterator[ImpossibleValue]:
        yield from _too_many_workers(self.batch_size, self.cluster)

    @fits("batch_size", "data.train.lanes")
    def _each_lane_has_a_slot(self) -> Iterator[ImpossibleValue]:
        yield from _too_many_lanes(self.data.train.lanes, self.batch_size)

    @fits("data.train.augment", "model.image_size")
    def _training_crops_are_inside(self) -> Iterator[ImpossibleValue]:
        yield from _small_resize(self.data.train.augment, self.model, "data.train")


class SweepJob(Job):
    """Run a base job once for every combination of values of some of its keys."""

    kind: Literal["sweep"]
    base: Text
    """The job file to vary; its path is relative to this file."""
    grid: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    """The values to try of each key, such as {optimizer.lr: [1.0e-3, 3.0e-3]}."""


@dataclass(frozen=True)
class Start:
    """How a command starts a job.

    Attributes:
        as_json: print the result as one JSON object, last.
        take_over: take a run from the command that trains it.
    """

    as_json: bool = False
    take_over: bool = False


KINDS = tables.Table("kind", Job)
"""function(job, start: Start) -> exit code of the command"""
KINDS.add("pretrain", PretrainJob, "orchestrator.kinds.one_run.pretrain")
KINDS.add("masked_patch", MaskedPatchJob, None)
KINDS.add("finetune", FinetuneJob, None)
KINDS.add("evaluate", EvaluateJob, "orchestrator.kinds.evaluate.evaluate")
KINDS.add("sweep", SweepJob, None)
KINDS.add("vtab", VtabJob, None)

JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, KINDS])


def _too_many_workers(batch_size: int, cluster: sections.Cluster) -> Iterator[ImpossibleValue]:
    if batch_size < cluster.max_workers:
        yield ImpossibleValue("batch_size", f"smaller than the {cluster.max_workers} workers of cluster.workers")


def _too_many_lanes(lanes: int | None, batch_size: int) -> Iterator[ImpossibleValue]:
    if lanes is not None and lanes > batch_size:
        yield ImpossibleValue("data.train.lanes", f"more than batch_size = {batch_size}")


def _small_resize(
    augment: data_sections.Augment | choices.HeldOutAugment, model: sections.Encoder, key: str
) -> Iterator[ImpossibleValue]:
    if augment.resize is not None and augment.resize < model.image_size:
        problem = f"smaller than model.image_size = {model.image_size}, which is cut out of it"
        yield ImpossibleValue(f"{key}.augment.resize", problem)


def _not_measured(metric: str, held_out: Collection[str], evaluators: Collection[str]) -> Iterator[ImpossibleValue]:
    first, second, *_ = metric.split("/")
    if (second not in held_out) if first == "eval" else (first not in evaluators):
        measured = [*(f"eval/{name}/..." for name in held_out), *(f"{name}/..." for name in evaluators)]
        yield ImpossibleValue("checkpoint.best.metric", f"not measured; the job has {', '.join(measured) or 'nothing'}")


def _no_weights(model: sections.Encoder) -> Iterator[ImpossibleValue]:
    if model.init_from is None:
        yield ImpossibleValue("model.init_from", "this kind of job starts from trained weights; give their URL")
