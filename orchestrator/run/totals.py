"""What a run has cost and done so far, in the units that the ViT paper and the field use for compute.

There are two "TPUv3-core-day" equivalents, because they answer different questions:

    allocated   device-days held x (device peak / TPUv3 core peak)            what was paid for
    by work     model FLOPs / (model FLOPs of one core-day in the paper's run)  how much of the paper's run is done

Model FLOPs are 6 x the multiply-accumulates of one forward pass (`model.training_flops`): no recomputation, no
optimizer. This convention reproduces the exaFLOPs of the ViT paper, Table 6, and makes `mfu` the usual model FLOPs
utilisation.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from orchestrator import names

SECONDS_A_DAY = 86_400.0

TPUV3_CORE_PEAK = 61.5e12
"""Dense bf16 FLOP/s of one TPUv3 core: half of a chip's 123 TFLOP/s."""

H14_CORE_DAY_WORK = 1.705e18
"""Model FLOPs that one TPUv3-core-day did in the paper's ViT-H/14 run: 4,262 exaFLOPs (Table 6) in 2.5k core-days
(Table 2)."""

L16_CORE_DAY_WORK = 2.304e18
"""The same for its ViT-L/16 run: 1,567 exaFLOPs (14 epochs, Table 6) in 0.68k core-days (Table 2)."""


@dataclass(frozen=True)
class Totals:
    """Sums over the whole run: across restarts, numbers of workers and kinds of device. Stored in every checkpoint.

    The counts are integers, so that a sum does not depend on how often the run was interrupted.
    """

    steps: int = 0
    samples: int = 0
    """Valid samples trained on; masked slots do not count."""
    flops: int = 0
    """Model FLOPs of those samples."""
    device_seconds: float = 0.0
    """Wall seconds x devices spent in training steps."""
    peak_flops: float = 0.0
    """FLOPs that those devices could have done in those seconds: the sum of device-seconds x peak FLOP/s."""
    device_seconds_allocated: float = 0.0
    """Wall seconds x devices held, whether they trained or not."""
    core_days_allocated: float = 0.0
    """The same in TPUv3-core-days: the sum of device-days x peak / `TPUV3_CORE_PEAK`."""

    def add(self, *, steps: int, samples: int, flops_per_image: int, seconds: float, devices: int, peak: float) -> Self:
        """The totals after `steps` more steps over `samples` valid images, which kept `devices` devices of `peak`
        FLOP/s each busy for `seconds` of wall time. `flops_per_image` are training FLOPs (`model.training_flops`)."""
        return dataclasses.replace(
            self.add_idle(seconds=seconds, devices=devices, peak=peak),
            steps=self.steps + steps,
            samples=self.samples + samples,
            flops=self.flops + samples * flops_per_image,
            device_seconds=self.device_seconds + seconds * devices,
            peak_flops=self.peak_flops + seconds * devices * peak,
        )

    def add_idle(self, *, seconds: float, devices: int, peak: float) -> Self:
        """The totals after `seconds` in which the devices were held but did not train (start-up, evaluation)."""
        return dataclasses.replace(
            self,
            device_seconds_allocated=self.device_seconds_allocated + seconds * devices,
            core_days_allocated=self.core_days_allocated + seconds * devices / SECONDS_A_DAY * (peak / TPUV3_CORE_PEAK),
        )

    def __sub__(self, earlier: Self) -> Self:
        """What was added since `earlier`: `(now - then).mfu` is the utilisation of that window."""
        return type(self)(*(mine - theirs for mine, theirs in zip(self._values(), earlier._values(), strict=True)))

    @property
    def exaflops(self) -> float:
        """Model FLOPs / 1e18: the column "exaFLOPs" of the ViT paper, Table 6."""
        return self.flops / 1e18

    @property
    def core_days_by_work(self) -> float:
        """TPUv3-core-days that the paper's ViT-H/14 run took for as many model FLOPs.

        H/14 is the default equivalence, because it is the paper's main run; for L/16's divide `flops` by
        `L16_CORE_DAY_WORK`.
        """
        return self.flops / H14_CORE_DAY_WORK

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, 0 to 1: model FLOPs / the peak FLOPs of the devices while they trained."""
        return self.flops / self.peak_flops if self.peak_flops else 0.0

    @property
    def device_hours(self) -> float:
        """Device-hours held, the number on the bill."""
        return self.device_seconds_allocated / 3600.0

    def metrics(self) -> dict[str, float]:
        """The totals under the names that MLflow shows."""
        return {
            names.EXAFLOPS: self.exaflops,
            names.CORE_DAYS_ALLOCATED: self.core_days_allocated,
            names.CORE_DAYS_BY_WORK: self.core_days_by_work,
            names.RUN_MFU: self.mfu,
            names.DEVICE_HOURS: self.device_hours,
        }

    def to_dict(self) -> dict[str, int | float]:
        """The fields by name, for a checkpoint's JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            TypeError: a field is not one of the totals.
        """
        return cls(**fields)

    def _values(self) -> list[Any]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]
