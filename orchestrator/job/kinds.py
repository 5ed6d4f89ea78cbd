"""The job: one class for each kind, made of sections, and the checks between sections.

The same classes give the error lines (`job/mistakes.py`), the JSON Schema for editors and the page of keys
(`job/docs.py`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from orchestrator.job import choices, data_sections, sections, tables
from orchestrator.job.values import Count, ImpossibleValue, Section, Text

Seed = Annotated[int, Field(ge=0, lt=2**32)]
AnyObjective = Annotated[choices.Objective, tables.OBJECTIVES]
AnyOptimizer = Annotated[choices.Optimizer, tables.OPTIMIZERS]


class Job(Section):
    """What every kind of job has; `load_job` returns one of the kinds below."""

    kind: str
    """What the job does."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run, which lives in checkpoint.url/name; the file's own name unless given."""
    extensions: list[Text] = Field(default=[])
    """Python modules that add kinds, objectives, optimizers, evaluators or sources, such as [mypackage.lion]. They are
    found beside the job file, in the project's folder and among the installed packages."""
    _source: str = "job"

    @property
    def source(self) -> str:
        """The file that this job was read from, as the user named it: for messages."""
        return self._source


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

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        _check_batch(self.batch_size, self.cluster)
        _check_warmup(self.schedule)
        _check_lanes(self.data.train.lanes, self.batch_size)
        _check_resize(self.data.train.augment, self.model, "data.train")
        for name, held_out in self.data.eval.items():
            _check_resize(held_out.augment, self.model, f"data.eval.{name}")
        if self.checkpoint.best is not None:
            _check_best(self.checkpoint.best.metric, self.data.eval, self.evaluators)
        _check_feature_sets(self.evaluators, self.model)
        self.model.vit_config()  # last, as in the other kinds: it is the only check that loads `model`
        return self


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

    @model_validator(mode="after")
    def _starts_from_weights(self) -> Self:
        _check_init_from(self.model)
        return self


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

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        _check_batch(self.batch_size, self.cluster)
        if not (self.data.eval or self.evaluators):
            raise ImpossibleValue("data.eval", "missing; give at least one set, or an evaluator")
        if self.cluster.min_workers != self.cluster.max_workers:
            raise ImpossibleValue("cluster.workers", "a range is only for a job that trains; give a number")
        for name, keys in self.evaluators.items():
            if isinstance(keys, choices.Evaluator) and keys.every is not None:
                raise ImpossibleValue(f"evaluators.{name}.every", "only in a job that trains")
        return self


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

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        _check_init_from(self.model)
        _check_batch(self.batch_size, self.cluster)
        _check_warmup(self.schedule)
        _check_lanes(self.data.train.lanes, self.batch_size)
        _check_resize(self.data.train.augment, self.model, "data.train")
        self.model.vit_config()
        return self


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


def _check_batch(batch_size: int, cluster: sections.Cluster) -> None:
    if batch_size < cluster.max_workers:
        raise ImpossibleValue("batch_size", f"smaller than the {cluster.max_workers} workers of cluster.workers")


def _check_warmup(schedule: sections.Schedule) -> None:
    """Durations in the same unit need no data; other pairs are compared when the data is open, in steps."""
    if schedule.warmup is None:
        return
    [(unit, warmup)], [(unit_of_length, length)] = schedule.warmup.as_dict().items(), schedule.length.as_dict().items()
    if unit == unit_of_length and warmup > length:
        raise ImpossibleValue("schedule.warmup", f"longer than the run of {schedule.length}")


def _check_lanes(lanes: int | None, batch_size: int) -> None:
    if lanes is not None and lanes > batch_size:
        raise ImpossibleValue("data.train.lanes", f"more than batch_size = {batch_size}")


def _check_resize(augment: data_sections.Augment | choices.HeldOutAugment, model: sections.Encoder, key: str) -> None:
    if augment.resize is not None and augment.resize < model.image_size:
        problem = f"smaller than model.image_size = {model.image_size}, which is cut out of it"
        raise ImpossibleValue(f"{key}.augment.resize", problem)


def _check_best(metric: str, held_out: Collection[str], evaluators: Collection[str]) -> None:
    first, second, *_ = metric.split("/")
    if (second not in held_out) if first == "eval" else (first not in evaluators):
        measured = [*(f"eval/{name}/..." for name in held_out), *(f"{name}/..." for name in evaluators)]
        raise ImpossibleValue("checkpoint.best.metric", f"not measured; the job has {', '.join(measured) or 'nothing'}")


def _check_feature_sets(evaluators: dict[str, Section], model: sections.Encoder) -> None:
    for key, settings in choices.feature_sets(evaluators).items():
        _check_resize(settings.augment, model, key)


def _check_init_from(model: sections.Encoder) -> None:
    if model.init_from is None:
        raise ImpossibleValue("model.init_from", "this kind of job starts from trained weights; give their URL")
