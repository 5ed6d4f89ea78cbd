"""A trained model, ready for images.

from orchestrator.inference.model import open_model

model = open_model("runs/pretrain_digits")
for batch in model.read(["digit.png"]):
    for name, probabilities in zip(batch.names, model.probabilities(batch.images)):
        print(name, model.class_name(int(probabilities.argmax())))
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data import Augment
from model import VisionTransformer
from orchestrator.checkpoint.as_model.trained import ModelError
from orchestrator.checkpoint.weights import read_model
from orchestrator.inference.images import Batch, find_images, read_batches
from orchestrator.inference.preprocess import AsTrained, Prepare
from orchestrator.redact import print_warning

BATCH = 32  # images at a time


class OpenModel:
    """A network in evaluation mode, on a GPU if there is one, with what belongs to it.

    Attributes:
        network: takes what `read` gives.
        prepare: encoded image -> (3, size, size) float32.
        class_names: by class number; empty if the classes have none.
        sigmoid: whether the classes are independent, so that probabilities do not sum to 1.
    """

    def __init__(
        self, network: VisionTransformer, prepare: Prepare, class_names: Sequence[str], *, sigmoid: bool
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.eval().to(self.device)
        self.prepare = prepare
        self.class_names = class_names
        self.sigmoid = sigmoid

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.network.config.num_classes

    @property
    def num_features(self) -> int:
        """Inputs of the head."""
        return self.network.config.representation_size or self.network.config.width

    def read(self, images: Sequence[str], batch_size: int = BATCH) -> Iterator[Batch]:
        """The images that files, folders and patterns name, in batches. A batch lists those that cannot be read."""
        return read_batches(find_images(images), self.prepare, batch_size)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) float32 -> (n, K) float32, on the host."""
        logits: Tensor = self.network(images.to(self.device))
        return logits.float().cpu()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) float32 -> (n, D) float32, the input of the head, on the host."""
        return self.network.features(images.to(self.device)).float().cpu()

    def probabilities(self, images: Tensor) -> Tensor:
        """(n, 3, size, size) float32 -> (n, K) float32: softmax, or sigmoid for independent classes."""
        logits = self.logits(images)
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)

    def class_name(self, number: int) -> str:
        """The name of a class; its number if it has none."""
        return self.class_names[number] if number < len(self.class_names) else str(number)


def open_model(url: str, warn: Callable[[str], None] = print_warning) -> OpenModel:
    """Open any model.

    Args:
        url: of an exported model, or of a run: `URL[@STEP | @last | @best][#ema]`.
        warn: receives a line for each newer checkpoint that cannot be used.

    Raises:
        ModelError: there is no such model, or it is damaged; the text is one line.
        Exception: the store's error.
    """
    trained = read_model(url, warn)
    if not trained.origin.get("preparable", True):
        raise ModelError(f"{url}: this version prepares images only with mean and deviation 0.5, scaled bilinearly")
    if "head.bias" not in trained.tensors:
        raise ModelError(f"{url}: it has no head")
    with torch.device("meta"):
        network = VisionTransformer(trained.config)
    network.load_state_dict(trained.tensors, assign=True)
    augment = Augment(crop=trained.augment.crop, resize=trained.augment.resize)
    prepare = AsTrained(trained.config.image_size, augment)
    return OpenModel(network, prepare, trained.class_names, sigmoid=trained.origin.get("loss") == "sigmoid")
