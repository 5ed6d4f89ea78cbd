"""`python -m model summary`: as a process, and in this one where only the arguments differ."""

import json
import subprocess
import sys

import pytest

from model.__main__ import main


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "model", "summary"]
    done = subprocess.run([*command, "ViT-H/14"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for number in ("632,045,800", "167.295 GMACs", "1,003.77 GFLOPs", "selective", "bf16", "16 x 16 patches"):
        assert number in done.stdout
    refused = subprocess.run([*command, "ViT-G/14"], capture_output=True, text=True, timeout=300)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        "error: python -m model summary: name: unknown model 'ViT-G/14'; the nearest is ViT-"
    )
    assert refused.stderr.count("\n") == 1


def test_json_with_settings(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "summary vit_l16 --num-classes 21843 --image-size 384 --json --set representation_size=1024 "
    arguments += "--set pool=gap --set dropout=0.1 --set head_bias=null"
    assert main(arguments.split()) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = summary["config"]
    assert (config["name"], config["num_classes"], config["image_size"]) == ("ViT-L/16", 21843, 384)
    assert (config["representation_size"], config["pool"], config["dropout"]) == (1024, "gap", 0.1)
    parameters = summary["parameters"]
    assert parameters["embedding"] == 3 * 16 * 16 * 1024 + 1024 + 24 * 24 * 1024
    assert parameters["blocks"] == 24 * (4 * 1024**2 + 4 * 1024 + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024)
    assert parameters["pre_logits"] == 1024 * 1024 + 1024
    assert parameters["head"] == 1024 * 21843 + 21843
    assert parameters["total"] == sum(count for part, count in parameters.items() if part != "total")
    assert summary["training_flops"] == 6 * summary["forward_macs"]
    by_mode = summary["activation_bytes"]["bf16"]
    assert by_mode["none"] > by_mode["selective"] > by_mode["full"] > 0


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        ("summary B/16 --image-size 230", "image_size: 230 is not a multiple of the patch size 16"),
        ("summary B/16 --set widht=3", "widht: a ViT has no such setting; the nearest is width"),
        ("summary B/16 --set heads=7", "heads: 7 heads do not divide the width 768"),
        ("summary B/16 --set width", "'width' is not of the form key=value"),
        ("summary B/16 --num-classes many", "--num-classes"),
        ("summary", "NAME"),
        ("sumary B/16", "sumary"),
        ("", "COMMAND"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments: str, mentions: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(arguments.split())
    except SystemExit as exit_:  # a command line that argparse refuses
        code = exit_.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert mentions in printed.err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["summary", "--help"])
    text = capsys.readouterr().out
    for word in ("--set KEY=VALUE", "representation_size", "example:"):
        assert word in text
