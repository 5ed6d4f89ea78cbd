"""The sections of a job file: every key, its type, its default, and the values that are wrong whatever the data is.

The sections about data are in `job/data_sections.py`; those that a name chooses (an optimizer, an objective, a source)
in `job/choices.py`.

A key has a default unless it is part of the recipe: what decides the result of an experiment is written in its file.
Values are never coerced, and a key that has no effect is refused (`momentum` with AdamW), so that every line of a job
file does something. The text under a key is its documentation, in editors and in `docs/job-keys.md`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict

from orchestrator.job.values import Count, Duration, ImpossibleValue, NonNegative, Positive, Rate, Section, Text, fits

if TYPE_CHECKING:
    from model.variants import ViTConfig

ONE_CPU = {"CPU": 1.0}  # resources of a worker by default
LONGEST_PROFILE = 50  # steps: a trace is kept in memory, and read as a whole


class Encoder(Section):
    """The network without its head."""

    name: str
    """Variant and patch size: ViT-Ti, S, B, L or H, with /14, /16, /32 or another patch."""
    image_size: Count = 224
    """Side of the square input in pixels; a multiple of the patch."""
    dropout: Rate = 0.0
    """Dropout rate, at the places of the paper's Appendix B.1."""
    pool: Literal["token", "gap"] = "token"
    """What the head reads: the class token, or the mean over the patches."""
    depth: Count | None = None
    """Blocks; null = the variant's, as for the next four keys."""
    width: Count | None = None
    """Width D of the tokens."""
    mlp_dim: Count | None = None
    """Hidden width of the MLPs."""
    heads: Count | None = None
    """Attention heads; a divisor of the width."""
    patch_size: Count | None = None
    """Side of a patch in pixels."""
    gelu: Literal["tanh", "erf"] = "tanh"
    """GELU of the MLPs: the authors' approximation by tanh, or the definition by erf, as in timm and Hugging Face."""
    norm_eps: Positive = 1e-6
    """Epsilon of the LayerNorms: 1e-6 in the authors' code and timm, 1e-12 in Hugging Face's default."""
    init_from: Text | None = None
    """Trained weights to start from: a run, `URL[@STEP | @last | @best][#ema]`, an export, or a file such as
    .npz; null = random. A run that has a checkpoint of its own continues without them."""
    head: Literal["keep", "new"] = "keep"
    """With init_from: keep the head of the weights, or take a new one; then pre-logits of another shape go, too."""

    def vit_config(self) -> "ViTConfig":
        """The `model.ViTConfig` that these keys describe.

        Raises:
            model.variants.ModelConfigError: there is no such network; `.key` names the wrong key of this section.
        """
        from model.variants import vit_config  # not at the top: other mistakes are reported without loading `model`

        return vit_config(**self.model_dump(exclude={"init_from", "head"}))

    @fits("name", "image_size", "patch_size", "depth", "width", "mlp_dim", "heads")
    def _there_is_such_a_network(self) -> Iterator[ImpossibleValue]:
        from model.variants import ModelConfigError

        try:
            self.vit_config()
        except ModelConfigError as error:
            for one in (error, *error.others):
                yield ImpossibleValue(one.key, one.reason)


class Model(Encoder):
    """The network with its classification head."""

    num_classes: Count
    """Classes of the head."""
    representation_size: Count | None = None
    """Width of the tanh layer before the head ("pre-logits"; D where the paper pre-trains); null = none."""
    head_bias: float = 0.0
    """Initial bias of the head. The authors' code pre-trains with -10."""


class FinetunedModel(Model):
    """A trained network with a classification head for other classes."""

    head: Literal["keep", "new"] = "new"
    """With init_from: keep the head of the weights, or take a new one; then pre-logits of another shape go, too."""


class Measured(Section):
    """A trained network, which its own file describes."""

    init_from: Text
    """URL of the network: an exported one, or a run, `URL[@STEP | @last | @best][#ema]`."""
    image_size: Count | None = None
    """Side of the square input in pixels; null = the network's own. For another size its position embeddings are
    resized."""


def _default_end_lr(keys: dict[str, Any]) -> float:
    return 1e-5 if keys.get("decay") == "linear" else 0.0  # authors' code, `linear_end`


class Schedule(Section):
    """The learning rate over the run."""

    length: Duration
    """The whole run."""
    warmup: Duration | None = None
    """Linear rise from 0 at the start; null = none."""
    decay: Literal["linear", "cosine"]
    """Shape of the fall after warm-up."""
    end_lr: NonNegative = Field(default_factory=_default_end_lr)
    """Learning rate at the end: 1e-5 unless given for a linear decay, always 0 for a cosine."""

    @fits("decay", "end_lr")
    def _cosine_ends_at_zero(self) -> Iterator[ImpossibleValue]:
        if self.decay == "cosine" and self.end_lr != 0:
            yield ImpossibleValue("end_lr", "only for decay = linear; a cosine ends at 0")

    @fits("length", "warmup")
    def _warmup_is_part_of_the_run(self) -> Iterator[ImpossibleValue]:
        """Durations in the same unit need no data; other pairs are compared when the data is open, in steps."""
        if self.warmup is None:
            return
        [(unit, warmup)], [(unit_of_length, length)] = self.warmup.as_dict().items(), self.length.as_dict().items()
        if unit == unit_of_length and warmup > length:
            yield ImpossibleValue("warmup", f"longer than the run of {self.length}")


class Arithmetic(Section):
    """How a step is computed."""

    precision: Literal["bf16", "float32"] = "bf16"
    """Type of activations and gradients."""


class Parallel(Arithmetic):
    """How a step is computed: precision, memory, sharding."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed shards over the workers: 1 the optimizer's state, 2 gradients too, 3 weights too; 0 nothing."""
    activation_checkpointing: Literal["full", "selective", "none", "auto"] = "auto"
    """What the backward pass recomputes instead of keeping it: whole blocks, their cheap parts, nothing; auto = the
    fastest that fits the memory. The result is the same."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Images that a worker computes at once; its share of a batch is accumulated from these. auto = as many as fit."""
    gradient_reduction: Literal["bf16", "float32"] | None = None
    """Type in which workers sum their gradients: half the traffic, or exact sums; null = that of `precision`."""
    compile: bool = False
    """Compile each block with torch.compile."""


def _with_a_cpu(resources: dict[str, float]) -> dict[str, float]:
    """`--set cluster.resources_per_worker.GPU=1` adds a GPU to the default and does not take its CPU away."""
    return ONE_CPU | resources


class Cluster(Section):
    """What the job asks of Ray."""

    workers: Count | Annotated[tuple[Count, Count], Strict(False)] = 1
    """Training processes: a number, or [fewest, most] to grow and shrink with the cluster."""
    resources_per_worker: Annotated[dict[str, NonNegative], AfterValidator(_with_a_cpu)] = Field(default=ONE_CPU)
    """Ray resources of a worker, such as {CPU: 8, GPU: 1}; one CPU unless another number is given."""
    max_failures: Annotated[int, Field(ge=-1)] = 8
    """Restarts after failures before the job gives up; -1 = any number. Neither a node that is taken away with notice
    nor a change of the number of workers counts."""
    hang_timeout: Positive = 600.0
    """Seconds without a step or a batch of an evaluation after which a worker is killed and restarted."""
    preemption_grace: Positive = 30.0
    """Seconds to save and stop after SIGTERM. The notice that a node will be taken away has a deadline of its own."""
    resize_every: Positive = 60.0
    """Seconds to wait, at least, between two changes of the number of workers, if `workers` is a range."""

    @fits("workers")
    def _a_range_is_ordered(self) -> Iterator[ImpossibleValue]:
        if self.min_workers > self.max_workers:
            swapped = f"[{self.max_workers}, {self.min_workers}]"
            yield ImpossibleValue("workers", f"the first number must not exceed the second; use {swapped}")

    @fits("resources_per_worker")
    def _resources_ray_knows(self) -> Iterator[ImpossibleValue]:
        if self.resources_per_worker["CPU"] == 0:
            yield ImpossibleValue("resources_per_worker.CPU", "a worker needs at least part of a CPU to read images")
        for name in self.resources_per_worker:
            known = next((known for known in ("CPU", "GPU", "memory") if known.lower() == name.lower()), name)
            if name != known:
                yield ImpossibleValue(f"resources_per_worker.{name}", f"Ray spells it {known}")
            if name == "TPU":
                yield ImpossibleValue("resources_per_worker.TPU", "DeepSpeed runs on GPUs and CPUs")

    @property
    def min_workers(self) -> int:
        """The fewest workers that the job runs with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the job runs with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Training(Section):
    """When to give up on a loss or gradient that is not finite."""

    max_bad_steps: Count = 10
    """Steps skipped in a row, because loss or gradient is not finite, after which the run goes back to its last
    checkpoint; the second time it stops."""


class Best(Section):
    """Which checkpoint is the best. null = none is kept for this."""

    metric: Annotated[str, Field(pattern=r"^[^/]+(/[^/]+)+$")]
    """What is measured, as MLflow shows it, such as eval/val/top1: of a set of `data.eval` or of an evaluator."""
    mode: Literal["max", "min"]
    """Whether the largest value is the best, or the smallest."""


class Store(Section):
    """Where the run is stored."""

    url: Text = "runs"
    """Folder of runs: local, gs://, s3:// ... This run is url/name."""


class Checkpoint(Store):
    """Where the run is stored, and how often it is saved."""

    every: Duration = Duration(steps=1000)
    """Time between checkpoints; the run always ends with one."""
    keep: Count = 3
    """Number of checkpoints to keep: the newest."""
    best: Best | None = None
    """Keep the best checkpoint, too: {metric: eval/val/top1, mode: max}. An evaluation that finds a better value is
    followed by a checkpoint. null = the newest alone."""
    export: bool = True
    """Write the model into the run's folder `export` when the run is complete, for others to use."""


class Evaluate(Section):
    """Measuring while training."""

    every: Duration = Duration(epochs=1)
    """Time between evaluations; the run always ends with one."""


class Tracking(Section):
    """What is recorded in MLflow."""

    uri: Text = "sqlite:///runs/mlflow.db"
    """MLflow tracking URI: a database or a server."""
    experiment: Text = "vit"
    """MLflow experiment."""
    every: Duration = Duration(steps=50)
    """Time between points of the training curves."""
    tags: dict[str, Annotated[str, Strict(False), Field(coerce_numbers_to_str=True)]] = Field(default={})
    """Tags of the run."""
    record_samples: bool = False
    """Keep the sample ids of every step."""


class Profile(Section):
    """A trace of a few steps of rank 0 and a summary page, in the run's folder and in MLflow; null = none."""

    steps: Annotated[tuple[Count, Count], Strict(False)]
    """[first, last]: the trace starts when `first` steps of the run are done and ends when `last` are; at most 50."""

    @fits("steps")
    def _a_few_steps(self) -> Iterator[ImpossibleValue]:
        first, last = self.steps
        if first >= last:
            yield ImpossibleValue("steps", f"the first is not below the last; use [{last}, {max(first, last + 1)}]")
        elif last - first > LONGEST_PROFILE:
            longest = f"[{first}, {first + LONGEST_PROFILE}]"
            yield ImpossibleValue("steps", f"more than {LONGEST_PROFILE} steps; use {longest}")
