"""A run on a set in which something of everything is wrong: it trains, and the account of what is wrong is exact.

It is submitted from elsewhere and all its paths are relative, so it also shows where those begin.
"""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from sklearn.datasets import load_digits

from data import bounds
from data.errors import Cause
from data.packing.scan import index_shards
from orchestrator.history.ledger import trained_samples
from orchestrator.history.quarantine import read_quarantine
from orchestrator.names import bad_samples
from tests.cluster import RayHead
from tests.paths import ROOT
from tests.runs.helpers import BATCH, JOB, command, history, settings

SHARD, SHARDS, EPOCHS = 100, 10, 2
GONE = 5  # samples of a last, small shard that disappears after indexing


def bomb() -> bytes:
    """A PNG of 100 bytes that claims to be 60,000 x 60,000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def rotten_set(folder: Path) -> dict[tuple[str, int], str]:
    """Write shards of digits with bad samples among them; returns {(key, id): cause}."""
    png = [
        cv2.imencode(".png", np.rint(image * 255 / 16).astype(np.uint8))[1].tobytes()
        for image in load_digits().images[:1005]
    ]
    damage = {
        Cause.EMPTY: {"png": b""},
        Cause.UNDECODABLE: {"png": png[0][:40] + png[0][60:]},
        Cause.HUGE: {"png": bomb()},
        Cause.NO_IMAGE: {"png": None},
        Cause.NO_LABEL: {"cls": None},
        Cause.BAD_LABEL: {"cls": b"seven"},
        Cause.OUTSIDE: {"cls": b"10"},
        Cause.MANY_LABELS: {"cls": b"1 " * (bounds.LABELS + 1)},
    }
    bad = {}
    folder.mkdir(parents=True)
    for shard in range(SHARDS + 1):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as writer:
            for number in range(shard * SHARD, shard * SHARD + (SHARD if shard < SHARDS else GONE)):
                sample = {"png": png[number], "cls": str(load_digits().target[number]).encode()}
                if number % 50 in (3, 31) and shard < SHARDS:
                    cause = list(damage)[(number // 50 + number % 2) % len(damage)]
                    sample |= damage[cause]
                    bad[f"{number:06d}", number] = cause
                fields = {field: content for field, content in sample.items() if content is not None}
                writer.write({"__key__": f"{number:06d}", **fields})
    index_shards(str(folder))
    last = folder / f"{SHARDS - 1:06d}.tar"
    content = last.read_bytes()
    cut = content.index(b"000997.png")  # the header of the last but two: three samples are gone
    last.write_bytes(content[: cut + 300])
    bad |= {("", number): Cause.CUT_SHORT for number in range(997, 1000)}
    (folder / f"{SHARDS:06d}.tar").unlink()
    return bad | {("", SHARDS * SHARD + number): Cause.UNREADABLE for number in range(GONE)}


@pytest.fixture(scope="module")
def home(ray_head: RayHead) -> Path:
    """Where relative paths of a job begin that was submitted with a working directory: Ray deletes what it unpacks."""
    return Path(ray_head.environment["HOME"], "vit")


@pytest.fixture(scope="module")
def bad(home: Path) -> dict[tuple[str, int], str]:
    return rotten_set(home / "rotten")


KEYS = {"data.unreadable": "mask", "schedule.length.steps": EPOCHS * -(-(SHARDS * SHARD + GONE) // BATCH)}


@pytest.fixture(scope="module")
def submitted(ray_head: RayHead, home: Path, bad: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run."""
    absolute = ("checkpoint.url", "tracking.uri", "data.pack.to", "data.eval.test.url")
    job = [JOB, *settings(home, "rotten", without=absolute, **KEYS, **{"data.train.url": "rotten"})]
    words = ["ray", "job", "submit", "--address", ray_head.jobs, "--working-dir", str(ROOT), "--", *job]
    output = ray_head.call(*words, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert "succeeded" in output
    return home / "runs" / "rotten"


def test_submitted_with_a_working_directory_from_elsewhere(submitted: Path) -> None:
    """Relative paths of the job then begin at ~/vit, since Ray deletes the folder that it unpacks."""
    assert (submitted / "summary.json").exists()
    assert (submitted.parent / "data" / "digits" / "train" / "index.json").exists()


def test_it_trains_and_the_account_is_exact(submitted: Path, bad: dict[tuple[str, int], str]) -> None:
    elsewhere = {Cause.SEVERAL, Cause.HUGE_LABEL, Cause.NO_SUCH_NAME}  # of sets with other labels
    elsewhere |= {Cause.LONG_IMAGE, Cause.LONG_LABEL}  # of fields of many megabytes
    elsewhere |= {Cause.NOT_DRAWN, Cause.NO_RANGE}  # of `data show` and `data pack`
    assert set(bad.values()) == {c for n, c in vars(Cause).items() if n.isupper()} - elsewhere
    listed = read_quarantine(str(submitted))
    assert {(entry["key"], entry["id"]): entry["cause"] for entry in listed} == bad
    assert all(Path(entry["shard"]).name == f"{entry['id'] // SHARD:06d}.tar" for entry in listed)
    for cause, count in Counter(bad.values()).items():
        assert history(submitted.parent, "rotten", bad_samples(cause))[-1][1] == EPOCHS * count, cause
    samples = trained_samples(str(submitted))
    good = set(range(SHARDS * SHARD + GONE)) - {number for _, number in bad}
    assert Counter(number for ids in samples.values() for number in ids) == dict.fromkeys(good, EPOCHS)
    summary = json.loads((submitted / "summary.json").read_text())
    assert summary["metrics"]["train/bad_samples"] == EPOCHS * len(bad)


def test_too_many_stop_the_run(ray_head: RayHead, folder: Path, home: Path, bad: object) -> None:
    limit = {"data.max_bad_fraction": 0.01, "cluster.workers": 1, "data.train.url": home / "rotten"}
    started = ray_head.start(*command(folder, "stopped", **KEYS, **limit))
    output = started.end(300)
    assert started.process.returncode == 1, output
    last = output.strip().splitlines()[-1]
    assert "data.max_bad_fraction = 0.01" in last
    assert str(folder / "stopped" / "quarantine.jsonl") in last
    assert "failed" not in output  # the workers were not restarted
    assert read_quarantine(str(folder / "stopped"))
