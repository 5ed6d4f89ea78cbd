"""`python -m orchestrator features MODEL IMAGE... DST`: the input of a model's head, as an .npz file."""

import argparse
import io

from data import storage
from orchestrator.commands.images import add_model_and_images, errors_of_models, open_for, read
from orchestrator.commands.parsing import Commands
from orchestrator.job.errors import JobError


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "features",
        help="write the features of images to an .npz file",
        description="Write what a model's head sees of images: `features` (N, D) float32 and `images` (N), their names "
        "in the same order. Images are cut and scaled as for the model's own held-out sets. An image that cannot be "
        "read is left out and named on stderr, and the exit code is then 2.",
        epilog="example: python -m orchestrator features gs://bucket/runs/l16@best photos/ features.npz",
    )
    add_model_and_images(command)
    command.add_argument("to", metavar="DST", help="the .npz file to write, on any store")
    command.add_argument("--force", action="store_true", help="replace DST if it is there")
    command.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Write the features; returns 2 if an image could not be read.

    Raises:
        JobError: the model cannot be used, or the file cannot be written.
    """
    if not options.to.endswith(".npz"):
        raise JobError(f"{options.to}: the last argument is the file to write, and its name ends with .npz")
    with errors_of_models(options.to):
        if storage.exists(options.to) and not options.force:
            raise JobError(f"{options.to}: exists; use --force to replace it")
    model = open_for(options)
    import numpy as np  # not at the top: other commands start without it

    bad: list[str] = []
    names: list[str] = []
    features = [np.empty((0, model.num_features), np.float32)]
    for batch in read(model, options, bad):
        names += batch.names
        features.append(model.features(batch.images).numpy())
    content = io.BytesIO()
    np.savez(content, features=np.concatenate(features), images=np.array(names, dtype=np.str_))
    with errors_of_models(options.to):
        storage.write_atomic(options.to, content.getvalue())
    print(f"{options.to}: features of {len(names):,} images, {model.num_features:,} numbers each")
    return 2 if bad else 0
