"""What `predict` and `features` share: their arguments, and errors in one line."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data import storage
from orchestrator.job.errors import JobError
from orchestrator.redact import print_error

if TYPE_CHECKING:
    from orchestrator.inference.images import Batch
    from orchestrator.inference.model import OpenModel

MODEL = """a model, on any store: the folder of a run, if need be with a step (runs/a@1200, runs/a@best) and #ema for
the averaged weights; or an exported model"""
IMAGES = "image files, folders, and patterns such as 'photos/*.jpg'; on any store"


def add_model_and_images(command: argparse.ArgumentParser) -> None:
    """Add the arguments MODEL and IMAGE..., and --batch-size."""
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("images", metavar="IMAGE", nargs="+", help=IMAGES)
    command.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="images that the network takes at a time (32)"
    )


def positive(text: str) -> int:
    """A positive number of the command line."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


@contextmanager
def errors_of_models(url: str) -> Iterator[None]:
    """Turns what is wrong with a model into one line.

    Raises:
        JobError: in place of a ValueError with a line, or of a store's error.
    """
    try:
        storage.check_reachable(url)
        yield
    except JobError:
        raise
    except ValueError as error:  # ModelError, WeightsError, ModelConfigError, DataError: each is one line
        raise JobError(str(error)) from error
    except Exception as error:  # of any store
        raise JobError(f"{url}: cannot be opened ({storage.describe(error)})") from error


def open_for(options: argparse.Namespace) -> "OpenModel":
    """The model of the command line.

    Raises:
        JobError: there is none.
    """
    with errors_of_models(options.model):
        from orchestrator.inference.model import open_model

        return open_model(options.model)


def read(model: "OpenModel", options: argparse.Namespace, bad: list[str]) -> Iterator["Batch"]:
    """The images in batches. Each one that cannot be read is an error line on stderr, and is added to `bad`."""
    for batch in model.read(options.images, options.batch_size):
        for one in batch.unread:
            print_error(str(one))
            bad.append(one.name)
        if batch.names:
            yield batch
