"""Two commands that pack into one folder."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from data.packing.pack import Options, pack
from tests.data.packing.test_pack import Numbers, digests


def test_two_commands_pack_the_same_at_the_same_moment(tmp_path: Path) -> None:
    """Both are complete, and the set is the one that a single command packs."""
    options, source = Options(samples_per_shard=20), Numbers(400, bad=(5,))
    pack(str(tmp_path / "alone"), source, options)
    forks = multiprocessing.get_context("fork")
    for number in range(5):
        gate = forks.Barrier(2)

        def command(folder: str = str(tmp_path / f"{number}"), gate: Barrier = gate) -> None:
            gate.wait()
            pack(folder, source, options)

        both = [forks.Process(target=command) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join()
        assert [each.exitcode for each in both] == [0, 0]
        assert digests(tmp_path / f"{number}") == digests(tmp_path / "alone")
