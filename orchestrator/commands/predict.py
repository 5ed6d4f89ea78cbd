"""`python -m orchestrator predict MODEL IMAGE...`: the likeliest classes of images."""

import argparse
import json

from orchestrator.commands.images import add_model_and_images, open_for, positive, read
from orchestrator.commands.parsing import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "predict",
        help="print the likeliest classes of images",
        description="Print the likeliest classes of images, a line for each. Images are cut and scaled as for the "
        "model's own held-out sets. An image that cannot be read is named on stderr, and the exit code is then 2.",
        epilog="example: python -m orchestrator predict runs/pretrain_digits 'digits/*.png' --top 3",
    )
    add_model_and_images(command)
    command.add_argument("--top", type=positive, default=5, metavar="K", help="classes to print of an image (5)")
    command.add_argument("--json", action="store_true", help="print a JSON object for each image, one a line")
    command.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Print the classes; returns 2 if an image could not be read.

    Raises:
        JobError: the model cannot be used.
    """
    model = open_for(options)
    bad: list[str] = []
    for batch in read(model, options, bad):
        best = model.probabilities(batch.images).topk(min(options.top, model.num_classes))
        for name, values, numbers in zip(batch.names, best.values.tolist(), best.indices.tolist(), strict=True):
            classes = [
                {"class": number, "name": model.class_name(number), "probability": value}
                for number, value in zip(numbers, values, strict=True)
            ]
            if options.json:
                print(json.dumps({"image": name, "classes": classes}), flush=True)
            else:
                shown = ", ".join(f"{one['name']} {one['probability']:.1%}" for one in classes)
                print(f"{name}: {shown}", flush=True)
    return 2 if bad else 0
