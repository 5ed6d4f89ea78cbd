"""`python -m model summary`."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from model.cost.summary import render, summarize
from model.variants import vit_config

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command to the command line."""
    command = commands.add_parser(
        "summary",
        help="parameters, FLOPs and activation memory of a model",
        description="Counts a model's parameters, FLOPs and activation memory per image. Allocates no weights.",
        epilog="example: python -m model summary ViT-B/16 --image-size 384 --set pool=gap",
    )
    command.add_argument("name", metavar="NAME", help="ViT-Ti, S, B, L or H and a patch size: ViT-H/14, vit_b16, L/32")
    command.add_argument("--num-classes", type=int, default=1000, metavar="K", help="outputs of the head (1000)")
    command.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="pixels a side (224)")
    command.add_argument(
        "--set",
        dest="settings",
        type=parse_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="depth, width, mlp_dim, heads, patch_size, representation_size, dropout, pool, gelu, norm_eps or "
        "head_bias; repeatable",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the summary and returns the exit code. Raises `ModelConfigError` for an impossible model."""
    settings = {"num_classes": options.num_classes, "image_size": options.image_size} | dict(options.settings)
    summary = summarize(vit_config(options.name, **settings))
    print(json.dumps(summary) if options.json else render(summary))
    return 0


def parse_setting(text: str) -> tuple[str, Any]:
    """ "key=value" -> (key, value): a number, true, false or null as in JSON; anything else is a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
