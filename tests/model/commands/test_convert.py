"""`python -m model convert` as a user runs it, in this process."""

from pathlib import Path

import numpy as np
import pytest

from model.__main__ import main
from tests.model.weights import foreign


def test_a_model_goes_through_all_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = foreign.folder(tmp_path / "timm", foreign.timm_config(act_layer="gelu_tanh"), foreign.timm_state())
    assert main(["convert", url, str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["read", "checked", "wrote"]
    assert "GELU tanh" in lines[0]
    assert "44 tensors are equal to the bit; outputs differ by at most 0 x the largest" in lines[1]
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "b.npz"), "--dtype", "bf16"]) == 0
    assert main(["convert", str(tmp_path / "b.npz"), str(tmp_path / "hf"), "--format", "huggingface"]) == 0
    assert main(["convert", url, str(tmp_path / "ours")]) == 2
    assert main(["convert", url, str(tmp_path / "ours"), "--force"]) == 0


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = foreign.timm_state()
    swin = foreign.folder(tmp_path / "swin", {"model_type": "swin", "architectures": ["SwinModel"]}, state)
    cut = foreign.folder(tmp_path / "cut", foreign.timm_config(), state)
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:-100])
    lie = foreign.folder(tmp_path / "lie", foreign.timm_config(), state)
    (tmp_path / "lie" / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + whole[8:])
    (tmp_path / "words.pth").write_bytes(b"words")
    (tmp_path / "words.npz").write_bytes(b"words")
    classes = foreign.folder(tmp_path / "classes", foreign.timm_config(), state | {"head.bias": np.ones(4, np.float32)})
    (tmp_path / "empty").mkdir()
    for source in (
        swin,
        cut,
        lie,
        classes,
        *(str(tmp_path / n) for n in ("words.pth", "words.npz", "empty", "absent")),
    ):
        before = sorted(tmp_path.iterdir())
        assert main(["convert", source, str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: python -m model convert: ")
        assert captured.err.count("\n") == 1, captured.err
        assert sorted(tmp_path.iterdir()) == before


def test_a_target_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = foreign.folder(tmp_path / "m", foreign.timm_config(), foreign.timm_state())
    (tmp_path / "file").write_text("")
    assert main(["convert", url, str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = capsys.readouterr().out
    assert "--drop pre_logits" in text
    assert all(len(line) <= 120 for line in text.splitlines())
