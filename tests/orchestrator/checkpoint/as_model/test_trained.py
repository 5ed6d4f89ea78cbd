"""A run as a model: from checkpoints of any number of workers and stage, damaged ones, and ones that go meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoint.as_model import whole
from orchestrator.checkpoint.as_model.export import write_export
from orchestrator.checkpoint.as_model.trained import Address, ModelError, Trained, read_trained, run_address
from orchestrator.checkpoint.manifest import MANIFEST, Manifest
from tests.orchestrator.checkpoint.helpers import weights
from tests.orchestrator.checkpoint.runs import IDENTITY, MODEL, describe, make_run, write_run
from tests.paths import ROOT


@pytest.fixture(scope="module")
def three(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three workers at ZeRO 3, of two steps. Not to be written to."""
    return make_run(tmp_path_factory.mktemp("three"), str(digits / "train"), 3, 3, 2)


@pytest.fixture
def run(three: Path, tmp_path: Path) -> Path:
    """A copy of that run with a second checkpoint, at step 4."""
    shutil.copytree(three, tmp_path / "run")
    (old,) = (tmp_path / "run").glob("step-*")
    copy_as_step(old, 4)
    return tmp_path / "run"


def copy_as_step(checkpoint: Path, step: int) -> Path:
    """A copy of a checkpoint beside it, as if it had been saved at another step."""
    there = checkpoint.parent / f"step-{step:09d}-00000000"
    shutil.copytree(checkpoint, there)
    manifest = Manifest.parse(checkpoint.name, (checkpoint / MANIFEST).read_text())
    (there / MANIFEST).write_text(manifest.model_copy(update={"step": step, "totals": {"steps": step}}).dumps())
    return there


def read(url: str | Path, warn: Callable[[str], None] = pytest.fail) -> Trained:
    address = run_address(str(url))
    assert address is not None
    return read_trained(address, warn)


def test_three_workers_at_stage_3_hold_the_same_weights_as_one_at_stage_0(
    digits: Path, three: Path, tmp_path: Path
) -> None:
    one = make_run(tmp_path / "one", str(digits / "train"), 0, 1, 2, resume=three)
    a, b = read(three), read(one)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    for name, found in (("a", a), ("b", b)):
        write_export(found, f"{tmp_path}/{name}")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    reference = weights(three)
    assert all(torch.equal(t.view(-1), reference[f"weight/{name}"]) for name, t in a.tensors.items())
    assert {name: tuple(t.shape) for name, t in a.tensors.items()}["embedding.position"] == (1, 17, 48)


def test_what_the_folder_says(three: Path) -> None:
    found = read(three)
    assert (found.step, found.config.width, found.config.image_size) == (2, 48, 8)
    assert found.augment.crop == "resize"
    assert found.class_names[3] == "digit 3"
    assert found.origin | {"checkpoint": "", "sha256": ""} == {
        "job": three.name,
        "run": IDENTITY,
        "step": 2,
        "weights": "live",
        "evaluated_step": None,
        "data": "d" * 64,
        "code": {"digest": "c" * 64},
        "checkpoint": "",
        "sha256": "",
        "loss": None,
    }


@pytest.mark.parametrize(
    ("suffix", "address"),
    [
        ("", Address("", "last", "live")),
        ("/", Address("", "last", "live")),
        ("@last", Address("", "last", "live")),
        ("@7#ema", Address("", "7", "ema")),
        ("@best", Address("", "best", "live")),
        ("#live", Address("", "last", "live")),
    ],
)
def test_an_address(three: Path, suffix: str, address: Address) -> None:
    assert run_address(f"{three}{suffix}") == Address(str(three), address.step, address.weights)


def test_a_run_whose_name_looks_like_an_address(three: Path, tmp_path: Path) -> None:
    shutil.copytree(three, tmp_path / "a@2#ema")
    assert run_address(f"{tmp_path}/a@2#ema") == Address(f"{tmp_path}/a@2#ema")
    assert run_address(f"{tmp_path}/a@2#ema@2") == Address(f"{tmp_path}/a@2#ema", "2")
    assert run_address(f"{tmp_path}/b@2") is None


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("@3", "no complete checkpoint at step 3; it has 2, 4"),
        ("@newest", "'newest' is no checkpoint; use a number of steps, last or best"),
        ("@-1", "'-1' is no checkpoint"),
        ("#avg", "'avg' are no weights; use live or ema"),
        ("#ema", "it has no averaged weights; the run trained without optimizer.ema"),
        ("@best", "its job has no checkpoint.best"),
    ],
)
def test_an_address_that_names_nothing(run: Path, suffix: str, words: str) -> None:
    with pytest.raises(ModelError) as error:
        read(f"{run}{suffix}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def damage(run: Path, step: int) -> None:
    file = next((run / f"step-{step:09d}-00000000").glob("rank-00001*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_newest_checkpoint(run: Path) -> None:
    damage(run, 4)
    said: list[str] = []
    assert read(run, said.append).step == 2
    (line,) = said
    assert "rank-00001-of-00003.000.safetensors does not match its SHA-256; using the previous one" in line
    with pytest.raises(ModelError, match="does not match its SHA-256; name another step"):
        read(f"{run}@4")
    assert read(f"{run}@2").step == 2


@pytest.mark.parametrize("how", ["truncated", "missing", "manifest", "not safetensors"])
def test_an_incomplete_checkpoint(run: Path, how: str) -> None:
    newest = run / "step-000000004-00000000"
    file = next(newest.glob("rank-00002*"))
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    elif how == "missing":
        file.unlink()
    elif how == "manifest":
        (newest / MANIFEST).write_text("{}")
    else:
        file.write_bytes(os.urandom(file.stat().st_size))
    said: list[str] = []
    assert read(run, said.append).step == 2
    assert len(said) == 1
    assert "step-000000004-00000000" in said[0]
    with pytest.raises(ModelError, match="step-000000004-00000000"):
        read(f"{run}@4")


def test_no_intact_checkpoint(run: Path) -> None:
    for checkpoint in run.glob("step-*"):
        (checkpoint / MANIFEST).unlink()
    with pytest.raises(ModelError, match="the run has no complete checkpoint that is intact"):
        read(run)
    with pytest.raises(ModelError, match="no complete checkpoint at step 4; it has none"):
        read(f"{run}@4")


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 4 is replaced by one of step 6 when its files are opened, as in a run that trains."""
    read_file = whole._read_file

    def deleting(url: str, *rest: object) -> None:
        newest = Path(url).parent
        if newest.name.startswith("step-000000004"):
            copy_as_step(newest, 6)
            shutil.rmtree(newest)
        read_file(url, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "_read_file", deleting)


def test_a_checkpoint_that_is_deleted_while_it_is_read(run: Path, deleted: None) -> None:
    assert read(run).step == 6


def test_a_checkpoint_of_a_given_step_that_is_deleted_while_it_is_read(run: Path, deleted: None) -> None:
    with pytest.raises(ModelError, match="was deleted while it was read; name a newer one"):
        read(f"{run}@4")


@pytest.mark.parametrize("name", ["job.yaml", "run.json", "classes.json"])
def test_a_damaged_file_of_the_run(run: Path, name: str) -> None:
    (run / name).write_text("[1")
    with pytest.raises(ModelError, match=f"{name}: damaged") as error:
        read(run)
    assert "\n" not in str(error.value)


def test_another_network_than_the_job_says(run: Path) -> None:
    describe(run, model={**MODEL, "width": 96})
    with pytest.raises(ModelError, match=r"by job\.yaml; it is not of this job"):
        read(run)
    describe(run, model={**MODEL, "heads": 5})
    with pytest.raises(ModelError, match=r"job\.yaml: model\.heads: 5 heads do not divide the width 48"):
        read(run)
    describe(run, model={**MODEL, "hedas": 5})
    with pytest.raises(ModelError, match=r"job\.yaml: model\.hedas: .*another version"):
        read(run)


def test_the_best_checkpoint(run: Path) -> None:
    describe(run, checkpoint={"best": {"metric": "eval/test/loss", "mode": "min"}})
    with pytest.raises(ModelError, match="no checkpoint has eval/test/loss, measured at its own step"):
        read(f"{run}@best")
    for checkpoint, loss in zip(sorted(run.glob("step-*")), (1.0, 2.0), strict=True):
        manifest = Manifest.parse(checkpoint.name, (checkpoint / MANIFEST).read_text())
        metrics = {"eval/test/loss": loss, "evaluated_step": float(manifest.step)}
        (checkpoint / MANIFEST).write_text(manifest.model_copy(update={"metrics": metrics}).dumps())
    assert (read(f"{run}@best").step, read(run).step) == (2, 4)
    assert read(f"{run}@best").metrics == {"eval/test/loss": 1.0}


def test_checkpoints_of_another_run_are_passed_over(run: Path) -> None:
    owner = {"run": "f" * 32, "written": 1}
    (run / "step-000000004-00000000" / "owner.json").write_text(json.dumps(owner))
    said: list[str] = []
    assert read(run, said.append).step == 2
    assert "it belongs to the run ffff" in said[0]


PEAK = """
import resource, sys
from orchestrator.checkpoint.as_model.export import write_export
from orchestrator.checkpoint.as_model.trained import Address, read_trained
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_export(read_trained(Address(sys.argv[1]), print), sys.argv[1] + "/export")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(sorted({"ray", "deepspeed", "mlflow"} & sys.modules.keys()))
"""


@pytest.mark.servers
def test_memory_of_one_model(tmp_path: Path) -> None:
    """A checkpoint of 3 x 120 MB is exported in 1.3 x 120 MB."""
    wide = {**MODEL, "width": 768, "mlp_dim": 3072, "heads": 12, "depth": 4}
    write_run(tmp_path, model=wide)
    output = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    before, after = map(int, output[0].split())
    size = sum(f.stat().st_size for f in tmp_path.glob("step-*/rank-*")) / 3
    assert size > 100e6
    assert (after - before) * 1024 < 1.3 * size
    assert output[1] == "[]"
