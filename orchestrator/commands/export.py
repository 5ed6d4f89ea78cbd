"""`python -m orchestrator export RUN DST`: the model of a run as a folder that anybody can use."""

import argparse

from data import storage
from orchestrator.commands.images import errors_of_models
from orchestrator.commands.parsing import Commands
from orchestrator.job.errors import JobError
from orchestrator.redact import print_warning


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser(
        "export",
        help="write the model of a run into a folder, for others to use",
        description="Write model.safetensors, model.json (architecture, preprocessing, class names, provenance) and a "
        "model card. It reads a checkpoint of any number of workers and any ZeRO stage, local or in a bucket, without "
        "a GPU, and takes the memory of one model. A finished run has its last checkpoint in RUN/export.",
        epilog="example: python -m orchestrator export gs://bucket/runs/l16 l16 --step best --dtype bf16",
    )
    command.add_argument("run_url", metavar="RUN", help="the folder of a run, on any store")
    command.add_argument("to", metavar="DST", help="the folder to write, on any store")
    command.add_argument(
        "--step", metavar="N", help="the checkpoint: a number of steps, last (the newest; the default), or best"
    )
    command.add_argument("--ema", action="store_true", help="the averaged weights instead of the live ones")
    command.add_argument(
        "--dtype", choices=("float32", "bf16"), default="float32", help="of the weights in the file (float32)"
    )
    command.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    command.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Write the model.

    Raises:
        JobError: there is no such model, or the folder is not empty or cannot be written.
    """
    with errors_of_models(options.run_url):
        from orchestrator.checkpoint.as_model.trained import Address, no_run, read_trained, run_address

        address = run_address(options.run_url)
        if address is None:
            raise JobError(f"{options.run_url}: {no_run(options.run_url)}")
        if options.step is not None or options.ema:
            if address != Address(address.url):
                raise JobError(f"{options.run_url}: names a checkpoint itself; leave out --step and --ema")
            weights = "ema" if options.ema else "live"
            address = run_address(f"{address.url}@{options.step or 'last'}#{weights}")
            assert address is not None
    with errors_of_models(options.to):
        from orchestrator.checkpoint.as_model.export import check_empty, write_export

        if not options.force:
            check_empty(options.to)
    with errors_of_models(options.run_url):
        model = read_trained(address, print_warning)
    try:
        write_export(model, options.to, options.dtype)
    except Exception as error:  # of any store
        raise JobError(f"{options.to}: cannot be written ({storage.describe(error)})") from error
    print(f"{options.to}: {model.config.name} of step {model.step:,}, {options.dtype}")
    return 0
