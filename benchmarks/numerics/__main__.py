"""Measures whether a way to compute the step changes the training: loss curves of a small job against plain PyTorch."""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.numerics.job import Precision, Recipe, Variant, train_plainly, train_variant
from benchmarks.numerics.verdict import Curves, Yardsticks, compare, differences, final_loss
from data.commands.parsing import Parser
from data.sources.digits import pack_digits
from infra.local.ranks import run_ranks

EPILOG = """
The job: a ViT of two blocks of width 96 with dropout 0.1 on scikit-learn's digits, augmented, in batches of 32; AdamW
at 3e-4, warm-up over a tenth of the steps, linear decay, clipping to norm 1. A seed decides initialisation, order,
augmentation and dropout.

The reference is a loop in plain PyTorch: float32, one process, whole batches, torch's AdamW and clipping, every token
of every block. The variants train with the engine of a run, on a CPU; several workers are processes joined by gloo.
Every training has a fresh process per worker.

The last line is JSON. Of a row:
  loss                mean of the last quarter of the steps and of the seeds
  difference          from the reference with the same seed, mean of the seeds; differences has one per seed
  largest_difference  the largest absolute value of the differences
  running_difference  the largest difference at any step, of the mean over the previous tenth of the steps
  noise               standard deviation of the reference's loss over the seeds
  of_noise            largest_difference / noise;  within_noise: whether it is at most 1
  of_rounding         largest_difference / rounding. `rounding` is the effect on the reference of initial weights that
                      differ by one unit in the last place. Variants in bf16 may have large values
  error               why a variant failed
`reductions`: the loss with gradients summed over the workers in bf16, less that with sums in float32, by seed.

The exit code is 1 if a variant is not within noise.
"""

PAIRS = [(workers, stage) for workers in (2, 4) for stage in (1, 2)]
"""Workers and ZeRO stages with which both kinds of gradient reduction are compared."""


def reduced(workers: int, stage: int, reduction: Precision) -> Variant:
    name = f"bf16-zero{stage}-{workers}-workers-reduce-{reduction}"
    return Variant(name, workers=workers, precision="bf16", zero_stage=stage, reduction=reduction)


VARIANTS = {
    variant.name: variant
    for variant in [
        Variant("float32"),
        Variant("float32-compiled", compiled=True),
        Variant("float32-selective", checkpointing="selective"),
        Variant("float32-full", checkpointing="full"),
        Variant("float32-micro-batches", micro_batch=12),  # three micro-batches, the last one with masked slots
        *(Variant(f"bf16-zero{stage}", precision="bf16", zero_stage=stage) for stage in range(4)),
        Variant(
            "bf16-zero1-compiled-selective", precision="bf16", zero_stage=1, compiled=True, checkpointing="selective"
        ),
        *(reduced(*pair, reduction) for pair in PAIRS for reduction in ("bf16", "float32")),
    ]
}
QUICK = ["float32", "bf16-zero1"]
REFERENCE, MOVED = "reference", "reference, moved"


@dataclass(frozen=True)
class Training:
    """One curve to compute.

    Attributes:
        variant: how the step is computed; None: the reference.
        seed: of initialisation, order, augmentation and dropout.
        moved: of the reference: whether its initial weights are changed by one unit in the last place.
    """

    variant: Variant | None
    seed: int
    moved: bool = False

    @property
    def name(self) -> str:
        return self.variant.name if self.variant else MOVED if self.moved else REFERENCE

    @property
    def workers(self) -> int:
        return self.variant.workers if self.variant else 1

    def run(self, shards: str, recipe: Recipe) -> list[float]:
        """The loss of each step. Raises RuntimeError if a process failed."""
        if self.variant is None:
            curve: list[float] = run_ranks(1, train_plainly, shards, recipe, self.seed, self.moved)[0]
        else:
            curve = run_ranks(self.workers, train_variant, shards, recipe, self.seed, self.variant)[0]
        return curve


def train_all(
    trainings: Sequence[Training], shards: str, recipe: Recipe
) -> tuple[dict[str, dict[int, list[float]]], dict[str, str]]:
    """The curves by name and seed, and the errors by name. Runs as many processes at once as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    curves: dict[Training, list[float]] = {}
    errors: dict[str, str] = {}
    begun, done, paid = time.monotonic(), 0, 0
    cost = sum(2 + training.workers for training in trainings)  # a fixed cost per training, and one per process
    for workers in sorted({training.workers for training in trainings}):
        of_size = [training for training in trainings if training.workers == workers]
        with ThreadPoolExecutor(max(1, cores // workers)) as pool:
            running = {pool.submit(training.run, shards, recipe): training for training in of_size}
            for future in as_completed(running):
                training = running[future]
                try:
                    curves[training] = future.result()
                    outcome = f"{final_loss(curves[training]):.4f}"
                    if not all(map(math.isfinite, curves[training])):
                        errors[training.name] = f"seed {training.seed}: the loss is not finite"
                except RuntimeError as error:
                    outcome = errors[training.name] = str(error).strip().splitlines()[-1]
                done, paid = done + 1, paid + 2 + workers
                left = (time.monotonic() - begun) * (cost - paid) / paid
                say(f"{done} of {len(trainings)}: {training.name}, seed {training.seed}: {outcome}; {left:.0f} s left")
    by_name: dict[str, dict[int, list[float]]] = {}
    for training in trainings:  # in the order of the seeds
        if training in curves:
            by_name.setdefault(training.name, {})[training.seed] = curves[training]
    return by_name, errors


def report(
    chosen: Sequence[Variant], curves: Mapping[str, Curves], errors: Mapping[str, str], recipe: Recipe
) -> dict[str, Any]:
    """The fields of the JSON line."""
    yardsticks = Yardsticks.of(curves[REFERENCE], curves[MOVED])
    rows = []
    for variant in chosen:
        row: dict[str, Any] = {"variant": variant.name, **asdict(variant), "error": errors.get(variant.name)}
        del row["name"]
        if row["error"] is None:
            row |= compare(curves[variant.name], curves[REFERENCE], yardsticks)
        rows.append({**row, "within_noise": row.get("within_noise", False)})
    reductions = []
    for workers, stage in PAIRS:
        low, high = (reduced(workers, stage, precision).name for precision in ("bf16", "float32"))
        if {low, high} <= {row["variant"] for row in rows if row["error"] is None}:
            effect = differences(curves[low], curves[high])
            reductions.append({"workers": workers, "zero_stage": stage, "differences": effect})
    return {
        "rows": rows,
        "reductions": reductions,
        "reference": {seed: final_loss(curve) for seed, curve in curves[REFERENCE].items()},
        "noise": yardsticks.noise,
        "rounding": yardsticks.rounding,
        "recipe": asdict(recipe),
        "within_noise": all(row["within_noise"] for row in rows),
    }


def print_table(found: Mapping[str, Any]) -> None:
    losses = found["reference"].values()
    print(f"reference: loss {statistics.mean(losses):.4f} ({', '.join(f'{loss:.4f}' for loss in losses)})")
    print(f"noise {found['noise']:.4f}; rounding {found['rounding']:.1e}")
    print(f"{'':40}{'loss':>8}{'difference':>13}{'largest':>11}{'of noise':>10}{'of rounding':>13}  within noise")
    for row in found["rows"]:
        if row["error"]:
            print(f"{row['variant']:40}  {row['error']}")
            continue
        print(
            f"{row['variant']:40}{row['loss']:8.4f}{row['difference']:+13.6f}{row['largest_difference']:11.6f}"
            f"{row['of_noise']:10.2%}{row['of_rounding']:13.4g}  {'yes' if row['within_noise'] else 'NO'}"
        )
    for pair in found["reductions"]:
        effect = ", ".join(f"{difference:+.4f}" for difference in pair["differences"])
        print(f"bf16 less float32 reduction, {pair['workers']} workers, ZeRO {pair['zero_stage']}: {effect}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.numerics",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--variants", nargs="+", metavar="NAME", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)} (all)")
    add("--seeds", nargs="+", type=int, metavar="S", default=[0, 1, 2], help="two or more (0 1 2)")
    add("--steps", type=int, default=200, help="of every training (%(default)s)")
    add("--quick", action="store_true", help=f"{' and '.join(QUICK)}, 20 steps, 2 seeds: checks that it works")
    options = parser.parse_args(arguments)
    for name in options.variants:
        if name not in VARIANTS:
            parser.error(f"--variants: there is no {name!r}; the variants are {', '.join(VARIANTS)}")
    if len(options.seeds) < 2 or len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error("--seeds: two or more different numbers, not negative, because the noise is their spread")
    if options.steps < 10:
        parser.error("--steps: 10 or more")
    if options.quick:
        options.variants, options.seeds, options.steps = QUICK, [0, 1], 20
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print a table and, last, one JSON line."""
    options = parse(arguments)
    recipe = Recipe(options.steps)
    chosen = [VARIANTS[name] for name in options.variants]
    trainings = [Training(None, seed, moved) for moved in (False, True) for seed in options.seeds]
    trainings += [Training(variant, seed) for variant in chosen for seed in options.seeds]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmark-numerics-") as folder:
        pack_digits(folder)
        curves, errors = train_all(trainings, f"{folder}/train", recipe)
    for name in (REFERENCE, MOVED):
        if name in errors:
            say(f"{name}: {errors[name]}")
            return 1
    found = report(chosen, curves, errors, recipe)
    print_table(found)
    print(json.dumps({**found, "seconds": round(time.monotonic() - begun, 1)}))
    return 0 if found["within_noise"] else 1


if __name__ == "__main__":
    sys.exit(main())
