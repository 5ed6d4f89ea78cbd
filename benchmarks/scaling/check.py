"""Training processes behind throttled links, against the arithmetic: does a step take as long as its bytes say?

Every process gets a network namespace of its own, and a virtual cable from there to a bridge in another one; nothing of
the machine's own network is touched. Linux traffic control (`tc`, a token bucket) slows down what a process sends:

    rank 0  link0 --[rate]--+
    rank 1  link0 --[rate]--+-- bridge
    ...

So a step takes what it takes without the throttle, and the time that its bytes need at the rate. On a CPU collectives
are gloo's, and DeepSpeed runs none beside computation but the gathers of stage 3, which here are much longer than what
they run beside. Of S bytes in W processes every process sends

    all-reduce, ring                      2 (W-1)/W S
    all-gather, ring                        (W-1)/W S
    reduce-scatter                        2 (W-1)/W S       gloo makes an all-reduce of it

The kernel counts what was sent, which is compared as well. Between two processes an all-gather takes up to half as long
again, perhaps because gloo asks for what it wants to receive on the connection on which it sends, behind its own data.
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
IMAGES = 1  # of each process
WARM_UP = 3  # steps; stage 3 learns the order of the weights in the first two
LINK, PORT, STORE = "link0", 29500, "10.0.0.1"  # the same in every namespace: nothing leaves them
PAYLOAD = 1448 / 1514  # of an Ethernet frame: 14 bytes of Ethernet, 20 of IP, 32 of TCP are not
SENT: dict[Kind, float] = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 2.0}  # times (W-1)/W S, by gloo


def sent_bytes(stage: int, ranks: int, parameters: int) -> float:
    """What a process sends in a step of one micro-batch, by the table."""
    sizes = sum(SENT[traffic.kind] * traffic.size for traffic in TRAFFIC[stage])
    return sizes * parameters * (ranks - 1) / ranks


def predicted(unthrottled: float, stage: int, ranks: int, parameters: int, megabits: float) -> float:
    """Seconds a step behind links of so many Mbit/s."""
    return unthrottled + sent_bytes(stage, ranks, parameters) / (PAYLOAD * megabits * 1e6 / 8)


def missing() -> str:
    """Why links cannot be throttled here, in a line; empty if they can."""
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
    """A network namespace for each rank, joined by a bridge; `add` makes them, leaving the block takes them away."""

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
        """Let every rank send so many Mbit/s; None: as fast as the machine is."""
        for name in self.names:
            with suppress(subprocess.CalledProcessError):  # there was none
                _call("tc", "-n", name, "qdisc", "del", "dev", LINK, "root")
            if megabits is not None:
                rate = ("rate", f"{megabits}mbit", "burst", "64kb", "limit", "4mb")
                _call("tc", "-n", name, "qdisc", "add", "dev", LINK, "root", "tbf", *rate)

    def __exit__(self, *_: object) -> None:
        for name in (self._hub, *self.names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # perhaps it was never made


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Ranks:
    """Training processes, one in each namespace, that do what they are told."""

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
        """Give all of them a task; what each answers.

        Raises:
            RuntimeError: one ended; says its last line.
        """
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # seen below
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
    """A training process: tasks come in as lines of JSON, and answers go out."""
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
    """SIGTERM ends the block as Ctrl-C does, so that nothing is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check(worlds: Sequence[int], stages: Sequence[int], rates: Sequence[float], steps: int) -> list[dict[str, Any]]:
    """A row for each number of processes, stage and rate in Mbit/s."""
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
    """Over all steps and ranks: the collectives keep the ranks together."""
    return statistics.median(value for answer in answers for value in answer[field])


def describe(row: dict[str, Any]) -> str:
    return (
        f"{row['ranks']} processes, stage {row['stage']}, {row['megabits']:g} Mbit/s: {row['measured_s']:.3f} s, "
        f"predicted {row['predicted_s']:.3f} s; {row['unthrottled_s']:.3f} s without the throttle"
    )
