"""Compares training processes behind throttled links with the calculation: is the time of a step that of its bytes?

Every process gets a network namespace of its own, with a virtual cable to a bridge in another namespace; the machine's
own network is not touched. Linux traffic control (`tc`, a token bucket) slows down what a process sends:

    rank 0  link0 --[rate]--+
    rank 1  link0 --[rate]--+-- bridge
    ...

The predicted time of a step is its time without the throttle, plus the time of its bytes at the rate. On a CPU,
collectives are gloo's. DeepSpeed overlaps only the gathers of stage 3 with computation, and here these are much longer
than the computation. In a collective of S bytes among W processes, every process sends

    all-reduce, ring                      2 (W-1)/W S
    all-gather, ring                        (W-1)/W S
    reduce-scatter                        2 (W-1)/W S       gloo does an all-reduce instead

The bytes that the kernel counts are compared as well. Between two processes, an all-gather takes up to 1.5 times as
long. A possible reason: gloo requests data on the connection on which it sends, after its own data.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from benchmarks.scaling.tally import TRAFFIC, Kind

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"depth": 4, "width": 256, "mlp_dim": 1024, "heads": 4, "num_classes": 1000, "image_size": 32, "patch_size": 8}
IMAGES = 1  # per process
WARM_UP = 3  # steps; stage 3 learns the order of the weights in the first two
LINK, PORT, STORE = "link0", 29500, "10.0.0.1"  # the same in every namespace, because each is isolated
PAYLOAD = 1448 / 1514  # share of an Ethernet frame without the headers: 14 bytes of Ethernet, 20 of IP, 32 of TCP
SENT: dict[Kind, float] = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 2.0}  # gloo, times (W-1)/W S


def sent_bytes(stage: int, ranks: int, parameters: int) -> float:
    """Bytes that a process sends in a step of one micro-batch, by the table."""
    sizes = sum(SENT[traffic.kind] * traffic.size for traffic in TRAFFIC[stage])
    return sizes * parameters * (ranks - 1) / ranks


def predicted(unthrottled: float, stage: int, ranks: int, parameters: int, megabits: float) -> float:
    """Seconds per step behind links of `megabits` Mbit/s."""
    return unthrottled + sent_bytes(stage, ranks, parameters) / (PAYLOAD * megabits * 1e6 / 8)


def missing() -> str:
    """The reason why links cannot be throttled here, in one line; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, for network namespaces"
    if tools := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"needs {' and '.join(tools)} (package iproute2)"
    with Namespaces(1) as probe:
        try:
            probe.add()
            probe.throttle(100)
        except subprocess.CalledProcessError as error:
            return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return ""


class Namespaces:
    """A network namespace per rank, joined by a bridge. `add` creates them; leaving the `with` block removes them."""

    def __init__(self, ranks: int) -> None:
        self.names = [f"scaling-{os.getpid()}-{rank}" for rank in range(ranks)]
        self._hub = f"scaling-{os.getpid()}-hub"

    def __enter__(self) -> Self:
        return self

    def add(self) -> None:
        for name in (self._hub, *self.names):
            _call("ip", "netns", "add", name)
        _call("ip", "-n", self._hub, "link", "add", "bridge", "type", "bridge")
        _call("ip", "-n", self._hub, "link", "set", "bridge", "up")
        for rank, name in enumerate(self.names):
            port = f"port{rank}"
            _call("ip", "-n", name, "link", "add", LINK, "type", "veth", "peer", "name", port, "netns", self._hub)
            _call("ip", "-n", name, "addr", "add", f"10.0.0.{rank + 1}/24", "dev", LINK)
            for device in ("lo", LINK):
                _call("ip", "-n", name, "link", "set", device, "up")
            _call("ip", "-n", self._hub, "link", "set", port, "master", "bridge", "up")

    def throttle(self, megabits: float | None) -> None:
        """Limits what each rank sends to `megabits` Mbit/s; None removes the limit."""
        for name in self.names:
            with suppress(subprocess.CalledProcessError):  # there was no limit
                _call("tc", "-n", name, "qdisc", "del", "dev", LINK, "root")
            if megabits is not None:
                rate = ("rate", f"{megabits}mbit", "burst", "64kb", "limit", "4mb")
                _call("tc", "-n", name, "qdisc", "add", "dev", LINK, "root", "tbf", *rate)

    def __exit__(self, *_: object) -> None:
        for name in (self._hub, *self.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # it may not exist


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Ranks:
    """Training processes, one in each namespace, that carry out tasks."""

    def __init__(self, names: Sequence[str]) -> None:
        self._logs = [tempfile.TemporaryFile("w+") for _ in names]  # noqa: SIM115  # closed in __exit__
        self._processes = []
        for rank, (name, log) in enumerate(zip(names, self._logs, strict=True)):
            words = ["ip", "netns", "exec", name, sys.executable, "-m", "benchmarks.scaling", "--rank", str(rank)]
            environment = {**os.environ, "WORLD_SIZE": str(len(names)), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self._processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, **pipes))

    def tell(self, **task: Any) -> list[dict[str, Any]]:
        """Gives all processes a task; returns their answers.

        Raises:
            RuntimeError: a process ended. The message has its last line.
        """
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # `_answer` raises the reason
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
        return [_answer(process, log) for process, log in zip(self._processes, self._logs, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, log in zip(self._processes, self._logs, strict=True):
            process.kill()
            process.communicate()
            log.close()


def _answer(process: "subprocess.Popen[str]", log: TextIO) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):  # DeepSpeed prints, too
            answer: dict[str, Any] = json.loads(line)
            return answer
    process.wait()
    log.seek(0)
    lines = log.read().strip().splitlines() or ["no message"]
    raise RuntimeError(f"a training process ended: {lines[-1]}")


def serve(rank: int) -> None:
    """The work of a training process: reads tasks as lines of JSON and prints the answers."""
    import torch
    import torch.distributed as dist

    from benchmarks.scaling.tally import small_engine
    from benchmarks.step.task import OPTIMIZER, synthetic
    from model import vit_config

    ranks = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = dist.TCPStore(STORE, PORT, world_size=ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    config = vit_config("B/16", **SIZES)
    batch = synthetic(config, IMAGES, torch.device("cpu"))
    counter = Path(f"/sys/class/net/{LINK}/statistics/tx_bytes")
    for line in sys.stdin:
        task = json.loads(line)
        if "stage" in task:
            engine, parameters = small_engine(config, task["stage"], micro_batch=IMAGES, local_batch=IMAGES)
        seconds, sent = [], []
        for _ in range(task["steps"]):
            dist.barrier()
            before, began = int(counter.read_text()), time.perf_counter()
            engine.train_step(*batch, None, lr=OPTIMIZER.lr)
            seconds.append(time.perf_counter() - began)
            sent.append(int(counter.read_text()) - before)
        print(json.dumps({"seconds": seconds, "sent": sent, "parameters": parameters}), flush=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside the block, SIGTERM has the effect of Ctrl-C, so that everything is cleaned up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(worlds: Sequence[int], stages: Sequence[int], rates: Sequence[float], steps: int) -> list[dict[str, Any]]:
    """The rows: one for each number of processes, stage, and rate in Mbit/s."""
    rows = []
    for ranks in worlds:
        with _interruptible(), Namespaces(ranks) as namespaces:
            namespaces.add()
            with Ranks(namespaces.names) as processes:
                for stage in stages:
                    namespaces.throttle(None)
                    processes.tell(stage=stage, steps=WARM_UP)
                    free = processes.tell(steps=steps)
                    behind = {}
                    for rate in rates:
                        namespaces.throttle(rate)
                        behind[rate] = processes.tell(steps=steps)
                    namespaces.throttle(None)
                    unthrottled = _median(free + processes.tell(steps=steps), "seconds")  # before and after
                    for rate, answers in behind.items():
                        rows.append(_row(answers, stage, rate, unthrottled))
                        print(describe(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _row(answers: list[dict[str, Any]], stage: int, rate: float, free: float) -> dict[str, Any]:
    ranks, parameters = len(answers), answers[0]["parameters"]
    measured, bytes_sent = _median(answers, "seconds"), _median(answers, "sent")
    fastest = min(seconds for answer in answers for seconds in answer["seconds"])
    expected = predicted(free, stage, ranks, parameters, rate)
    return {
        "ranks": ranks,
        "stage": stage,
        "megabits": rate,
        "unthrottled_s": round(free, 4),
        "predicted_s": round(expected, 4),
        "measured_s": round(measured, 4),
        "fastest_s": round(fastest, 4),
        "ratio": round(measured / expected, 4),
        "sent_ratio": round(PAYLOAD * bytes_sent / sent_bytes(stage, ranks, parameters), 4),
    }


def _median(answers: list[dict[str, Any]], field: str) -> float:
    """The median over all steps and ranks. Collectives keep the ranks in step."""
    return statistics.median(value for answer in answers for value in answer[field])


def describe(row: dict[str, Any]) -> str:
    return (
        f"{row['ranks']} processes, stage {row['stage']}, {row['megabits']:g} Mbit/s: {row['measured_s']:.3f} s, "
        f"predicted {row['predicted_s']:.3f} s; {row['unthrottled_s']:.3f} s without the throttle"
    )
