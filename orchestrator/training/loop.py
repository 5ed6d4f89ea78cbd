"""The training loop. Every worker of a run executes `train` from top to bottom; it reads as the recipe.

The step is the state: samples, augmentation, learning rate, dropout and evaluation points of step t follow from the job
and t. A restart restores weights, optimizer state, t and the accounting totals, and goes on at t.
"""

import math
import time
from functools import partial
from typing import Any, NoReturn

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

import model
from data import Augment, Index, Loader, Order, SampleOrder, open_index
from data.loading.cache import Cache
from data.loading.loader import Batch
from data.splitmix import key, stream
from model.layers.recompute import CheckpointMode
from model.objectives import dense_targets, sigmoid_cross_entropy, softmax_cross_entropy
from orchestrator.checkpoint.restore import restore
from orchestrator.checkpoint.saver import Saver
from orchestrator.cluster.checkpoint_report import through_ray
from orchestrator.cluster.notices import CutOff, Leave, Notices, Reason
from orchestrator.cluster.watchdog import Pulse
from orchestrator.engine.cpu import compute_with
from orchestrator.engine.memory.fit import Rank, fit
from orchestrator.engine.memory.measured import activation_peaks
from orchestrator.engine.memory.needed import free_memory, held_memory
from orchestrator.engine.phases import EVALUATION
from orchestrator.engine.step import PRECISIONS, Engine, Objective
from orchestrator.history.history import History
from orchestrator.history.ledger import Ledger
from orchestrator.history.quarantine import TooManyBadSamples
from orchestrator.job.kinds import PretrainJob
from orchestrator.job.sections import Augment as TrainAugment
from orchestrator.job.sections import Duration, HeldOutAugment
from orchestrator.job.sections import Objective as ObjectiveSection
from orchestrator.names import EVALUATED, IN_A_ROW
from orchestrator.redact import redact_error, redact_logs
from orchestrator.run.schedule import is_time, learning_rate, steps_of
from orchestrator.run.totals import Totals
from orchestrator.run.training_set import open_training_set
from orchestrator.training.evaluators.accuracy import evaluate
from orchestrator.training.health import Diverged, GoBack, Health

_DROPOUT = 0x64726F70  # keeps dropout's randomness apart from the data plane's, whose purposes are small numbers


def train(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A run that must not go on ends here, on all ranks alike, and is not restarted.

    Args:
        config: `job`, the resolved job as plain data with absolute URLs; `run_url`, the run's folder; `run_id`, its
            identity in MLflow; `board`, the progress actor.
    """
    redact_logs()  # of this process, whoever writes them
    try:
        _train(PretrainJob.model_validate(config["job"]), config["run_url"], config["run_id"], config["board"])
    except (TooManyBadSamples, Diverged) as stop:
        ray.get(config["board"].stop.remote(str(stop)))
    except Exception as error:
        if (told := redact_error(error)) is not error:
            raise told from None  # Ray logs the traceback
        raise


def _train(job: PretrainJob, run_url: str, run_id: str, board: Any) -> None:
    # Data: the order says which samples make up a step, whoever trains them.
    data = open_training_set(job.data.train, seed=job.seed, batch_size=job.batch_size)
    order = data.order

    def steps(duration: Duration) -> int:
        return steps_of(duration, job.batch_size, order.steps_per_epoch)

    total_steps = steps(job.schedule.length)
    warmup_steps = steps(job.schedule.warmup) if job.schedule.warmup else 0
    log_every, evaluate_every, save_every = map(steps, (job.tracking.every, job.evaluate.every, job.checkpoint.every))

    # Model and optimizer, the same on every rank and sharded by DeepSpeed.
    pulse = Pulse(board, dist.get_rank(), job.cluster.hang_timeout)
    engine, chosen = _build_engine(job)
    notices, health = Notices(engine.device), Health(engine, job.training.max_bad_steps)

    with History(job, run_url, run_id, board, data, engine, total_steps=total_steps) as history:
        if chosen and dist.get_rank() == 0:
            history.say(chosen)

        def train_from_checkpoint(went_back: GoBack | None) -> None:
            # The state, where an earlier attempt left it.
            with pulse.kept():
                restored = restore(engine, run_url, warn=history.say)
            if went_back and not restored:
                raise Diverged(f"{went_back}; there is no checkpoint to go back to")
            start, totals = (restored.step, Totals.from_dict(restored.totals)) if restored else (0, Totals())
            history.begin(start, totals, restored.metrics if restored else {})
            health.resume(history.latest)
            ledger = Ledger(run_url, dist.get_rank(), _on_all_ranks(time.time_ns())[0])
            saver = Saver(engine, run_url, job.checkpoint.keep, history.say, report=through_ray, before=ledger.write)

            def evaluate_all(step: int) -> Reason | None:
                """Measure on every held-out set, unless a notice comes in between."""
                history.settle()
                with record_function(EVALUATION):
                    results, notice = _evaluate_all(job, engine, history, pulse, notices)
                if notice is None:
                    history.evaluated(step, results)
                return notice

            def save(step: int, *, wait: bool) -> None:
                totals, counts = history.settle(), health.metrics()
                if counts[IN_A_ROW] and not wait:
                    return  # weights that may be the cause are no place to go back to
                history.latest.update(counts)
                with pulse.kept():
                    history.saved(saver.save(step, totals.to_dict(), history.latest, wait=wait))

            def leave(step: int, notice: Reason) -> NoReturn:
                save(step, wait=True)
                raise Leave(f"{notice.value}: saved at step {step}")

            owed = is_time(start, evaluate_every, total_steps) and history.latest.get(EVALUATED, 0) < start
            if owed and (notice := evaluate_all(start)):  # the attempt before was stopped in the middle of it
                leave(start, notice)
            with _loader(job, data.index, order, engine, job.data.train.augment, start, total_steps) as batches:
                for batch in pulse.along(history.timed(batches)):
                    lr = learning_rate(
                        batch.step,
                        base=job.optimizer.lr,
                        total_steps=total_steps,
                        warmup_steps=warmup_steps,
                        decay=job.schedule.decay,
                        end_lr=job.schedule.end_lr,
                    )
                    seeds = _dropout_seeds(job, batch)
                    result = engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=lr)
                    step = batch.step + 1  # steps done
                    history.stepped(step, result, batch)
                    if job.tracking.record_samples:
                        ledger.record(batch.step, batch.ids, batch.valid)
                    try:
                        health.stepped(result, batch, seeds)
                    except GoBack:
                        saver.finish()
                        raise

                    if is_time(step, log_every, total_steps):
                        epoch = step / order.steps_per_epoch
                        norm, skipped = engine.gradient_norm(), health.metrics()
                        history.log_training(step, lr=lr, gradient_norm=norm, epoch=epoch, health=skipped)
                    if history.workers_wanted():
                        notices.want_resize()
                    notice = notices.agree()
                    if notice is None and is_time(step, evaluate_every, total_steps):
                        notice = evaluate_all(step)
                    if notice is not None:
                        leave(step, notice)
                    if is_time(step, save_every, total_steps):
                        save(step, wait=step == total_steps)

        went_back = None
        while True:
            try:
                train_from_checkpoint(went_back)
                break
            except GoBack as reason:
                went_back = reason
                history.settle()  # counts what was trained in vain, so that it is not taken for what comes now
                history.say(f"{reason}; going back to the last checkpoint")
        history.end()


def _build_engine(job: PretrainJob) -> tuple[Engine, str]:
    """The engine, and what was chosen for it and why; empty where the job left no choice."""
    device, world = _device(job), dist.get_world_size()
    torch.manual_seed(job.seed)
    vit = model.VisionTransformer(job.model.vit_config())
    objective = _objective(job.objective, job.model.num_classes)

    def trial(checkpointing: CheckpointMode, micro_batch: int) -> dict[int, int]:
        dtype = PRECISIONS[job.parallel.precision]
        peaks = activation_peaks(vit, objective, checkpointing, micro_batch, dtype=dtype, device=device)
        held = {images: held_memory(peak, checkpointing, device) for images, peak in peaks.items()}
        return {images: max(_on_all_ranks(size)) for images, size in held.items()}

    memory = free_memory(device, ray.train.get_context().get_local_world_size())
    rank = Rank(
        parameters=sum(p.numel() for p in vit.parameters()),
        local_batch=math.ceil(job.batch_size / world),
        world_size=world,
        memory=min(_on_all_ranks(memory)),
        device=device,
    )
    fitted = fit(vit.config, job.parallel, rank, trial)
    model.checkpoint_blocks(vit, fitted.checkpointing)
    if job.parallel.compile:
        model.compile_blocks(vit)
    engine = Engine(
        vit,
        objective,
        model.decay_mask(vit),
        optimizer=job.optimizer,
        parallel=job.parallel,
        micro_batch=fitted.micro_batch,
        local_batch=rank.local_batch,
        device=device,
    )
    return engine, fitted.why


def _dropout_seeds(job: PretrainJob, batch: Batch) -> Tensor | None:
    return dropout_seeds(job.seed, batch.step, batch.slots, job.batch_size) if job.model.dropout else None


def dropout_seeds(seed: int, step: int, slots: Tensor, batch_size: int) -> Tensor:
    """One int64 seed a slot, (n,): a function of (seed, step, slot), so that masks do not depend on the workers."""
    of_step = torch.from_numpy(stream(key(_DROPOUT, seed, step), batch_size).view("int64"))
    return of_step[slots.clamp(min=0)]


def _evaluate_all(
    job: PretrainJob, engine: Engine, history: History, pulse: Pulse, notices: Notices
) -> tuple[dict[str, dict[str, float]], Reason | None]:
    """The metrics of every held-out set; with a notice that cut the measuring off, those of the sets before."""
    results: dict[str, dict[str, float]] = {}
    try:
        for name, held_out in job.data.eval.items():
            history.note(f"evaluating {name}")
            index = open_index(held_out.url)
            order = SampleOrder(index, batch_size=job.batch_size, shuffle=False)
            with _loader(job, index, order, engine, held_out.augment, 0, order.steps_per_epoch) as batches:
                results[name] = evaluate(
                    engine,
                    notices.heeding(pulse.along(batches)),
                    num_classes=job.model.num_classes,
                    multi_label=index.multi_label,
                    report=partial(history.quarantine.add_held_out, name),
                )
    except CutOff as cut_off:
        return results, cut_off.reason
    finally:
        history.note("")
    return results, None


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
        compute_with(max(1, int(job.cluster.resources_per_worker.get("CPU", 1))))
    return device


def _on_all_ranks(value: int) -> list[int]:
    """Every rank's value, by rank."""
    values = [0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
