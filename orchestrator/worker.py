"""The training loop. Every worker of a run executes `train` from top to bottom; it reads as the recipe.

The step is the state: samples, augmentation, learning rate, dropout and evaluation points of step t follow from the job
and t. A restart restores weights, optimizer state, t and the accounting totals, and goes on at t.
"""

import math
import time
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

import model
from data import Augment, Index, Loader, Order, SampleOrder, open_index
from data.cache import Cache
from data.splitmix import key, stream
from model.objectives import dense_targets, sigmoid_cross_entropy, softmax_cross_entropy
from orchestrator.accounting import Totals
from orchestrator.checkpoint import restore
from orchestrator.engine import Engine, Objective
from orchestrator.evaluate import evaluate
from orchestrator.history import History
from orchestrator.job import PretrainJob
from orchestrator.job_sections import Augment as TrainAugment
from orchestrator.job_sections import Duration, HeldOutAugment
from orchestrator.job_sections import Objective as ObjectiveSection
from orchestrator.ledger import Ledger
from orchestrator.memory import auto_micro_batch, device_memory
from orchestrator.quarantine import TooManyBadSamples
from orchestrator.saver import Saver
from orchestrator.schedule import is_time, learning_rate, steps_of
from orchestrator.training_set import open_training_set

_DROPOUT = 0x64726F70  # keeps dropout's randomness apart from the data plane's, whose purposes are small numbers


def train(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A run that must not go on ends here, on all ranks alike, and is not restarted.

    Args:
        config: `job`, the resolved job as plain data with absolute URLs; `run_url`, the run's folder; `run_id`, its
            identity in MLflow; `board`, the progress actor.
    """
    try:
        _train(PretrainJob.model_validate(config["job"]), config["run_url"], config["run_id"], config["board"])
    except TooManyBadSamples as stop:
        ray.get(config["board"].stop.remote(str(stop)))


def _train(job: PretrainJob, run_url: str, run_id: str, board: Any) -> None:
    # Data: the order says which samples make up a step, whoever trains them.
    data = open_training_set(job.data.train, seed=job.seed, batch_size=job.batch_size)
    order = data.order

    def steps(duration: Duration) -> int:
        return steps_of(duration, job.batch_size, order.steps_per_epoch)

    total_steps = steps(job.schedule.length)
    warmup_steps = steps(job.schedule.warmup) if job.schedule.warmup else 0
    log_every, evaluate_every, save_every = map(steps, (job.tracking.every, job.evaluate.every, job.checkpoint.every))

    # Model and optimizer, the same on every rank and sharded by DeepSpeed; then where an earlier attempt left them.
    engine = _build_engine(job)
    with History(job, run_url, run_id, board, data, engine, total_steps=total_steps) as history:
        restored = restore(engine, run_url, warn=history.say)
        start, totals = (restored.step, Totals.from_dict(restored.totals)) if restored else (0, Totals())
        history.begin(start, totals, restored.metrics if restored else {})
        saver = Saver(engine, run_url, job.checkpoint.keep)
        ledger = Ledger(run_url, dist.get_rank(), _on_all_ranks(time.time_ns())[0])

        with _loader(job, data.index, order, engine, job.data.train.augment, start, total_steps) as batches:
            for batch in history.timed(batches):
                lr = learning_rate(
                    batch.step,
                    base=job.optimizer.lr,
                    total_steps=total_steps,
                    warmup_steps=warmup_steps,
                    decay=job.schedule.decay,
                    end_lr=job.schedule.end_lr,
                )
                seeds = dropout_seeds(job.seed, batch.step, batch.slots, job.batch_size) if job.model.dropout else None
                result = engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=lr)
                step = batch.step + 1  # steps done
                history.stepped(step, result, batch)
                if job.tracking.record_samples:
                    ledger.record(batch.step, batch.ids, batch.valid)

                if is_time(step, log_every, total_steps):
                    epoch = step / order.steps_per_epoch
                    history.log_training(step, lr=lr, gradient_norm=engine.gradient_norm(), epoch=epoch)
                if is_time(step, evaluate_every, total_steps):
                    history.settle()
                    history.evaluated(step, _evaluate_all(job, engine, history))
                if is_time(step, save_every, total_steps):
                    totals = history.settle()
                    ledger.write()
                    stall = saver.save(step, totals.to_dict(), history.latest, last=step == total_steps)
                    history.saved(stall)
        if start >= total_steps:  # an earlier attempt trained to the end and was stopped before it could say so
            history.evaluated(total_steps, _evaluate_all(job, engine, history))
        history.end()


def _build_engine(job: PretrainJob) -> Engine:
    device, world = _device(job), dist.get_world_size()
    torch.manual_seed(job.seed)
    vit = model.VisionTransformer(job.model.vit_config())
    model.checkpoint_blocks(vit, job.parallel.activation_checkpointing)
    if job.parallel.compile:
        model.compile_blocks(vit)
    local_batch = math.ceil(job.batch_size / world)
    micro_batch = job.parallel.micro_batch
    if micro_batch == "auto":
        memory = device_memory(device, ray.train.get_context().get_local_world_size())
        parameters = sum(p.numel() for p in vit.parameters())
        micro_batch = auto_micro_batch(
            vit.config,
            parameters,
            job.parallel,
            local_batch=local_batch,
            world_size=world,
            memory=min(_on_all_ranks(memory)),  # ranks must take equally many micro-batches
        )
    return Engine(
        vit,
        _objective(job.objective, job.model.num_classes),
        model.decay_mask(vit),
        optimizer=job.optimizer,
        parallel=job.parallel,
        micro_batch=micro_batch,
        local_batch=local_batch,
        device=device,
    )


def dropout_seeds(seed: int, step: int, slots: Tensor, batch_size: int) -> Tensor:
    """One int64 seed a slot, (n,): a function of (seed, step, slot), so that masks do not depend on the workers."""
    of_step = torch.from_numpy(stream(key(_DROPOUT, seed, step), batch_size).view("int64"))
    return of_step[slots.clamp(min=0)]


def _evaluate_all(job: PretrainJob, engine: Engine, history: History) -> dict[str, dict[str, float]]:
    results = {}
    for name, held_out in job.data.eval.items():
        history.note(f"evaluating {name}")
        index = open_index(held_out.url)
        order = SampleOrder(index, batch_size=job.batch_size, shuffle=False)
        with _loader(job, index, order, engine, held_out.augment, 0, order.steps_per_epoch) as batches:
            results[name] = evaluate(
                engine,
                batches,
                num_classes=job.model.num_classes,
                multi_label=index.multi_label,
                report=partial(history.quarantine.add_held_out, name),
            )
    history.note("")
    return results


def _loader(
    job: PretrainJob,
    index: Index,
    order: Order,
    engine: Engine,
    augment: TrainAugment | HeldOutAugment,
    start: int,
    stop: int,
) -> Loader:
    return Loader(
        index,
        order,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        image_size=job.model.image_size,
        augment=Augment(**augment.model_dump()),
        seed=job.seed,
        start_step=start,
        stop_step=stop,
        slots_per_rank=engine.micro_batch * engine.micro_batches,
        threads=job.data.workers or max(1, int(job.cluster.resources_per_worker.get("CPU", 1))),
        prefetch=job.data.prefetch,
        num_classes=job.model.num_classes,
        memory=job.data.memory,
        cache=None if job.data.cache_dir is None else Cache(job.data.cache_dir, job.data.cache_size),
        mask_unreadable=job.data.unreadable == "mask",
    )


def _objective(settings: ObjectiveSection, num_classes: int) -> Objective:
    cross_entropy = sigmoid_cross_entropy if settings.loss == "sigmoid" else softmax_cross_entropy

    def objective(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return cross_entropy(logits, dense_targets(labels, weights, num_classes), settings.label_smoothing)

    return objective


def _device(job: PretrainJob) -> torch.device:
    """The GPU that Ray gave this worker, or the CPU with as many threads as the worker has CPUs."""
    device: torch.device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(job.cluster.resources_per_worker.get("CPU", 1))))
    return device


def _on_all_ranks(value: int) -> list[int]:
    """Every rank's value, by rank."""
    values = [0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
