"""A trained network that only computes: what evaluators use in place of a run's engine. Every worker has all of it."""

import math

import torch
from torch import Tensor

from model import VisionTransformer
from orchestrator.engine.step import normalise

MOST_IMAGES = 256  # of one forward pass


class Frozen:
    """A network in evaluation mode. See `measurement.Network` for the attributes.

    Args:
        network: with its weights.
        dtype: of weights and activations.
        share: images of this worker in a batch.
        device: to compute on.
    """

    def __init__(self, network: VisionTransformer, dtype: torch.dtype, share: int, device: torch.device) -> None:
        self.device = device
        self.micro_batch = min(share, MOST_IMAGES)
        self.micro_batches = math.ceil(share / self.micro_batch)
        self._network = network.to(device, dtype).eval().requires_grad_(False)
        self._dtype = dtype

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits, float32 (n, K), of uint8 images (n, 3, H, W)."""
        output: Tensor = self._network(normalise(images.to(self.device), self._dtype))
        return output.float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The inputs of the head, float32 (n, F), of uint8 images (n, 3, H, W)."""
        return self._network.features(normalise(images.to(self.device), self._dtype)).float()
