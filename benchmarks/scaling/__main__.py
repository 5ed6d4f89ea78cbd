"""Calculates the time of a training step on up to thousands of accelerators, and the exposed communication."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.engine.settings import REDUCE_BUCKET

EPILOG = """
Without --tally or --check, nothing is run: the table is calculated (benchmarks/scaling/model.py) from the rate of a
single accelerator, the links, and the data that ranks exchange (benchmarks/scaling/tally.py, which counted it).

  python -m benchmarks.scaling                           # H/14 on 8 to 2,048 accelerators, from an ASSUMED rate
  python -m benchmarks.step --models H/14 > step.txt     # on a GPU: its last line is what --step reads
  python -m benchmarks.scaling --step step.txt
  python -m benchmarks.scaling --between 12.5 --bucket 500000000
  python -m benchmarks.scaling --tally                   # count the data that ranks exchange, in real processes
  python -m benchmarks.scaling --check                   # real processes behind throttled links; root on Linux

The last line is JSON. Of a row, times of a step in milliseconds:
  ranks, images     number of accelerators, and images of each
  passes            micro-batches per step
  stage             of ZeRO
  compute_ms        forward and backward; the time per image is longer for small micro-batches
  gradients_ms, weights_ms, small_ms    collectives: gradients; weights; norms, flags, and the weights that stage 3
                    keeps on every rank
  hidden_ms         time of collectives that overlaps computation;  exposed_ms: time that does not
  step_ms           compute_ms + exposed_ms
  efficiency        the rate over that of as many single accelerators with full micro-batches
  state_gb          10^9 bytes of weights, gradients and optimizer on each
  fits              whether the state fits together with activations and buffers
`shows_from` has, by stage, the smallest power of two of accelerators, and the images of each, at which exposed
communication is more than 10 % of a step; null if there is none. `fastest` has, by the number of accelerators, the best
stage that fits. `device` and `links` say what was assumed or measured.
With --tally: `tally` has bytes per parameter and calls per step, by stage and micro-batches.
With --check, a row has ranks, stage, megabits; unthrottled_s and measured_s, which are medians; fastest_s, the fastest
step of those in measured_s; predicted_s; ratio, measured over predicted; sent_ratio, the bytes that the kernel counted,
without headers, over those of the table.

Not included: the optimizer's arithmetic, waiting for the slowest rank, data, contention in the network's switches.
"""
RANKS = (8, 64, 512, 2048)
WORLDS, MEGABITS, CHECK_STEPS = (2, 4), (200.0, 100.0), 5  # of --check


def tallied(stages: Sequence[int]) -> dict[str, Any]:
    """Counts with two processes, and prints the counts beside the table's figures."""
    from dataclasses import asdict

    from benchmarks.scaling.tally import expected, tally
    from infra.local.ranks import run_ranks

    counts, lines = [], []
    for stage in stages:
        for passes in (1, 2):
            table = {(row.kind, row.phase): row for row in expected(stage, passes)}
            for row in run_ranks(2, tally, stage, passes)[0]:
                counts.append({"stage": stage, "passes": passes, **asdict(row)})
                listed = table.get((row.kind, row.phase))
                beside = f"{listed.size:g}, {listed.calls}" if listed else "nothing"
                what = f"{stage:>6}{passes:>8}  {row.kind:16}{row.phase:12}"
                lines.append(f"{what}{row.size:>18.4f}{row.calls:>7}   {beside}")
    print(f"{'stage':>6}{'passes':>8}  {'collective':16}{'phase':12}{'bytes/parameter':>18}{'calls':>7}   in the table")
    print("\n".join(lines))  # after DeepSpeed's output
    return {"tally": counts}


def checked(stages: Sequence[int]) -> dict[str, Any]:
    """Trains behind throttled links, and prints the times beside the prediction."""
    from benchmarks.scaling.check import check

    rows = check(WORLDS, stages, MEGABITS, CHECK_STEPS)
    names = (
        "ranks",
        "stage",
        "megabits",
        "unthrottled_s",
        "predicted_s",
        "measured_s",
        "fastest_s",
        "ratio",
        "sent_ratio",
    )
    print("".join(f"{name:>14}" for name in names))
    for row in rows:
        print("".join(f"{row[name]:>14g}" for name in names))
    return {"rows": rows}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--tally", action="store_true", help="count the data that ranks exchange in a step")
    modes.add_argument("--check", action="store_true", help="train behind throttled links; 2 and 4 processes")
    modes.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # a process of --check
    add("--model", default="H/14", help="always with H/14's number of collectives (%(default)s)")
    add("--classes", type=_count, default=18291, help="(%(default)s)")
    add("--representation-size", type=_count, default=1280, help="width of the tanh layer (%(default)s)")
    add("--batch", type=_count, default=4096, help="images per step, of all accelerators (%(default)s)")
    add("--micro-batch", type=_count, default=64, help="largest on an accelerator (%(default)s)")
    add("--ranks", type=_count, nargs="+", default=list(RANKS), help="numbers of accelerators (8 64 512 2048)")
    add("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="of ZeRO (all)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--step", type=Path, metavar="FILE", help="output of benchmarks.step, for the measured rate")
    forty = 395.6  # 40 % of the datasheet's 989 TFLOP/s of an H100 or H200
    rate.add_argument("--tflops", type=_positive, default=forty, help="rate without --step, ASSUMED (%(default)s)")
    add("--memory-gb", type=_positive, default=141.0, help="of an accelerator (%(default)s, an H200's)")
    add("--node", type=_count, default=8, help="accelerators per node, and network cards (%(default)s)")
    add("--inside", type=_positive, default=450.0, help="GB/s of a link in a node, one direction (%(default)s)")
    add("--between", type=_positive, default=50.0, help="GB/s of a network card, one direction (%(default)s)")
    add("--hop-inside", type=_positive, default=2.0, help="us of a hop in a node (%(default)s)")
    add("--hop-between", type=_positive, default=4.0, help="us of a hop between nodes (%(default)s)")
    add("--fraction", type=_positive, default=0.8, help="of the bandwidth that collectives reach (%(default)s)")
    add("--bucket", type=_count, default=REDUCE_BUCKET, help="gradients that stages 2, 3 send at once (%(default)s)")
    options = parser.parse_args(arguments)
    if options.batch < max(options.ranks):
        parser.error(f"--batch {options.batch}: fewer images than accelerators ({max(options.ranks)})")
    if options.fraction > 1:
        parser.error(f"--fraction {options.fraction:g}: must be at most 1")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table and, last, one JSON line."""
    options = parse(arguments)
    if options.rank is not None:
        from benchmarks.scaling.check import serve

        serve(options.rank)
        return 0
    if options.check:
        from benchmarks.scaling.check import missing

        if why := missing():
            print(f"error: --check {why}", file=sys.stderr)
            return 2
    try:
        if options.check:
            found = checked(options.stages)
        elif options.tally:
            found = tallied(options.stages)
        else:
            from benchmarks.scaling.paper import on_paper, print_paper

            found = on_paper(options)
            print_paper(found)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
