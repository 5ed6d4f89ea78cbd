"""Savers are killed repeatedly, at any moment: the restored state is always exactly the state of its step."""

import multiprocessing
import os
import random
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data import storage
from infra.local import ranks
from infra.local.stores import Server, gcs_server, reached_by
from tests.orchestrator.checkpoint.saving import be_impatient, has_state, set_state, stand_in
from tests.orchestrator.small_run import in_thread

RANKS = 2


def save_until_killed(rank: int, rendezvous: str, run: str, server: Server | None, results: Connection) -> None:
    """Restore, report the restored step, and save step after step."""
    import torch.distributed as dist

    from orchestrator.checkpoint.restore import restore
    from orchestrator.checkpoint.saver import Saver

    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(RANKS))
    be_impatient(server)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    engine = stand_in()
    manifest = restore(engine, run)
    step = manifest.step if manifest else 0
    results.send((step, manifest is None or has_state(engine, step)))
    saver = Saver(engine, run, 2, print, report=in_thread)
    first = step + 1
    while True:
        step += 1
        set_state(engine, step)
        saver.save(step, {"steps": step}, {}, wait=step % 5 == 0 or step == first)  # the next step changes the state
        if step == first:
            results.send(step)


@pytest.mark.parametrize(("store", "kills"), [("disk", 24), ("bucket", 8)])
def test_kills_at_any_moment(tmp_path: Path, store: str, kills: int) -> None:
    context, dice = multiprocessing.get_context("forkserver"), random.Random(5)
    with ExitStack() as stack:
        server = stack.enter_context(gcs_server()) if store == "bucket" else None
        run = f"{stack.enter_context(reached_by(server))}/run" if server else str(tmp_path / "run")
        restored: list[int] = []
        for attempt in range(kills):
            pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
            processes = [
                context.Process(
                    target=save_until_killed, args=(rank, str(tmp_path / f"store-{attempt}"), run, server, pipe[1])
                )
                for rank, pipe in enumerate(pipes)
            ]
            for process in processes:
                process.start()
            answers = [pipe[0].recv() for pipe in pipes if pipe[0].poll(120)]
            if attempt % 2:  # every other attempt completes a checkpoint; the rest may be killed before
                assert [pipe[0].recv() for pipe in pipes if pipe[0].poll(120)] == [answers[0][0] + 1] * RANKS
            time.sleep(dice.random() * (0.25 if store == "disk" else 0.6))
            dice.shuffle(processes)
            for process in processes:
                process.kill()
                time.sleep(dice.choice([0, 0, 0.02]))  # the other one continues alone for a moment
            for process in processes:
                process.join()
            assert len(answers) == RANKS
            assert answers[0] == answers[1]
            step, exact = answers[0]
            assert exact, f"attempt {attempt} restored another state than that of step {step}"
            restored.append(step)
        assert restored == sorted(restored), "a complete checkpoint was lost"
        assert restored[-1] >= kills // 2 - 1
        # the next attempt deletes the remains of the killed ones, and nothing else
        left = set(storage.matching(run, "step-*"))
        assert ranks.run_ranks(1, save_once, run, server) == [restored_or_later(run, left)]
        assert len(storage.matching(run, "step-*")) == 2
        assert storage.matching(run, ".staging/*") == []


def save_once(run: str, server: Server | None) -> int:
    from orchestrator.checkpoint.restore import restore
    from orchestrator.checkpoint.saver import Saver

    be_impatient(server)
    engine = stand_in()
    manifest = restore(engine, run)
    assert manifest is not None
    assert has_state(engine, manifest.step)
    saver = Saver(engine, run, 2, print, report=in_thread)
    set_state(engine, 10**6)
    saver.save(10**6, {"steps": 10**6}, {}, wait=True)
    return manifest.step


def restored_or_later(run: str, before: set[str]) -> int:
    """The newest step in the folders `before` that still exist; `save_once` keeps the one that it restored."""
    return max(int(name[5:14]) for name in set(storage.matching(run, "step-*")) & before)
