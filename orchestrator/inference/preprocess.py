"""From an image file to the network's input, as the model's own evaluation has it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import Augment
from data.packing.source import image_field
from orchestrator.engine.step import normalise


@dataclass(frozen=True)
class AsTrained:
    """The preprocessing of our held-out sets: pixels to [-1, 1].

    Attributes:
        image_size: side of the network's input in pixels.
        augment: which part of the image, with nothing random.
    """

    image_size: int
    augment: Augment

    def __call__(self, content: bytes) -> Tensor:
        """Encoded image -> (3, image_size, image_size) float32.

        Raises:
            BadSample: it cannot be decoded; the cause says what it is.
        """
        pixels = np.empty((self.image_size, self.image_size, 3), np.uint8)
        self.augment.render(image_field(content)[1], pixels, seed=0, epoch=0, sample_id=0)
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1), torch.float32)


Prepare = Callable[[bytes], Tensor]
