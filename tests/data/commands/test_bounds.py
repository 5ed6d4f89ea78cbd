"""Data sets that claim absurd sizes, through the commands, in a process whose memory is measured."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data import Augment, Loader, SampleOrder, open_index
from data.errors import Cause
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read from /proc")

SIDE = 9_400  # 88 megapixels
HOLE = 600 << 20
PROGRAM = """
import sys
from data.__main__ import main
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
code = main(sys.argv[1:])
print(peak() - before)
sys.exit(code)
"""


def run(*arguments: object, code: int = 0) -> tuple[str, int]:
    """What the command prints, and the MiB that it takes at most."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr, int(result.stdout.split()[-1]) // 1024


def saved(side: int, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (10, 90, 200)).save(file, name, **options)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes | int]]) -> None:
    """Contents that are numbers are holes of so many bytes: they take no room on the disk."""
    with path.open("wb") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = content if isinstance(content, int) else len(content)
            file.write(info.tobuf())
            if isinstance(content, int):
                file.seek(content, os.SEEK_CUR)
            else:
                file.write(content)
            file.seek(-info.size % 512, os.SEEK_CUR)
        file.write(bytes(1024))


def causes(url: Path) -> list[str]:
    """Of one pass of training."""
    index = open_index(str(url))
    order = SampleOrder(index, seed=0, batch_size=1)
    with Loader(
        index,
        order,
        rank=0,
        world_size=1,
        image_size=32,
        augment=Augment("resize"),
        seed=0,
        stop_step=index.num_samples,
    ) as loader:
        return sorted(bad.cause for batch in loader for bad in batch.bad)


@pytest.mark.servers
def test_show_draws_large_images_one_after_another(tmp_path):
    """Six images of 88 megapixels took 1.5 to 3 GB; the largest that are drawn take two copies of their pixels."""
    png, jpeg = saved(SIDE, "PNG"), saved(SIDE, "JPEG", progressive=True)
    members = [(f"{number}.{name}", content) for number in range(3) for name, content in (("png", png),)]
    members += [(f"{number}.jpg", jpeg) for number in range(3, 6)]
    write_tar(tmp_path / "a.tar", members)
    run("pack", "--index-only", tmp_path, "--unlabelled")
    printed, peak = run("show", tmp_path, "--sheet", tmp_path / "sheet.png")
    assert f"6 of {SIDE}x{SIDE}" in printed
    assert peak < 1_000


def test_an_image_that_is_too_large_to_be_drawn_is_named(tmp_path, monkeypatch, capsys):
    from data import bounds
    from data.commands import contact_sheet

    write_tar(tmp_path / "a.tar", [("a.png", saved(700, "PNG")), ("b.png", saved(300, "PNG"))])
    run("pack", "--index-only", tmp_path, "--unlabelled")
    monkeypatch.setattr(bounds, "SHOWN_BYTES", 1_000_000)
    index = open_index(str(tmp_path))
    found = [contact_sheet.find(index, number) for number in range(2)]
    assert [(one.cause, one.size) for one in found] == [(Cause.NOT_DRAWN, (700, 700)), ("", (300, 300))]
    assert found[1].image is not None
    assert max(found[1].image.shape) <= contact_sheet.TILE


@pytest.mark.servers
def test_a_field_of_many_bytes_that_takes_no_room_on_the_disk(tmp_path):
    """Its sample counts, and is a bad one: when it is indexed, verified, shown and trained on."""
    small = saved(8, "PNG")
    write_tar(
        tmp_path / "a.tar",
        [
            *(("a.png", small), ("a.cls", b"0")),
            *(("b.png", HOLE), ("b.cls", b"1")),
            *(("c.png", small), ("c.cls", b"1")),
        ],
    )
    printed, peak = run("pack", "--index-only", tmp_path)
    assert peak < 300
    assert open_index(str(tmp_path)).num_samples == 3
    printed, peak = run("verify", tmp_path, code=1)
    assert "sample 'b': no image" in printed
    assert peak < 300
    printed, peak = run("show", tmp_path, "--no-sheet")
    assert peak < 300
    assert causes(tmp_path) == [Cause.NO_IMAGE]


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_shard_that_is_a_pipe_or_a_socket_is_an_error(kind, tmp_path):
    import socket

    write_tar(tmp_path / "a.tar", [("a.png", saved(8, "PNG")), ("a.cls", b"0")])
    run("pack", "--index-only", tmp_path)
    (tmp_path / "a.tar").unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.tar")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(tmp_path / "a.tar"))
    printed, _ = run("verify", tmp_path, code=1)
    assert f"is a {kind}, not a file" in printed
    run("show", tmp_path, "--no-sheet")
    command = [sys.executable, "-c", f"from tests.data.commands.test_bounds import causes; causes({str(tmp_path)!r})"]
    training = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert f"is a {kind}, not a file" in training.stderr
