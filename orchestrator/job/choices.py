"""The sections that a name chooses: objectives, optimizers, evaluators and sources of images.

Each name has a class with the keys that it needs, so that a key without effect is refused. The names are in the tables
of `job/tables.py`; a class that several of them share lists them all.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from orchestrator.job.values import Count, Duration, ImpossibleValue, NonNegative, Positive, Rate, Section, Text, fits

SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes part of metric names


class Objective(Section):
    """What is minimised."""


class CrossEntropy(Objective):
    """Cross-entropy between the network's output and the labels."""

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
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average of the weights, such as 0.9999. It is measured as eval/SET/ema/..., and `export --ema` writes
    it. null = none."""


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


class HeldOutAugment(Section):
    """From a decoded held-out image to the network's input; nothing random."""

    crop: Literal["resize", "center", "resize_center"]
    """resize: the whole image; center: shorter side to `resize` pixels, then the middle; resize_center: the whole image
    to a square of `resize` pixels, then the middle."""
    resize: Count | None = None
    """Pixels, for center and resize_center; null = image_size * 256 / 224."""

    @fits("crop", "resize")
    def _resize_is_for_this_crop(self) -> Iterator[ImpossibleValue]:
        if self.resize is not None and self.crop == "resize":
            yield ImpossibleValue("resize", f"only for crop = center or resize_center, and it is {self.crop}")


class ExactAugment(HeldOutAugment):
    """From a decoded image to the network's input in an evaluation."""

    exact: bool = True
    """Decode whole images at full scale, and scale them by the authors' definition: resize and resize_center bilinearly
    without averaging, center by the means of areas. false = as in training, which is faster: what shrinks more than
    twice is averaged first."""


class FeatureSet(Section):
    """A set for a classifier on frozen features: images to learn from, and images to test on, with one label each."""

    train: Text
    """Folder of WebDataset shards with an index.json: the images to learn from."""
    test: Text
    """Folder of WebDataset shards with an index.json: the images to test on."""
    augment: HeldOutAugment = HeldOutAugment(crop="resize_center")
    """From a decoded image to the network's input."""


class Evaluator(Section):
    """What the program itself uses of an evaluator."""

    every: Duration | None = None
    """Time between its measurements; null = evaluate.every. The run always ends with one."""


class FeatureEvaluator(Evaluator):
    """A classifier on frozen features."""

    sets: Annotated[dict[SetName, FeatureSet], Field(min_length=1)]
    """The sets by name, with classes of their own."""


def feature_sets(evaluators: Mapping[str, Section]) -> dict[str, FeatureSet]:
    """The sets of a job's evaluators of frozen features, by the key that describes each."""
    return {
        f"evaluators.{evaluator}.sets.{name}": settings
        for evaluator, keys in evaluators.items()
        if isinstance(keys, FeatureEvaluator)
        for name, settings in keys.sets.items()
    }


class FewShot(FeatureEvaluator):
    """Ridge regression on the features of a few images a class, as the authors measure."""

    shots: Annotated[list[Count], Field(min_length=1)] = Field(default=[1, 5, 10, 25])
    """Images a class."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(default=[0, 1, 2])
    """Seeds of the draws; the metric is the mean over them."""
    l2: Positive = 1024.0
    """Strength of the ridge."""


class Neighbours(FeatureEvaluator):
    """The k nearest neighbours by cosine."""

    k: Annotated[list[Count], Field(min_length=1)] = Field(default=[10, 20, 100, 200])
    """Numbers of neighbours."""
    temperature: Positive = 0.07
    """A neighbour at cosine s has exp(s / temperature) votes."""


class Probe(FeatureEvaluator):
    """Softmax classifiers trained by SGD, one for each learning rate, all in one pass."""

    lrs: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    )
    """Learning rates for 256 images; they are multiplied by batch_size / 256."""
    steps: Count = 12_500
    """Updates."""
    batch_size: Count = 1024
    """Images in an update."""
    momentum: Rate = 0.9
    """Decay rate of the velocity."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the initial weights and the batches."""


class Logistic(FeatureEvaluator):
    """Logistic regression by L-BFGS, with C chosen on a tenth of the training images."""

    c: Annotated[list[Positive], Field(min_length=1)] = Field(default=[10 ** (-6 + i / 4) for i in range(45)])
    """Values of C, the inverse strength of the regularisation."""
    max_steps: Count = 1000
    """Most steps of L-BFGS for a value of C."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which training images choose C."""


class Pack(Section):
    """Images that the job packs into shards before the run, into the folders train and test, unless they are there."""

    to: Text
    """Folder for the shards."""

    def contents(self) -> dict[str, tuple[int, int, bool]] | None:
        """(images, classes, whether an image has several labels) of `train` and `test`, before they are packed.

        None: only known once they are.
        """
        return None


class Shapes(Pack):
    """Drawn images, as many as wanted."""

    source: Literal["shapes"]
    """digits: scikit-learn's 1,797 handwritten digits; shapes: drawn images, as many as wanted."""
    samples: Count = 50_000
    """Images to train on."""
    test_samples: Count = 5_000
    """Images to measure on."""
    classes: Annotated[int, Field(ge=10, le=1000)] = 10
    """Classes of objects."""
    image_size: Count = 64
    """Side of an image in pixels."""
    multi_label: bool = False
    """Several objects and labels in an image."""

    def contents(self) -> dict[str, tuple[int, int, bool]]:
        counts = {"train": self.samples, "test": self.test_samples}
        return {split: (count, self.classes, self.multi_label) for split, count in counts.items()}


class Digits(Pack):
    """scikit-learn's 1,797 handwritten digits."""

    source: Literal["digits"]
    """digits: scikit-learn's 1,797 handwritten digits; shapes: drawn images, as many as wanted."""

    @model_validator(mode="before")
    @classmethod
    def _without_defaults_of_shapes(cls, keys: Any) -> Any:
        """Resolved jobs that an earlier version wrote hold the keys of shapes as well, with their defaults."""
        if not isinstance(keys, dict):
            return keys
        fields = Shapes.model_fields
        return {key: value for key, value in keys.items() if key not in fields or value != fields[key].default}

    def contents(self) -> dict[str, tuple[int, int, bool]]:
        from data.sources import digits  # scikit-learn has the images

        return {split: (len(digits.Digits(split)), digits.Digits.num_classes, False) for split in digits.SPLITS}
