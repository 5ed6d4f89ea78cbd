"""Measures the data path against other loaders, and against decoding only, which is the limit."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data import sets
from benchmarks.data.pipelines import Settings

ROOT = Path(__file__).resolve().parents[2]


EPILOG = """
Rates are images per second of the whole machine, divided by its cores. Every measurement runs in a fresh process. The
repeats of all contenders are interleaved. A rate is the median of its repeats; the table also has the smallest and the
largest. Libraries that are not installed (see requirements-bench.txt) are skipped, with a line on stderr.
"""
PERCENTS = (0, 50, 90)  # of an epoch: where the time to the first batch is measured
SOAK_SAMPLES = 60
SOAK_WARM_UP = 0.1  # share of the samples that is not counted
PRELOAD = ("torch", "torch.utils.data", "PIL.Image", "webdataset", "data.loading.loader")


class Contender(NamedTuple):
    """One line of the table.

    Attributes:
        name: in the table and on the command line.
        task: request to `benchmarks.data.worker`.
        peer: the library, if it has a data format of its own; otherwise "".
    """

    name: str
    task: dict[str, Any]
    peer: str = ""


CONTENDERS = (
    Contender("ours", {"measure": "rate", "pipeline": "ours"}),
    Contender("webdataset_pil", {"measure": "rate", "pipeline": "webdataset", "decoder": "pil"}),
    Contender("webdataset_cv2", {"measure": "rate", "pipeline": "webdataset", "decoder": "cv2"}),
    Contender("webdataset_same_decoder", {"measure": "rate", "pipeline": "webdataset", "decoder": "ours"}),
    *(
        Contender(name, {"measure": "rate", "pipeline": library, "decoder": decoder}, library)
        for library in ("mosaicml-streaming", "litdata")
        for name, decoder in ((library, "pil"), (f"{library}, same decoder", "ours"))
    ),
    *(
        Contender(f"decode_{name}_{workers}", {"measure": "loop", "decoder": decoder, "workers": workers})
        for name, decoder in (("cv2", "cv2"), ("ours", "ours"))
        for workers in ("threads", "processes")
    ),
)


class Worker:
    """A process of `benchmarks.data.worker` under the given Python. Leaving the `with` block ends it."""

    def __init__(self, python: str) -> None:
        command = [python, "-m", "benchmarks.data.worker", *PRELOAD]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, task: dict[str, Any], settings: Settings) -> dict[str, Any]:
        """Runs one measurement.

        Raises:
            RuntimeError: the measurement failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task | {"settings": asdict(settings)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        result: dict[str, Any] = json.loads(answer) if answer else {"error": "the worker ended"}
        if "error" in result:
            raise RuntimeError(result["error"])
        return result

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


def measure_rates(
    chosen: Sequence[Contender], ask: dict[str, Worker], settings: Settings, options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """The results of each contender, one per repeat; contenders take turns. Peers that fail are skipped.

    Raises:
        RuntimeError: a contender that is not a peer failed.
    """
    found: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in chosen}
    for repeat in range(options.repeats):
        for contender in chosen:
            if contender.name not in found:
                continue
            task = contender.task | {"warm_up": options.warm_up, "seconds": options.seconds}
            try:
                result = ask[contender.peer].ask(task, settings)
            except RuntimeError as error:
                if not contender.peer:
                    raise RuntimeError(f"{contender.name}: {error}") from error
                say(f"{contender.name} is skipped: {error}")
                del found[contender.name]
                continue
            found[contender.name].append(result)
            per_core = result["rate"] / settings.cores
            say(f"repeat {repeat + 1} of {options.repeats}: {contender.name} {per_core:.0f} images/s per core")
    return found


def prepare_peers(worker: Worker, chosen: Sequence[Contender], settings: Settings) -> list[Contender]:
    """Writes the set in the peers' formats. Returns the contenders without the peers whose library cannot write."""
    missing = set()
    for library in sorted({contender.peer for contender in chosen} - {""}):
        say(f"writing the set in the format of {library}")
        try:
            worker.ask({"measure": "write", "library": library}, settings)
        except RuntimeError as error:
            say(f"{library} is skipped: {error}")
            missing.add(library)
    return [contender for contender in chosen if contender.peer not in missing]


def median(results: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(result[name] for result in results)


def summarise(rates: dict[str, list[dict[str, float]]], cores: int) -> dict[str, Any]:
    """The rates for the JSON line; None for contenders that were not measured."""
    per_core = {name: round(median(results, "rate") / cores, 1) for name, results in rates.items()}
    loops = {
        decoder: {
            workers: per_core[f"decode_{decoder}_{workers}"]
            for workers in ("threads", "processes")
            if f"decode_{decoder}_{workers}" in per_core
        }
        for decoder in ("cv2", "ours")
    }
    return {
        "ours": per_core.get("ours"),
        "webdataset_pil": per_core.get("webdataset_pil"),
        "webdataset_same_decoder": per_core.get("webdataset_same_decoder"),
        "webdataset_cv2": per_core.get("webdataset_cv2"),
        "peers": {c.name: per_core[c.name] for c in CONTENDERS if c.peer and c.name in per_core},
        "decode_limit": max(loops["cv2"].values(), default=None),
        "decode_limit_ours": max(loops["ours"].values(), default=None),
        "decode_loops": loops,
        "cpu_us": {name: round(1e6 * median(results, "cpu")) for name, results in rates.items()},
        "unit": "images/s per core",
        "cores": cores,
    }


def print_table(rates: dict[str, list[dict[str, float]]], cores: int) -> None:
    reference = median(rates["ours"], "rate") if rates.get("ours") else None
    print(f"{'':36}{'images/s per core':>18}{'least':>8}{'most':>8}{'CPU us/image':>14}{'ours is':>9}")
    for name, results in rates.items():
        values = sorted(result["rate"] / cores for result in results)
        times = f"{reference / median(results, 'rate'):8.2f}x" if reference else ""
        print(
            f"{name:36}{statistics.median(values):18.0f}{values[0]:8.0f}{values[-1]:8.0f}"
            f"{1e6 * median(results, 'cpu'):14.0f}{times}"
        )


def measure_first_batches(worker: Worker, settings: Settings, repeats: int) -> dict[str, float]:
    found: dict[int, list[dict[str, float]]] = {percent: [] for percent in PERCENTS}
    for _ in range(repeats):
        for percent, results in found.items():
            results.append(worker.ask({"measure": "first_batch", "percent": percent}, settings))
    return {str(percent): round(median(results, "seconds"), 4) for percent, results in found.items()}


def measure_soak(worker: Worker, settings: Settings, minutes: float) -> dict[str, float]:
    """The largest deviation of resident memory from its median after the warm-up, as a fraction of the median."""
    task = {"measure": "soak", "minutes": minutes, "samples": SOAK_SAMPLES}
    resident = worker.ask(task, settings)["resident_mb"]
    warm = resident[int(SOAK_WARM_UP * len(resident)) :]
    middle = statistics.median(warm)
    deviation = max(abs(value - middle) for value in warm) / middle
    return {"minutes": minutes, "median_mb": round(middle, 1), "max_deviation": round(deviation, 4)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder /= f"{options.samples}-samples-of-{options.images}-images"
    settings = Settings(
        tars=str(folder / "tars"),
        mds=str(folder / "mds"),
        litdata=str(folder / "litdata"),
        cores=options.cores,
        batch_size=options.batch_size,
        image_size=options.image_size,
        lanes=options.lanes,
        block=options.block,
    )
    if not Path(settings.tars).exists():
        say(f"making {options.samples} samples of {options.images} images in {folder}")
        with sets.new_folder(Path(settings.tars)) as tars:
            sets.write_tars(tars, images=options.images, samples=options.samples, seed=0)
    chosen = [contender for contender in CONTENDERS if not options.only or contender.name in options.only]
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(sys.executable))
        if options.peers_python == sys.executable or not any(contender.peer for contender in chosen):
            peers = worker
        else:
            peers = stack.enter_context(Worker(options.peers_python))
        ask = {contender.peer: peers if contender.peer else worker for contender in chosen}
        rates = measure_rates(prepare_peers(peers, chosen, settings), ask, settings, options)
        say("seconds to the first batch")
        first_batch = measure_first_batches(worker, settings, options.repeats)
        say("one epoch: memory and bytes read")
        epoch = worker.ask({"measure": "epoch"}, settings)
        soak = measure_soak(worker, settings, options.minutes) if options.minutes else None
    print_table(rates, settings.cores)
    return summarise(rates, settings.cores) | {
        "first_batch_s": first_batch,
        "peak_mb": round(epoch["peak_mb"], 1),
        "bytes_read_over_used": round(epoch["bytes_read"] / epoch["bytes_used"], 4),
        "rss_flat": soak,
    }


@contextmanager
def work_folder(given: str | None) -> Iterator[Path]:
    """The folder for the sets: the given one, which is kept, or a temporary one."""
    if given is not None:
        yield Path(given).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        yield Path(folder)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__, epilog=EPILOG)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--cores", type=int, default=cores, help="threads or worker processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="time of one measurement (%(default)s)")
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before a measurement (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="number of measurements of each (%(default)s)")
    parser.add_argument("--images", type=int, default=2048, help="number of different images (%(default)s)")
    parser.add_argument("--samples", type=int, default=24 * 1024, help="size of the set, 50 KB each (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--lanes", type=int, default=8, help="of our order (%(default)s)")
    parser.add_argument("--block", type=int, default=1024, help="of our order (%(default)s)")
    parser.add_argument("--work-dir", help="keep the sets in this folder for later runs (default: a temporary one)")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="a Python with requirements-bench.txt (default: this one)"
    )
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=0.0, help="then measure our resident memory for so long")
    parser.add_argument("--quick", action="store_true", help="tiny: checks that it works; the rates mean nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.warm_up, options.repeats = 0.2, 0.1, 1
        options.images, options.samples, options.batch_size, options.lanes, options.block = 64, 512, 32, 2, 128
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        with work_folder(options.work_dir) as folder:
            found = measure(options, folder)
    except RuntimeError as error:
        say(str(error))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
