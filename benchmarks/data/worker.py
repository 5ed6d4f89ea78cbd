"""Runs each measurement in a fresh process, so that it does not share memory, threads or caches with another.

    python -m benchmarks.data.worker MODULE...      imports the modules; then, for each line on stdin, a JSON object
                                                    {"measure": NAME, ...}, forks, measures and prints a JSON line

The imports are done once, before the forks. If a measurement fails, its line is {"error": TEXT}.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.data import pipelines, sets
from benchmarks.data.pipelines import DECODERS, Settings

BATCHES: dict[str, Callable[..., Generator[int, None, None]]] = {
    "ours": pipelines.batches_of_ours,
    "webdataset": pipelines.batches_of_webdataset,
    "mosaicml-streaming": pipelines.batches_of_streaming,
    "litdata": pipelines.batches_of_litdata,
}
LOOP_IMAGES = 2048  # images that a bare loop decodes repeatedly
LOOP_TASK = 16  # images between two updates of the counter
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD = -1, -3, 32 << 20  # malloc.h


def rate(settings: Settings, pipeline: str, warm_up: float, seconds: float, **options: str) -> dict[str, float]:
    """Images per second of a pipeline, and CPU seconds per image of all its processes, without the start-up.

    The number of counted batches is a multiple of the number of workers, because workers deliver in turn.
    """
    with closing(BATCHES[pipeline](settings, **options)) as batches:
        images = delivered = 0
        begun = time.perf_counter()
        next(batches)
        while time.perf_counter() - begun < warm_up:
            next(batches)
        start, cpu = time.perf_counter(), _cpu_seconds()
        while (now := time.perf_counter()) - start < seconds or not delivered or delivered % settings.cores:
            images += next(batches)
            delivered += 1
        return {"rate": images / (now - start), "cpu": (_cpu_seconds() - cpu) / images}


def loop(settings: Settings, decoder: str, workers: str, warm_up: float, seconds: float) -> dict[str, float]:
    """Images per second of only decoding and scaling, from memory, in `threads` or `processes` on all cores."""
    _keep_memory()
    encoded = [image for image, _ in islice(sets.read_tars(Path(settings.tars)), LOOP_IMAGES)]
    counts = multiprocessing.RawArray("q", settings.cores)

    def work(worker: int) -> None:
        out = np.empty((LOOP_TASK, settings.image_size, settings.image_size, 3), np.uint8)
        decode, number = DECODERS[decoder], worker
        while True:
            for place in range(LOOP_TASK):
                decode(encoded[number % len(encoded)], out[place], number)
                number += settings.cores
            counts[worker] += LOOP_TASK

    kind: Any = threading.Thread if workers == "threads" else multiprocessing.get_context("fork").Process
    for worker in range(settings.cores):
        kind(target=work, args=(worker,), daemon=True).start()
    time.sleep(warm_up)
    start, before, cpu = time.perf_counter(), sum(counts), _cpu_seconds()
    time.sleep(seconds)
    while not (images := sum(counts) - before):  # a busy machine
        time.sleep(seconds)
    return {"rate": images / (time.perf_counter() - start), "cpu": (_cpu_seconds() - cpu) / images}


def first_batch(settings: Settings, percent: int) -> dict[str, float]:
    """Seconds from opening the index, creating order and threads, to the first batch at `percent` of an epoch."""
    start_step = pipelines.open_set(settings)[1].steps_per_epoch * percent // 100
    start = time.perf_counter()
    with pipelines.ours(settings, start_step=start_step) as loader:
        next(loader)
        return {"seconds": time.perf_counter() - start}


def epoch(settings: Settings) -> dict[str, float]:
    """Runs a whole epoch of ours: the process's peak memory, bytes read, and bytes used."""
    with pipelines.ours(settings, stop_step=pipelines.open_set(settings)[1].steps_per_epoch) as loader:
        images = sum(int(batch.valid.sum()) for batch in loader)
        found = loader.statistics()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": images, "peak_mb": peak, "bytes_read": found.bytes_read, "bytes_used": found.bytes_used}


def soak(settings: Settings, minutes: float, samples: int) -> dict[str, Any]:
    """Resident memory (MB) of ours at `samples` equally spaced times within `minutes`."""
    process = psutil.Process()
    resident: list[float] = []
    start, images = time.perf_counter(), 0
    for size in pipelines.batches_of_ours(settings):
        images += size
        if time.perf_counter() - start >= (len(resident) + 1) * minutes * 60 / samples:
            resident.append(process.memory_info().rss / 2**20)
            print(f"{images} images, {resident[-1]:.0f} MB", file=sys.stderr, flush=True)
            if len(resident) >= samples:
                break
    return {"images": images, "resident_mb": resident}


def write(settings: Settings, library: str) -> dict[str, Any]:
    """Writes the set in a library's own format, unless it exists."""
    writer, place = {
        "mosaicml-streaming": (sets.write_mds, settings.mds),
        "litdata": (sets.write_litdata, settings.litdata),
    }[library]
    if not Path(place).exists():
        with sets.new_folder(Path(place)) as folder:
            writer(Path(settings.tars), folder)
    return {}


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (rate, loop, first_batch, epoch, soak, write)
}


def _keep_memory() -> None:
    """Lets glibc keep freed memory. It may otherwise return the pages of each image, and page faults slow the limit."""
    with suppress(AttributeError):  # a C library without mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _cpu_seconds() -> float:
    """User and system time of this process and its descendants."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [this, *this.children(recursive=True)])


def _measure(sender: Connection, task: dict[str, Any]) -> None:
    cv2.setNumThreads(1)
    try:
        settings = Settings(**task.pop("settings"))
        sender.send(MEASUREMENTS[task.pop("measure")](settings, **task))
    except Exception as error:
        lines = str(error).strip().splitlines()  # a worker process's error ends with the message
        sender.send({"error": lines[-1] if lines else type(error).__name__})
    sender.close()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(0)  # does not wait for libraries' threads and exit hooks


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stderr
    for module in sys.argv[1:]:
        with suppress(ImportError):  # a missing library fails when it is used
            importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_measure, args=(sender, json.loads(line)))
        process.start()
        sender.close()
        try:
            result = receiver.recv()
        except EOFError:
            result = {"error": "the process ended"}
        process.join()
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
