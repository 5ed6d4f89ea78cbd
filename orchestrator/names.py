"""Names of the metrics in MLflow, checkpoints and summaries. They are a public contract: runs of years ago have them.

The phases of a step, which `phase_time` takes, are named in `engine/phases.py`.
"""

from data.errors import Cause

# The training curves.
LOSS = "train/loss"
GRADIENT_NORM = "train/gradient_norm"
LEARNING_RATE = "train/learning_rate"
EPOCH = "train/epoch"
SAMPLES = "train/samples"

# Training steps that were left out because they were not finite (`training/health.py`).
SKIPPED = "train/skipped_steps"
IN_A_ROW = "train/skipped_in_a_row"
WENT_BACK = "train/went_back"

# Training samples that could not be used (`history/quarantine.py`).
BAD_SAMPLES = "train/bad_samples"
CAUSES = tuple(cause for name, cause in vars(Cause).items() if not name.startswith("_"))

IMAGES_PER_SECOND = "speed/images_per_second"
MFU = "speed/mfu"
DATA_WAIT_FRACTION = "speed/data_wait_fraction"
CHECKPOINT_STALL_SECONDS = "speed/checkpoint_stall_seconds"

BYTES_READ = "data/bytes_read"
BYTES_READ_OVER_USED = "data/bytes_read_over_used"
RETRIES = "data/retries"

# Sums over the whole run (`run/totals.py`).
EXAFLOPS = "compute/exaflops"
CORE_DAYS_ALLOCATED = "compute/tpuv3_core_days_allocated"
CORE_DAYS_BY_WORK = "compute/tpuv3_core_days_work"
RUN_MFU = "compute/mfu"
DEVICE_HOURS = "compute/device_hours"

EVALUATED = "evaluated_step"
"""The last step with a complete evaluation. Checkpoints keep it, so that a restart redoes an interrupted one."""

_HELD_OUT = "eval/"


def bad_samples(cause: str) -> str:
    """Training samples that could not be used for one of `CAUSES`."""
    return f"train/bad/{cause.replace(' ', '_')}"


def spike(metric: str) -> str:
    """The mark of a point that jumps out of the curve of `metric`."""
    return f"{metric}_spike"


def phase_time(phase: str) -> str:
    """Seconds a step spent in a phase."""
    return f"time/{phase}"


def held_out(name: str) -> str:
    """What the metrics of the held-out set `name` begin with, before a slash."""
    return f"{_HELD_OUT}{name}"


def averaged(name: str) -> str:
    """As `held_out`, measured with the averaged weights."""
    return f"{_HELD_OUT}{name}/ema"


def split_held_out(name: str) -> tuple[str, str] | None:
    """(held-out set, metric) of a held-out set's metric; None for other metrics."""
    if not name.startswith(_HELD_OUT):
        return None
    _, held_out_set, metric = name.split("/", 2)
    return held_out_set, metric
