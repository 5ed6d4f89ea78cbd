"""The compared loaders: each is an endless iterator over the sizes of its batches.

All produce shuffled uint8 batches (B, S, S, 3) of random Inception windows from the same distribution. The libraries
run as their documentation recommends: in torch's DataLoader with one worker process per core.

Decoders: "pil" is the one in the libraries' documentation; "cv2" decodes the whole image with OpenCV, then scales the
window; "ours" is `data.Augment`.
"""

import io
import itertools
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from data import Augment, Index, SampleOrder, open_index
from data.splitmix import Draws, Purpose, key

if TYPE_CHECKING:  # needs torch
    from data import Loader

AUGMENT = Augment("inception")
SHUFFLED = 1000  # samples in the shuffle buffer of each WebDataset worker, as in its documentation


@dataclass(frozen=True)
class Settings:
    """The settings of every pipeline.

    Attributes:
        tars, mds, litdata: folders of the set in the format of WebDataset, MosaicML Streaming, LitData.
        cores: number of threads or worker processes.
        batch_size: images per batch.
        image_size: pixels a side.
        lanes, block: of our order: number of lanes, and samples per block of a lane.
    """

    tars: str
    mds: str
    litdata: str
    cores: int
    batch_size: int
    image_size: int
    lanes: int
    block: int


Decoder = Callable[[bytes, np.ndarray, int], None]
"""Arguments: the JPEG, the output array uint8 (S, S, 3), the number of the random window."""


def decode_pil(encoded: bytes, out: np.ndarray, number: int) -> None:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    out[:] = _pil_window(image, out.shape[0], number)


def decode_cv2(encoded: bytes, out: np.ndarray, number: int) -> None:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert image is not None
    (y, x), (height, width) = _window(image.shape[:2], out.shape[0], number)
    cv2.resize(image[y : y + height, x : x + width], out.shape[:2], dst=out, interpolation=cv2.INTER_LINEAR)


def decode_ours(encoded: bytes, out: np.ndarray, number: int) -> None:
    AUGMENT.render(encoded, out, seed=0, epoch=0, sample_id=number)


DECODERS: dict[str, Decoder] = {"pil": decode_pil, "cv2": decode_cv2, "ours": decode_ours}


def open_set(settings: Settings) -> tuple[Index, SampleOrder]:
    index = open_index(settings.tars)
    return index, SampleOrder(index, batch_size=settings.batch_size, lanes=settings.lanes, block=settings.block)


def ours(settings: Settings, start_step: int = 0, stop_step: int = sys.maxsize) -> "Loader":
    """This project's loader, newly opened, as one worker with a thread per core."""
    from data import Loader

    index, order = open_set(settings)
    return Loader(
        index,
        order,
        rank=0,
        world_size=1,
        image_size=settings.image_size,
        augment=AUGMENT,
        seed=0,
        start_step=start_step,
        stop_step=stop_step,
        threads=settings.cores,
    )


def batches_of_ours(settings: Settings) -> Generator[int, None, None]:
    with ours(settings) as loader:
        for batch in loader:
            yield int(batch.valid.sum())


def batches_of_webdataset(settings: Settings, decoder: str) -> Generator[int, None, None]:
    import webdataset

    tars = [str(path) for path in sorted(Path(settings.tars).glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).repeat().shuffle(SHUFFLED)
    if decoder == "pil":  # the library decodes
        dataset = dataset.decode("pil").to_tuple("jpg", "cls").map_tuple(_PilWindow(settings.image_size), int)
    else:
        dataset = dataset.to_tuple("jpg", "cls").map_tuple(_Decode(decoder, settings.image_size), int)
    dataset = dataset.batched(settings.batch_size, partial=False)
    for images, _ in webdataset.WebLoader(dataset, batch_size=None, num_workers=settings.cores):
        yield len(images)


def batches_of_streaming(settings: Settings, decoder: str) -> Generator[int, None, None]:
    from torch.utils.data import DataLoader

    streaming = import_streaming()
    decode = _Decode(decoder, settings.image_size)

    class Images(streaming.StreamingDataset):  # type: ignore[name-defined]
        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            sample = super().__getitem__(index)
            return decode(sample["jpg"]), sample["cls"]

    streaming.base.util.clean_stale_shared_memory()
    dataset = Images(local=settings.mds, shuffle=True, batch_size=settings.batch_size)
    while True:
        for images, _ in DataLoader(dataset, batch_size=settings.batch_size, num_workers=settings.cores):
            yield len(images)


def batches_of_litdata(settings: Settings, decoder: str) -> Generator[int, None, None]:
    import litdata

    decode = _Decode(decoder, settings.image_size)

    class Images(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[np.ndarray, int]:
            sample = super().__getitem__(index)
            return decode(bytes(sample["jpg"])), sample["cls"]  # the field is a memoryview

    dataset = Images(settings.litdata, shuffle=True, drop_last=True)
    while True:
        for images, _ in litdata.StreamingDataLoader(
            dataset, batch_size=settings.batch_size, num_workers=settings.cores
        ):
            yield len(images)


def import_streaming() -> Any:
    """Imports MosaicML Streaming, which needs two names of torchvision for data sets that are not used here.

    If torchvision is missing or was built for another torch, empty names replace it.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        sys.modules |= {name: module_from_spec(ModuleSpec(name, None)) for name in names}
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


class _Decode:
    """Decodes images in a worker process, each with another random window."""

    def __init__(self, decoder: str, image_size: int) -> None:
        self._decode, self._image_size = DECODERS[decoder], image_size
        self._numbers = itertools.count()

    def __call__(self, encoded: bytes) -> np.ndarray:
        out = np.empty((self._image_size, self._image_size, 3), np.uint8)
        self._decode(encoded, out, next(self._numbers))
        return out


class _PilWindow:
    """Cuts a random window from an image that PIL has decoded."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._numbers = itertools.count()

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(_pil_window(image, self._image_size, next(self._numbers)))


def _pil_window(image: Image.Image, image_size: int, number: int) -> Image.Image:
    (y, x), (height, width) = _window((image.height, image.width), image_size, number)
    box = (x, y, x + width, y + height)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)


def _window(size: tuple[int, int], image_size: int, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (start, size) of the window that `decode_ours` takes, each (y, x)."""
    geometry = AUGMENT.geometry(size, image_size, Draws(key(Purpose.AUGMENT, 0, 0, number)))
    return geometry.window_start, geometry.window
