"""The chaos benchmark reads a job's progress from its terminal."""

from pathlib import Path

from benchmarks.chaos.world import Job


def test_progress_is_read_from_the_terminal(tmp_path: Path) -> None:
    words = [
        r"packing: 100%|###| 2000/2000 [00:01<00:00]\r",
        r"chaos:  30%|### | 30/100 [00:01<00:02]\r",
        r"chaos: continuing at step 20 of 100 on 3 workers\n",
    ]
    words += [r"chaos:  25%|##  | 25/100 [00:01<00:02]\r\n"]
    job = Job("chaos", ["printf", "%b", "".join(words)], {}, tmp_path / "log")
    job.start()
    job._reader.join(timeout=60)
    assert (job.step, job.peak) == (25, 30)
    assert [(attempt.step, attempt.workers) for attempt in job.attempts] == [(20, 3)]
    assert job.lines[1:] == ["chaos: continuing at step 20 of 100 on 3 workers"]
