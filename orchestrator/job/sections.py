"""The sections of a job file: every key, its type, its default, and what cannot be right whatever the data.

A key has a default unless it is part of the recipe: what decides the result of an experiment is written in its file.
Values are never coerced, and a key that a choice makes meaningless (`momentum` with AdamW) is refused, so that every
line of a job file does something. The text under a key is its documentation, in editors and in `docs/job-keys.md`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from orchestrator.job.values import Count, Duration, ImpossibleValue, NonNegative, Positive, Rate, Section, Size, Text

if TYPE_CHECKING:
    from model.variants import ViTConfig


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
    """Blocks; null = the variant's, as for the four keys below."""
    width: Count | None = None
    """Width D of the tokens."""
    mlp_dim: Count | None = None
    """Hidden width of the MLPs."""
    heads: Count | None = None
    """Attention heads; they divide the width."""
    patch_size: Count | None = None
    """Side of a patch in pixels."""
    init_from: Text | None = None
    """URL of the weights to start from; null = random."""

    def vit_config(self) -> "ViTConfig":
        """The `model.ViTConfig` that these keys describe.

        Raises:
            model.variants.ModelConfigError: there is no such network; `.key` names the offending key of this section.
        """
        from model.variants import vit_config  # not at the top: other mistakes are answered without loading `model`

        return vit_config(**self.model_dump(exclude={"init_from"}))


class Model(Encoder):
    """The network with its classification head."""

    num_classes: Count
    """Classes of the head."""
    representation_size: Count | None = None
    """Width of the tanh layer before the head ("pre-logits"; D where the paper pre-trains); null = none."""
    head_bias: float = 0.0
    """Initial bias of the head. The authors' code pre-trains with -10."""


class Augment(Section):
    """From a decoded training image to the network's input."""

    crop: Literal["inception", "resize_crop", "resize", "center"]
    """inception: random area and aspect ratio; resize_crop: all of it to a square of `resize` pixels, then a random
    cut; resize: all of it; center: shorter side to `resize` pixels, then the middle."""
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Least part of the area that an inception crop keeps."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    resize: Count | None = None
    """Pixels, for resize_crop and center; null = image_size * 256 / 224."""

    @model_validator(mode="after")
    def _keys_of_this_crop(self) -> Self:
        if self.min_area != Augment.model_fields["min_area"].default and self.crop != "inception":
            raise ImpossibleValue("min_area", f"only for crop = inception, and it is {self.crop}")
        if self.resize is not None and self.crop not in ("resize_crop", "center"):
            raise ImpossibleValue("resize", f"only for crop = resize_crop or center, and it is {self.crop}")
        return self


class HeldOutAugment(Section):
    """From a decoded held-out image to the network's input; nothing random."""

    crop: Literal["resize", "center"]
    """resize: all of it; center: shorter side to `resize` pixels, then the middle."""
    resize: Count | None = None
    """Pixels, for center; null = image_size * 256 / 224."""

    @model_validator(mode="after")
    def _keys_of_this_crop(self) -> Self:
        if self.resize is not None and self.crop != "center":
            raise ImpossibleValue("resize", f"only for crop = center, and it is {self.crop}")
        return self


SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes part of metric names


class DataSet(Section):
    """A set of labelled images."""

    url: Text
    """Folder of WebDataset shards with an index.json: local, gs://, s3:// ..."""


class Source(DataSet):
    """One of several sets to train on."""

    weight: Positive | None = None
    """Its share of every batch, relative to the other sources'; all have one or none has. null = by size: the sources
    are one large set."""
    subset: Count | None = None
    """Train on this many images of it: always the same ones, and a part of every larger subset. null = all."""
    exclude: Text | None = None
    """URL of a list of images to leave out, as `python -m data dedup` writes it; null = none."""


class TrainSet(Section):
    """The training set and the order it is read in."""

    url: Text | None = None
    """Folder of WebDataset shards with an index.json: local, gs://, s3:// ...; null where sources are given."""
    subset: Count | None = None
    """Train on this many images: always the same ones, and a part of every larger subset. null = all."""
    exclude: Text | None = None
    """URL of a list of images to leave out, as `python -m data dedup` writes it; null = none."""
    sources: dict[SetName, Source] = Field(default={})
    """Several sets in one run by name, in place of url, subset and exclude. Their order counts."""
    lanes: Count | None = None
    """Places of the set that a batch is gathered from, at most batch_size; null = 64 where the batch has as many."""
    block: Count = 1024
    """Samples of a lane that are shuffled together."""
    augment: Augment = Augment(crop="inception", flip=True)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if not self.sources:
            if self.url is None:
                raise ImpossibleValue("url", "missing; give the folder of the training set, or several in sources")
            return self
        for key in ("url", "subset", "exclude"):
            if getattr(self, key) is not None:
                raise ImpossibleValue(key, "not beside sources; give it to one of them")
        unweighted = [name for name, source in self.sources.items() if source.weight is None]
        if 0 < len(unweighted) < len(self.sources):
            raise ImpossibleValue(f"sources.{unweighted[0]}.weight", "missing; other sources have one")
        return self

    def all_sources(self) -> dict[str, Source]:
        """The sets to train on, by the key that describes each: `sources`, or the single one of `url`."""
        if self.url is None:
            return {f"data.train.sources.{name}": source for name, source in self.sources.items()}
        return {"data.train": Source(url=self.url, subset=self.subset, exclude=self.exclude)}


class HeldOutSet(DataSet):
    """A set to measure on."""

    augment: HeldOutAugment = HeldOutAugment(crop="center")


def _without_nulls(sets: Any) -> Any:
    """`data.eval: null` is no set at all, and `--set data.eval.val=null` takes one away."""
    if sets is None:
        return {}
    return {name: keys for name, keys in sets.items() if keys is not None} if isinstance(sets, dict) else sets


NullableSets = BeforeValidator(_without_nulls, json_schema_input_type=dict[str, HeldOutSet | None] | None)


class Reading(Section):
    """How images are read."""

    workers: Count | None = None
    """Threads that decode, in each training worker; null = one for each of its CPUs."""
    prefetch: Count = 2
    """Batches that are decoded ahead."""
    memory: Size | None = None
    """Memory of a training worker for images, encoded and decoded, such as 4GiB; null = what the order needs and
    256 MiB to read ahead."""
    cache_dir: Text | None = None
    """Folder on a local disk where the workers of a node keep shards from remote storage, whole and verified by their
    checksums; null = no cache."""
    cache_size: Size = 100 * 2**30
    """Most that the cache of a node may hold; the shards used longest ago make room."""
    max_bad_fraction: Rate = 0.05
    """Images of an epoch that may be unusable (masked, counted by cause, listed in quarantine.jsonl) before the run
    stops."""
    unreadable: Literal["stop", "mask"] = "stop"
    """A shard that stays unreadable after all retries: stop stops the run, mask masks its images as bad ones."""


class Pack(Section):
    """Shards that the job makes for itself, where they are not there yet, in the folders train and test."""

    source: Literal["digits", "shapes"]
    """digits: scikit-learn's 1,797 handwritten digits; shapes: drawn images, as many as wanted."""
    to: Text
    """Folder for them."""
    samples: Count = 50_000
    """shapes: images to train on."""
    test_samples: Count = 5_000
    """shapes: images to measure on."""
    classes: Annotated[int, Field(ge=10, le=1000)] = 10
    """shapes: classes of objects."""
    image_size: Count = 64
    """shapes: side of an image in pixels."""
    multi_label: bool = False
    """shapes: several objects and labels in an image."""

    @model_validator(mode="after")
    def _digits_are_what_they_are(self) -> Self:
        for key in self.model_fields_set - {"source", "to"}:
            if self.source == "digits" and getattr(self, key) != type(self).model_fields[key].default:
                raise ImpossibleValue(key, "only for source = shapes, and it is digits")
        return self


class Data(Reading):
    """Data of a job that trains."""

    pack: Pack | None = None
    """Images that come with the project, to be made into shards before the run; null = all data is there."""
    train: TrainSet
    eval: Annotated[dict[SetName, HeldOutSet], NullableSets] = Field(default={})
    """Held-out sets by name, measured while training."""


class HeldOutData(Reading):
    """Data of a job that measures only."""

    eval: Annotated[dict[SetName, HeldOutSet], Field(min_length=1)]
    """Held-out sets by name."""


class VtabData(Reading):
    """Data of the VTAB tasks."""

    train: TrainSet
    """Training sets; url is the folder that holds TASK/train and TASK/test for each of the 19 tasks."""


class Objective(Section):
    """What is minimised."""

    loss: Literal["sigmoid", "softmax"]
    """Cross-entropy of independent classes, summed (the authors' pre-training), or of exclusive ones."""
    label_smoothing: Rate = 0.0
    """Weight of the uniform distribution over classes."""


class Optimizer(Section):
    """What every optimizer has."""

    lr: Positive
    """Learning rate at the end of warm-up."""
    weight_decay: NonNegative
    """Decay of kernels; biases, norms, tokens and positions have none. adamw: decoupled, times the learning rate; sgd:
    added to the gradient."""
    grad_clip: Positive | None = 1.0
    """Largest global norm of the gradient; null = any."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    """The optimizer."""
    betas: Annotated[tuple[Rate, Rate], Strict(False)] = (0.9, 0.999)
    """Decay rates of the two moments."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    """The optimizer."""
    momentum: Rate = 0.9
    """Decay rate of the velocity."""


def _default_end_lr(keys: dict[str, Any]) -> float:
    return 1e-5 if keys.get("decay") == "linear" else 0.0  # authors' code, `linear_end`


class Schedule(Section):
    """The learning rate over the run."""

    length: Duration
    """The whole run."""
    warmup: Duration | None = None
    """Linear rise from 0 at the start; null = none."""
    decay: Literal["linear", "cosine"]
    """The way down after warm-up."""
    end_lr: NonNegative = Field(default_factory=_default_end_lr)
    """Learning rate at the end: 1e-5 unless given for a linear decay, always 0 for a cosine."""

    @model_validator(mode="after")
    def _cosine_ends_at_zero(self) -> Self:
        if self.decay == "cosine" and self.end_lr != 0:
            raise ImpossibleValue("end_lr", "only for decay = linear; a cosine ends at 0")
        return self


class Arithmetic(Section):
    """How a step is computed."""

    precision: Literal["bf16", "float32"] = "bf16"
    """Type of activations and gradients."""


class Parallel(Arithmetic):
    """How a step is computed: precision, memory, sharding."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed shards over the workers: 1 the optimizer's state, 2 gradients too, 3 weights too; 0 nothing."""
    activation_checkpointing: Literal["full", "selective", "none", "auto"] = "auto"
    """What the backward pass computes again instead of keeping: whole blocks, their cheap parts, nothing; auto = the
    fastest that fits the memory. The result is the same."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Images that a worker computes at once; its share of a batch is accumulated from these. auto = as many as fit."""
    gradient_reduction: Literal["bf16", "float32"] | None = None
    """Type in which workers sum their gradients: half the traffic, or exact sums; null = that of `precision`."""
    compile: bool = False
    """Compile each block with torch.compile."""


ONE_CPU = {"CPU": 1.0}


def _with_a_cpu(resources: dict[str, float]) -> dict[str, float]:
    """`--set cluster.resources_per_worker.GPU=1` adds a GPU to the default and does not take its CPU away."""
    return ONE_CPU | resources


class Cluster(Section):
    """What the job asks of Ray."""

    workers: Count | Annotated[tuple[Count, Count], Strict(False)] = 1
    """Training processes: a number, or [least, most] to grow and shrink with the cluster."""
    resources_per_worker: Annotated[dict[str, NonNegative], AfterValidator(_with_a_cpu)] = Field(default=ONE_CPU)
    """Ray resources of a worker, such as {CPU: 8, GPU: 1}; one CPU unless it says otherwise."""
    max_failures: Annotated[int, Field(ge=-1)] = 8
    """Restarts after failures before the job gives up; -1 = any number. A node that is taken away with notice does not
    count, nor does a change of the number of workers."""
    hang_timeout: Positive = 600.0
    """Seconds without a step or a batch of an evaluation after which a worker is killed and restarted."""
    preemption_grace: Positive = 30.0
    """Seconds to save and leave after SIGTERM. The notice that a node will be taken away brings its own deadline."""
    resize_every: Positive = 60.0
    """Least seconds between two changes of the number of workers, where `workers` is a range."""

    @model_validator(mode="after")
    def _least_below_most(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ImpossibleValue("workers", f"least above most; use [{self.max_workers}, {self.min_workers}]")
        return self

    @model_validator(mode="after")
    def _resources_ray_knows(self) -> Self:
        if self.resources_per_worker["CPU"] == 0:
            raise ImpossibleValue("resources_per_worker.CPU", "a worker needs some of a CPU to read images")
        for name in self.resources_per_worker:
            known = next((known for known in ("CPU", "GPU", "memory") if known.lower() == name.lower()), name)
            if name != known:
                raise ImpossibleValue(f"resources_per_worker.{name}", f"Ray spells it {known}")
            if name == "TPU":
                raise ImpossibleValue("resources_per_worker.TPU", "DeepSpeed runs on GPUs and CPUs")
        return self

    @property
    def min_workers(self) -> int:
        """The fewest workers that the job runs with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the job runs with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Training(Section):
    """What happens when the numbers go wrong."""

    max_bad_steps: Count = 10
    """Steps in a row that were skipped, as loss or gradient was not finite, after which the run goes back to its last
    checkpoint; the second time it stops."""


class Checkpoint(Section):
    """Where the run lives, and how often it is saved."""

    url: Text = "runs"
    """Folder of runs: local, gs://, s3:// ... This run is url/name."""
    every: Duration = Duration(steps=1000)
    """Time between checkpoints; the end of the run always makes one."""
    keep: Count = 3
    """Newest checkpoints to keep."""


class Evaluate(Section):
    """Measuring while training."""

    every: Duration = Duration(epochs=1)
    """Time between evaluations; the end of the run always makes one."""


class Tracking(Section):
    """What MLflow is told."""

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


MOST_PROFILED = 50  # steps of a trace, which is kept in memory and read whole


class Profile(Section):
    """A trace of a few steps and a page that sums it up, of rank 0, beside the run and in MLflow; null = none."""

    steps: Annotated[tuple[Count, Count], Strict(False)]
    """[first, last]: from when `first` steps of the run are done until `last` are; at most 50 steps."""

    @model_validator(mode="after")
    def _a_few_steps(self) -> Self:
        first, last = self.steps
        if first >= last:
            raise ImpossibleValue("steps", f"the first is not below the last; use [{last}, {max(first, last + 1)}]")
        if last - first > MOST_PROFILED:
            raise ImpossibleValue("steps", f"more than {MOST_PROFILED} steps; use [{first}, {first + MOST_PROFILED}]")
        return self
