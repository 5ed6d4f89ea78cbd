"""A run with an objective, an optimizer, an evaluator and a source of images of the user's own."""

import json
import os
import signal
from pathlib import Path

from tests.cluster import RayHead
from tests.paths import ROOT
from tests.runs.helpers import history, settings, training_workers, wait_for_checkpoint

MODULE = '''
"""What a user adds, in one file beside the job file."""

from typing import Literal

import torch

from orchestrator.job import choices, tables
from orchestrator.job.values import Positive, Section


class Focal(choices.Objective):
    loss: Literal["focal"]
    gamma: float = 2.0


def focal(logits, targets, *, gamma):
    rates = torch.softmax(logits.float(), -1)
    return -(targets * (1 - rates) ** gamma * torch.log(rates.clamp(min=1e-9))).sum(-1)


class Lion(choices.Optimizer):
    name: Literal["lion"]
    beta1: Positive = 0.9
    beta2: Positive = 0.99


class LionOptimizer(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "average" not in state:
                    state["average"] = torch.zeros_like(p)
                average, gradient = state["average"], p.grad.to(p.dtype)
                direction = torch.lerp(gradient, average, group["beta1"]).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(gradient, 1 - group["beta2"])


def lion(groups, *, beta1, beta2):
    return LionOptimizer(groups, {"lr": 0.0, "beta1": beta1, "beta2": beta2})


class Halves(choices.Pack):
    source: Literal["halves"]
    images: int = 512


def halves(folder, *, images):
    """Left or right: which half of an image is light."""
    import cv2
    import numpy as np

    from data import storage
    from data.shards.index import INDEX_NAME
    from data.packing.scan import index_shards
    import webdataset

    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("test", images // 4)):
        if storage.exists(f"{folder}/{split}/{INDEX_NAME}"):
            continue
        import os

        os.makedirs(f"{folder}/{split}", exist_ok=True)
        with webdataset.TarWriter(f"{folder}/{split}/000000.tar") as tar:
            for number in range(count):
                label = number % 2
                pixels = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                pixels[:, 4 * label : 4 * label + 4] += 100
                png = cv2.imencode(".png", pixels)[1].tobytes()
                tar.write({"__key__": f"{number:06d}", "png": png, "cls": label})
        index_shards(f"{folder}/{split}")


class Margin(Section):
    url: str


def margin(measurement, *, url):
    """Mean difference of the two logits, on a set of the evaluator's own."""
    total, count = 0.0, 0.0
    with measurement.open("margin", url) as held_out:
        for batch in held_out.batches:
            for part in torch.arange(len(batch.valid)).split(measurement.engine.micro_batch):
                logits = measurement.engine.logits(batch.images[part])[batch.valid[part]]
                total += float((logits[:, 0] - logits[:, 1]).abs().sum())
                count += len(logits)
    from orchestrator.engine.collectives import all_reduce_sums

    total, count = all_reduce_sums([torch.tensor(total), torch.tensor(count)])
    return {"mean": total / count, "images": count}


tables.OBJECTIVES.add("focal", Focal, f"{__name__}.focal")
tables.OPTIMIZERS.add("lion", Lion, f"{__name__}.lion")
tables.SOURCES.add("halves", Halves, f"{__name__}.halves")
tables.EVALUATORS.add("margin", Margin, f"{__name__}.margin")
'''


def test_a_job_with_parts_of_its_own_is_killed_and_ends(ray_head: RayHead, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text(MODULE)
    job = tmp_path / "extended.yaml"
    job.write_text((ROOT / "jobs/pretrain_digits.yaml").read_text())
    more = {
        "extensions": "[my_parts]",
        "objective": "{loss: focal, gamma: 1.5}",
        "optimizer": "{name: lion, lr: 3e-4, weight_decay: 0.1}",
        "data.pack": f"{{source: halves, to: {folder}/halves}}",
        "data.train.url": f"{folder}/halves/train",
        "data.eval.test.url": f"{folder}/halves/test",
        "model.num_classes": 2,
        "evaluators": f"{{margin: {{url: {folder}/halves/test}}}}",
    }
    words = settings(folder, "extended", without=["data.pack.to"], **more)
    command = ["python", "-m", "orchestrator", "run", str(job), *words]

    started = ray_head.start(*command)
    wait_for_checkpoint(folder / "extended", 15, started)
    for worker in training_workers(os.getpid()):
        worker.send_signal(signal.SIGKILL)
    output = started.end()
    assert started.process.returncode == 0, output
    assert "continuing at step" in output

    summary = json.loads((folder / "extended/summary.json").read_text())
    assert summary["metrics"]["margin/images"] == 128
    assert summary["metrics"]["eval/test/top1"] > 0.75, "it learns: chance is 0.5"
    points = history(folder, "extended", "margin/mean")
    assert [step for step, _ in points] == [30, 60]
    assert points[-1][1] > points[0][1] > 0
