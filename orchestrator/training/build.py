"""From a job to the parts that train it, on one worker."""

import math
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

import model
from model import VisionTransformer
from model.layers.recompute import CheckpointMode
from orchestrator.checkpoint.notes import Owner
from orchestrator.cluster.notices import Notices
from orchestrator.cluster.watchdog import Heartbeat
from orchestrator.engine.collectives import on_all_ranks
from orchestrator.engine.cpu import set_cpu_threads
from orchestrator.engine.memory.available import free_memory
from orchestrator.engine.memory.fit import WorkerShare, choose
from orchestrator.engine.memory.measured import measured_peaks
from orchestrator.engine.memory.needed import held_memory
from orchestrator.engine.settings import PRECISIONS
from orchestrator.engine.step import Engine
from orchestrator.history.history import History
from orchestrator.history.reporter import Reporter
from orchestrator.job.kinds import AnyRun, NetworkJob
from orchestrator.run.schedule import Calendar
from orchestrator.run.totals import Totals
from orchestrator.run.training_set import open_training_set
from orchestrator.training.batches import TrainingBatches
from orchestrator.training.checkpoints import Checkpoints
from orchestrator.training.health import Health
from orchestrator.training.held_out import HeldOut
from orchestrator.training.initial import begin_with
from orchestrator.training.task import Task


@dataclass(frozen=True)
class RunPlace:
    """Where a run belongs.

    Attributes:
        url: its folder.
        id: its identity in MLflow.
        lock: the token of the command that owns it.
        held_out: digests of the sets of `data.eval`, by name.
        board: the progress actor.
    """

    url: str
    id: str
    lock: str
    held_out: dict[str, str]
    board: Any


@dataclass(frozen=True)
class Parts:
    """What the loop joins; see each class.

    Attributes:
        task: what differs between kinds of jobs.
        calendar: when everything happens.
        engine: network, optimizer and gradients.
        batches: images and labels of each step.
        health: steps that were not finite.
        history: curves and totals.
        reporter: the terminal.
        notices: reasons to end this attempt.
        held_out: measurements.
        checkpoints: the state between attempts.
    """

    task: Task
    calendar: Calendar
    engine: Engine
    batches: TrainingBatches
    health: Health
    history: History
    reporter: Reporter
    notices: Notices
    held_out: HeldOut
    checkpoints: Checkpoints


def build(job: NetworkJob, task: Task, run: RunPlace) -> Parts:
    """Build all parts of a run, with new weights. Collective."""
    data = open_training_set(job.data.train, seed=job.seed, batch_size=job.batch_size)
    calendar = Calendar.of(job, data.order.steps_per_epoch)
    heartbeat = Heartbeat(run.board, dist.get_rank(), job.cluster.hang_timeout)
    owner = Owner(run.id, calendar.total_steps, frozenset(Totals().to_dict()))
    with heartbeat.in_background():
        network, begun = build_network(job, task, run.url, owner)
    engine, chosen = build_engine(job, task, network)
    health = Health(engine, job.training.max_bad_steps)

    reporter = Reporter(run.board, calendar.total_steps)
    notices = Notices(engine.device, reporter.wanted)
    history = History(job, run.url, run.id, reporter, data, engine, total_steps=calendar.total_steps)
    for line in filter(None, [*begun, chosen]):
        reporter.say_once(line)
    held_out = HeldOut(
        task,
        engine,
        calendar,
        run.url,
        run.held_out,
        history=history,
        reporter=reporter,
        heartbeat=heartbeat,
        notices=notices,
    )
    checkpoints = Checkpoints(
        job, run.url, owner, run.lock, engine, health=health, history=history, reporter=reporter, heartbeat=heartbeat
    )
    batches = TrainingBatches(
        job,
        data,
        engine,
        total_steps=calendar.total_steps,
        heartbeat=heartbeat,
        history=history,
        record=checkpoints.record,
    )
    return Parts(task, calendar, engine, batches, health, history, reporter, notices, held_out, checkpoints)


def build_network(job: NetworkJob, task: Task, run_url: str, owner: Owner) -> tuple[VisionTransformer, list[str]]:
    """The network with its first weights; and in words what was loaded. Collective."""
    torch.manual_seed(job.seed)
    network = task.network()
    return network, begin_with(job, network, run_url, owner, worker_device(job))


def build_engine(job: NetworkJob, task: Task, network: VisionTransformer) -> tuple[Engine, str]:
    """The engine; and in words what was chosen for it and why, empty if the job left no choice."""
    device, world_size = worker_device(job), dist.get_world_size()
    objective = task.objective()

    def measured(checkpointing: CheckpointMode, micro_batch: int) -> dict[int, int]:
        """Bytes of activations by micro-batch, the most of all ranks."""
        dtype = PRECISIONS[job.parallel.precision]
        peaks = measured_peaks(network, objective, checkpointing, micro_batch, dtype=dtype, device=device)
        held = {images: held_memory(peak, checkpointing, device) for images, peak in peaks.items()}
        return {images: max(on_all_ranks(size)) for images, size in held.items()}

    memory = free_memory(device, ray.train.get_context().get_local_world_size())
    share = WorkerShare(
        parameters=sum(p.numel() for p in network.parameters()),
        local_batch=math.ceil(job.batch_size / world_size),
        world_size=world_size,
        memory=min(on_all_ranks(memory)),
        device=device,
        averaged=job.optimizer.ema is not None,
    )
    choice = choose(network.config, job.parallel, share, measured)
    model.checkpoint_blocks(network, choice.checkpointing)
    if job.parallel.compile:
        model.compile_blocks(network)
    engine = Engine(
        network,
        objective,
        model.decay_mask(network),
        optimizer=job.optimizer,
        parallel=job.parallel,
        micro_batch=choice.micro_batch,
        local_batch=share.local_batch,
        device=device,
    )
    return engine, choice.why


def worker_device(job: AnyRun) -> torch.device:
    """The GPU that Ray gave this worker, or the CPU with as many threads as the worker has CPUs."""
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cpu":
        set_cpu_threads(max(1, int(job.cluster.resources_per_worker.get("CPU", 1))))
    return device
