"""What an evaluation checks before it starts, and its files and texts. Whole evaluations are in tests/runs."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import open_index
from data.shards.index import CLASS_MAP, write_index
from data.sources.digits import pack_digits
from orchestrator import JobError, load_job
from orchestrator.job.kinds import EvaluateJob
from orchestrator.kinds.evaluate import Prepared, metrics_of, prepare
from orchestrator.kinds.evaluation_files import paired_tests, picture, read_answers, write_report
from orchestrator.kinds.evaluation_text import preprocessing
from tests.orchestrator.checkpoint.runs import write_run

JOB = """\
kind: evaluate
model: {init_from: run}
data: {eval: {test: {url: digits/test, augment: {crop: resize}}}}
batch_size: 32
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    pack_digits(str(home / "digits"))
    write_run(home / "run", objective={"loss": "sigmoid"})
    return home


@pytest.fixture(autouse=True)
def _there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("VIT_HOME", raising=False)


def check(*overrides: str) -> Prepared:
    Path("measure.yaml").write_text(JOB)
    job = load_job("measure.yaml", overrides)
    assert isinstance(job, EvaluateJob)
    return prepare(job)


def line_of(*overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        check(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("measure.yaml: ")


def test_the_network_decides_what_the_job_leaves_open(home: Path) -> None:
    found = check()
    assert found.models == {"live": f"{home}/run@1"}
    assert found.job.model.image_size == 8
    assert found.job.data.eval["test"].rule == "top1"
    assert found.job.data.eval["test"].url == f"{home}/digits/test"
    assert found.job.objective is not None
    assert found.job.objective.model_dump()["loss"] == "sigmoid"
    assert check("model.image_size=12").job.model.image_size == 12
    assert check("objective.loss=softmax").job.objective.model_dump()["loss"] == "softmax"  # type: ignore[union-attr]
    assert found.class_names[3] == "digit 3"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.init_from=nowhere"], "nowhere: does not exist"),
        (["model.init_from=digits"], "digits: neither the folder of a run"),
        (["model.init_from=run@7"], "no complete checkpoint at step 7; it has 1"),
        (["model.init_from=run@x"], "'x' is no checkpoint"),
        (["weights=[ema]"], "no averaged weights; the run trained without optimizer.ema"),
        (["model.image_size=9"], "model.image_size = 9: not a multiple of the patch of 2 pixels"),
        (["data.eval.test.url=none"], "data.eval.test.url = none: does not exist"),
        (["data.eval.test.augment={crop: center, resize: 4}"], "smaller than the input of 8 pixels"),
        (["data.eval=null"], "data.eval = null: expected a mapping"),
        (["data.eval={}"], "data.eval = {}: missing; give at least one set, or an evaluator"),
        (["data.eval.test.rule=top2"], "expected top1, any_label, multi_label or objectnet or null"),
        (["data.eval.test.rule=objectnet"], "data.eval.test.rule = objectnet: the set has no class map"),
        (["cluster.workers=[1, 2]"], "cluster.workers = [1, 2]: a range is only for a job that trains"),
        (
            ["evaluators.knn={sets: {a: {train: digits/train, test: digits/test}}, every: {steps: 1}}"],
            "evaluators.knn.every = {steps: 1}: only in a job that trains",
        ),
        (["checkpoint.url=.", "name=run"], "is the folder of a run that trains; choose another name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(overrides: list[str], line: str) -> None:
    assert line in line_of(*overrides)


def test_rules_follow_from_the_sets(tmp_path: Path) -> None:
    for name, changes in {
        "several": {"multi_label": True},
        "real": {"multi_label": True, "about": {"measure_only": "ImageNet ReaL"}},
        "objectnet": {"multi_label": True, "about": {CLASS_MAP: {"chair": [1, 2]}}},
        "eleven": {"num_classes": 11, "label_counts": {}},
    }.items():
        shutil.copytree("digits/test", tmp_path / name)
        write_index(dataclasses.replace(open_index(str(tmp_path / name)), **changes))  # type: ignore[arg-type]

    def rule(name: str) -> str | None:
        return check(f"data.eval.test.url={tmp_path}/{name}").job.data.eval["test"].rule

    assert [rule(name) for name in ("several", "real", "objectnet")] == ["multi_label", "any_label", "objectnet"]
    several = [f"data.eval.test.url={tmp_path}/several", "data.eval.test.rule=top1"]
    assert "its images have several labels; use any_label or multi_label" in line_of(*several)
    assert line_of(f"data.eval.test.url={tmp_path}/eleven").startswith(
        "model.init_from = run: its head has 10 classes, fewer than the 11 classes of data.eval.test.url"
    )


def test_files_of_a_set(tmp_path: Path) -> None:
    """Two kinds of weights and an earlier evaluation on five images of three classes."""
    (tmp_path / "answers").mkdir()
    shared = {
        "digest": "d",
        "class_images": np.array([3, 2, 0]),
        "class_right": np.array([1, 2, 0]),
        "confusion": np.array([[1, 2, 0], [0, 2, 0], [0, 0, 0]]),
    }
    np.savez(tmp_path / "answers/val.live.npz", answers=np.array([1, 0, 0, 1, 1], np.uint8), **shared)
    np.savez(tmp_path / "answers/val.ema.npz", answers=np.array([1, 1, 0, 1, 2], np.uint8), **shared)
    before = read_answers(str(tmp_path), {"val": "d", "other": "d"})
    assert before.keys() == {"val"}
    assert read_answers(str(tmp_path), {"val": "another digest"}) == {}
    with pytest.raises(ValueError, match="not the folder of an evaluation"):
        read_answers("digits", {"val": "d"})

    found = write_report(str(tmp_path), {"val": ["red fox", "owl"]}, ["live", "ema"], before)["val"]
    assert found["worst"] == [{"truth": "red fox", "prediction": "owl", "images": 2}]
    first, with_before, _ = found["pairs"]
    assert (first["first"], first["second"]) == ("live weights", "ema weights")
    assert (first["only_first"], first["only_second"], first["difference"]) == (0, 1, -0.25)
    assert (with_before["second"], with_before["difference"]) == ("the compared evaluation", 0)
    table = (tmp_path / "report/val.live.classes.csv").read_text().splitlines()
    assert table[0] == "class,name,images,right,accuracy,standard_error"
    assert table[1].startswith("0,red fox,3,1,0.333333")
    assert table[2:] == ["1,owl,2,2,1.0,0.0", "2,2,0,0,nan,nan"]
    assert (tmp_path / "report/val.ema.confusion.csv").read_text().splitlines()[1] == "red fox,1,2,0"
    assert (tmp_path / "report/val.live.confusion.png").read_bytes().startswith(b"\x89PNG")
    assert paired_tests({"a": np.array([2, 1]), "b": np.array([1, 2])}) == [], "no image that both are judged on"


def test_a_picture_of_a_thousand_classes() -> None:
    assert picture(np.eye(1000, dtype=np.int64), [str(n) for n in range(1000)]).startswith(b"\x89PNG")


def test_metrics_of_averaged_weights_have_a_name_of_their_own() -> None:
    live = {"metrics": {"eval/val/top1": 0.5, "few_shot/pets/10shot": 0.25}}
    assert metrics_of({"live": live, "ema": live}) == {
        "eval/val/top1": 0.5,
        "few_shot/pets/10shot": 0.25,
        "eval/val/ema/top1": 0.5,
        "few_shot/pets/ema/10shot": 0.25,
    }


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"crop": "resize", "resize": None, "exact": True}, "the whole image squeezed to 384 x 384 (as in vit_jax)"),
        ({"crop": "center", "resize": 448, "exact": True}, "shorter side to 448, middle 384 x 384 (as in big_vision)"),
        (
            {"crop": "resize_center", "resize": None, "exact": False},
            "the whole image squeezed to 438 x 438, middle 384 x 384, averaged first if a side shrinks more than twice",
        ),
    ],
)
def test_the_school_of_preprocessing_is_said(augment: dict[str, object], words: str) -> None:
    assert preprocessing(augment, 384) == words
