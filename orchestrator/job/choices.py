"""The sections that a name chooses: objectives, optimizers and sources of images.

Each name has a class with the keys that it needs, so that a key without effect is refused. The names are in the tables
of `job/tables.py`; a class that several of them share lists them all.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from orchestrator.job.values import Count, NonNegative, Positive, Rate, Section, Text


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


class Pack(Section):
    """Images that the job packs into shards before the run, into the folders train and test, unless they are there."""

    to: Text
    """Folder for the shards."""


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
