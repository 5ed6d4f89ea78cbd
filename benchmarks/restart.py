"""Measures the seconds from the kill of a worker until training continues, beside those of an empty function."""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


EPILOG = """
Both run with two workers on a private Ray of this machine, in turn, --repeats times each. A worker is killed with
SIGKILL. The time of the empty function ends with its first line after the restart. The time of the run ends with its
first logged step after the restart; it includes imports, the model, DeepSpeed, a checkpoint and the first batch. The
log has a line at most every 5 s, so the run's time may be up to 5 s too long.
"""
EMPTY = """
import os, signal, sys, time
from pathlib import Path
from data.ray_session import settle_authentication
settle_authentication()
import ray, ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

folder = Path(sys.argv[1])

def function():
    rank = ray.train.get_context().get_world_rank()
    if (folder / "killed").exists():
        (folder / f"again-{rank}").write_text(str(time.time()))
        return
    time.sleep(5)
    if rank == 0:
        (folder / "killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)

ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
config = RunConfig(name="empty", storage_path=str(folder), failure_config=FailureConfig(max_failures=1))
TorchTrainer(function, scaling_config=ScalingConfig(num_workers=2), run_config=config,
             torch_config=TorchConfig(backend="gloo")).fit()
times = {path.name: float(path.read_text()) for path in folder.glob("*") if path.is_file()}
print("seconds", max(times["again-0"], times["again-1"]) - times["killed"])
"""


def empty() -> float:
    """Seconds of Ray Train's restart of an empty function."""
    with tempfile.TemporaryDirectory(prefix="benchmark-restart-") as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
        words = [sys.executable, "-c", EMPTY, folder]
        output = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
        found = re.search(r"^seconds ([\d.]+)$", output.stdout, re.MULTILINE)
        if found is None:
            raise SystemExit(f"error: the empty function failed: {output.stderr.strip().splitlines()[-1:]}")
        return float(found[1])


def ours() -> float:
    """Seconds of a restart of jobs/pretrain_digits.yaml."""
    with tempfile.TemporaryDirectory(prefix="benchmark-restart-") as folder:
        keys = {
            "name": "run",
            "schedule.length.steps": 100_000,
            "checkpoint.url": folder,
            "checkpoint.every.steps": 20,
            "evaluate.every.steps": 100_000,
            "tracking.uri": f"sqlite:///{folder}/mlflow.db",
            "tracking.every.steps": 1,
            "data.pack.to": f"{folder}/digits",
            "data.train.url": f"{folder}/digits/train",
            "data.eval.test.url": f"{folder}/digits/test",
        }
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        words = [sys.executable, "-m", "orchestrator", "run", "jobs/pretrain_digits.yaml", *sets]
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        run = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        limit = threading.Timer(600, run.kill)
        limit.start()
        try:
            while not list(Path(folder).glob("run/step-000000020-*/manifest.json")):
                if run.poll() is not None:
                    raise SystemExit("error: the run failed")
                time.sleep(0.05)
            worker = next(
                process
                for process in psutil.Process(run.pid).children(recursive=True)
                if "RayTrainWorker" in " ".join(process.cmdline())
            )
            worker.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            assert run.stderr is not None
            again = False
            for line in run.stderr:
                again = again or "continuing at step" in line
                if again and "loss" in line:
                    return time.monotonic() - killed
            raise SystemExit("error: the run did not continue")
        finally:
            limit.cancel()
            run.send_signal(signal.SIGINT)
            try:
                run.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table and, last, one JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restart",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=3, help="restarts of each (default: 3)")
    options = parser.parse_args(arguments)
    found: dict[str, list[float]] = {"ours": [], "empty": []}
    for repeat in range(options.repeats):
        for name, measure in (("empty", empty), ("ours", ours)):
            found[name].append(measure())
            print(f"{repeat + 1} of {options.repeats}: {name} {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    medians = {f"{name}_s": round(statistics.median(values), 1) for name, values in found.items()}
    for name, values in found.items():
        spread = ", ".join(f"{value:.1f}" for value in sorted(values))
        print(f"{name:<6} {statistics.median(values):6.1f} s   ({spread})")
    print(json.dumps({**medians, "difference_s": round(medians["ours_s"] - medians["empty_s"], 1), **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
