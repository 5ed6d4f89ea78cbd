"""The machine types of infra/gcp and infra/kubernetes, as Google describes them.

Source: "GPU machine types" in the Compute Engine documentation, https://cloud.google.com/compute/docs/gpus.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A machine type.

    Attributes:
        gpu: Ray's name of its GPU.
        gke: GKE's name of its GPU.
        gpus: number of GPUs.
        cpus: number of vCPUs.
        memory: GB.
        on_demand: whether it can be rented on demand.
        hyperdisk: whether it needs Hyperdisk, because it does not support Persistent Disk.
    """

    gpu: str
    gke: str
    gpus: int
    cpus: int
    memory: int
    on_demand: bool
    hyperdisk: bool = False


MACHINES = {
    "g2-standard-12": Machine("L4", "nvidia-l4", gpus=1, cpus=12, memory=48, on_demand=True),
    "a2-ultragpu-8g": Machine("A100", "nvidia-a100-80gb", gpus=8, cpus=96, memory=1360, on_demand=True),
    "a3-highgpu-8g": Machine("H100", "nvidia-h100-80gb", gpus=8, cpus=208, memory=1872, on_demand=True),
    "a3-ultragpu-8g": Machine("H200", "nvidia-h200-141gb", 8, cpus=224, memory=2952, on_demand=False, hyperdisk=True),
    "a4-highgpu-8g": Machine("B200", "nvidia-b200", gpus=8, cpus=224, memory=3968, on_demand=False, hyperdisk=True),
}
