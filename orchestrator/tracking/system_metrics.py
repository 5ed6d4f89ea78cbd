"""Samples of the machine's load, by MLflow's own collectors. Importing this imports mlflow, which takes seconds."""

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor


class SystemCollector:
    """CPU, memory, disk and network of this machine, and its NVIDIA or AMD GPUs if it has any."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        for accelerators in (GPUMonitor, ROCMMonitor):
            try:
                self._monitors.append(accelerators())
            except (ImportError, RuntimeError):
                continue  # this machine has no such device, or no driver for it

    def sample(self) -> dict[str, float]:
        """The values now, under MLflow's names ("system/cpu_utilization_percentage", ...)."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
