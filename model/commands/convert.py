"""`python -m model convert`."""

import argparse
from typing import TYPE_CHECKING

from model.weights.convert import DROPPABLE, DTYPES, convert
from model.weights.formats import FORMATS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command to the command line."""
    command = commands.add_parser(
        "convert",
        help="a model's weights in another format",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Writes the model at SRC to DST in another format. SRC and DST are paths or URLs (gs://, s3://, ...).

SRC  the authors' .npz, our export folder, a timm or Hugging Face folder, or a state dictionary of timm's names
     (.safetensors, .pth, .pt, .bin). Its own files say which it is. No code of a file is run.
DST  a file or a new folder. Without --format: .npz, .onnx; .safetensors, .pth, .pt and .bin are a state dictionary of
     timm's names; any other name is a folder in our export format.

What was written is read back and compared before it appears at DST: every tensor to the bit, and features and logits
of two random images to 1e-5 x the largest. The last lines say the difference that was found. A model that the format
cannot hold exactly is refused, and the message says what would be lost. docs/weights.md has a table of the formats.""",
        epilog="""\
examples:
  python -m model convert B_16.npz models/b16                               the authors' file as a folder of ours
  python -m model convert B_16.npz models/b16-timm --format timm            for timm.create_model("local-dir:...")
  python -m model convert ViT-L_16.npz l16-hf --format huggingface --drop pre_logits
  python -m model convert google-vit-base-patch16-224/ b16.npz              a Hugging Face folder as an .npz
  python -m model convert runs/digits/export digits.onnx                    needs requirements-onnx.txt
  python -m model convert models/b16 gs://BUCKET/b16 --dtype bf16           half the size""",
    )
    command.add_argument("source", metavar="SRC", help="the model to read")
    command.add_argument("target", metavar="DST", help="what to write; refused if it exists, unless --force")
    command.add_argument("--format", choices=tuple(FORMATS), help="of DST (default: by its suffix)")
    command.add_argument(
        "--drop",
        choices=DROPPABLE,
        action="append",
        default=[],
        help="leave out a layer; repeatable. Without pre_logits the model gets a new head of zeros. Without head it "
        "gives features, and Hugging Face's ViTModel can hold pre-logits",
    )
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the written tensors (float32)")
    command.add_argument("--force", action="store_true", help="replace the file or the model's folder at DST")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Converts, prints a line for each thing found, and returns the exit code. Raises `WeightsError`."""
    lines = convert(
        options.source,
        options.target,
        format=options.format,
        drop=options.drop,
        dtype=options.dtype,
        force=options.force,
    )
    for line in lines:
        print(line)
    return 0
