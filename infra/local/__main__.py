"""A cluster on this machine that grows and shrinks: `python -m infra.local up`, `status`, `down`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from infra.local.autoscaler import Scaling
from infra.local.cluster import ClusterError, LocalCluster

FOLDER = Path("~/.cache/vit-local")


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message} (--help explains)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0 done, 2 failed."""
    parser = Parser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start a head whose autoscaler adds worker nodes for jobs")
    up.add_argument("--max-workers", type=int, default=3, help="maximum number of worker nodes (default %(default)s)")
    up.add_argument(
        "--cpus-per-worker", type=int, default=1, help="CPUs that each node announces (default %(default)s)"
    )
    up.add_argument(
        "--idle-seconds",
        type=float,
        default=30,
        help="after which a node is removed (default %(default)g)",
    )
    up.set_defaults(run=_up)
    commands.add_parser("status", help="print the nodes").set_defaults(run=_status)
    commands.add_parser("down", help="end the cluster and everything that runs on it").set_defaults(run=_down)
    for command in commands.choices.values():
        command.add_argument(
            "--folder", type=Path, default=FOLDER, help="of this cluster's state (default %(default)s)"
        )
    options = parser.parse_args(arguments)
    options.folder = options.folder.expanduser().absolute()
    try:
        options.run(options)
    except (ClusterError, OSError) as error:
        print(f"error: python -m infra.local {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _up(options: argparse.Namespace) -> None:
    if min(options.max_workers, options.cpus_per_worker) < 1 or options.idle_seconds <= 0:
        raise ClusterError("--max-workers and --cpus-per-worker must be at least 1, --idle-seconds more than 0")
    scaling = Scaling(
        max_workers=options.max_workers, cpus_per_worker=options.cpus_per_worker, idle_seconds=options.idle_seconds
    )
    cluster = LocalCluster.start(options.folder, scaling)
    most, cpus = options.max_workers, options.cpus_per_worker
    print(f"started a head without CPUs, for up to {most} worker nodes of {cpus} CPU; next:\n")
    print(_exports(cluster))
    print("python -m orchestrator run jobs/pretrain_digits.yaml   # or: ray job submit jobs/pretrain_digits.yaml")
    print("\nend it with: python -m infra.local down" + _folder_words(options))


def _status(options: argparse.Namespace) -> None:
    cluster = _running(options)
    for node in cluster.nodes():
        print(f"{'head  ' if node.head else 'worker'} {node.id} {node.resources.get('CPU', 0):g} CPU")
    print(f"logs: {cluster.scratch}/session_latest/logs\n\n{_exports(cluster)}")


def _down(options: argparse.Namespace) -> None:
    if cluster := LocalCluster.find(options.folder):
        cluster.close()
        print(f"ended the cluster at {cluster.address}")
    else:
        print(f"no cluster runs in {options.folder}")


def _running(options: argparse.Namespace) -> LocalCluster:
    if cluster := LocalCluster.find(options.folder):
        return cluster
    raise ClusterError(
        f"no cluster runs in {options.folder}; start one: python -m infra.local up{_folder_words(options)}"
    )


def _exports(cluster: LocalCluster) -> str:
    names = cluster.exports
    addresses = {name: names.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    lines = [" ".join(f"{name}={value}" for name, value in group.items()) for group in (addresses, names)]
    return "\n".join(f"export {line}" for line in lines)


def _folder_words(options: argparse.Namespace) -> str:
    return "" if options.folder == FOLDER.expanduser() else f" --folder {options.folder}"


if __name__ == "__main__":
    sys.exit(main())
