"""The sections that a name chooses: objectives, optimizers and sources of images.

A section has one class for each name, so that a key without effect is refused. `job/tables.py` lists them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from orchestrator.job.values import Count, ImpossibleValue, NonNegative, Positive, Rate, Section, Text


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


class Pack(Section):
    """Images that the job packs into shards before the run, into the folders train and test, unless they are there."""

    source: Literal["digits", "shapes"]
    """digits: scikit-learn's 1,797 handwritten digits; shapes: drawn images, as many as wanted."""
    to: Text
    """Folder for the shards."""
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
    def _no_keys_of_shapes_for_digits(self) -> Self:
        for key in self.model_fields_set - {"source", "to"}:
            if self.source == "digits" and getattr(self, key) != type(self).model_fields[key].default:
                raise ImpossibleValue(key, "only for source = shapes, and it is digits")
        return self
