"""The least that Ray Train can do: its trainer, as its users write it, and a function that does nothing."""

import argparse
import sys
import time
from pathlib import Path

from data.ray_session import settle_authentication


def function() -> None:
    """What each worker runs."""
    from benchmarks.start import stamps

    stamps.stamp("function")
    time.sleep(3600)


def main() -> int:
    """Train."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start.empty", description=__doc__)
    parser.add_argument("folder", type=Path, help="where Ray Train keeps its state")
    parser.add_argument("workers", type=int)
    options = parser.parse_args()
    settle_authentication()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address="local", num_cpus=options.workers + 1, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=options.workers),
        run_config=RunConfig(
            name="empty", storage_path=str(options.folder), failure_config=FailureConfig(max_failures=1)
        ),
        torch_config=TorchConfig(backend="gloo"),
    ).fit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
