"""Command line: `python -m model summary NAME`."""

import argparse
import json
import sys
from typing import Any, NoReturn

from model.cost.summary import render, summarize
from model.variants import ModelConfigError, vit_config


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows how)\n")


def parse_setting(text: str) -> tuple[str, Any]:
    """ "key=value" -> (key, value): a number, true, false or null as in JSON; anything else is a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def build_parser() -> Parser:
    parser = Parser(prog="python -m model", description="Vision Transformers: what a model is and what it costs.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    summary = commands.add_parser(
        "summary",
        help="parameters, FLOPs and activation memory of a model",
        description="Counts a model's parameters, FLOPs and activation memory per image. Allocates no weights.",
        epilog="example: python -m model summary ViT-B/16 --image-size 384 --set pool=gap",
    )
    summary.add_argument("name", metavar="NAME", help="ViT-Ti, S, B, L or H and a patch size: ViT-H/14, vit_b16, L/32")
    summary.add_argument("--num-classes", type=int, default=1000, metavar="K", help="outputs of the head (1000)")
    summary.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="pixels a side (224)")
    summary.add_argument(
        "--set",
        dest="settings",
        type=parse_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="depth, width, mlp_dim, heads, patch_size, representation_size, dropout, pool or head_bias; repeatable",
    )
    summary.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the process's exit code."""
    options = build_parser().parse_args(arguments)
    settings = {"num_classes": options.num_classes, "image_size": options.image_size} | dict(options.settings)
    try:
        summary = summarize(vit_config(options.name, **settings))
    except ModelConfigError as error:
        print(f"python -m model summary: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary) if options.json else render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
