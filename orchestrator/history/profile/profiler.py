"""A trace of a few steps of rank 0 (`profile.steps`): the trace and a page that sums it up, beside the run.

    {run}/profile/steps-000010-000015/trace.json.gz     of torch.profiler, for chrome://tracing and ui.perfetto.dev
    {run}/profile/steps-000010-000015/summary.md        written last

MLflow gets the same files. The step before the first one is traced and thrown away: a profiler that starts is slow.
Where workers start again inside the window, the rest of it is traced, and steps that are done again are traced again.
Whatever goes wrong here is said in a line, and training goes on.
"""

import gzip
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data import storage
from orchestrator.engine.step import Engine
from orchestrator.history.profile.page import summarise
from orchestrator.history.profile.trace import STEP_LABEL, Window

TRACE, SUMMARY = "trace.json.gz", "summary.md"


class Profiler:
    """Traces one window of a run's steps. Made by rank 0 only.

    Args:
        steps: [first, last], as `profile.steps` of the job.
        run_url: the run's folder.
        device, workers: of the run, for the page: the device's name, the number of workers.
        deliver: is given the folder of the files, relative to the run's, when they are there.
        say: is given lines for the person at the terminal.
    """

    def __init__(
        self,
        steps: tuple[int, int],
        engine: Engine,
        run_url: str,
        *,
        device: str,
        workers: int,
        deliver: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._wanted, self._engine, self._run_url = steps, engine, run_url
        self._device, self._workers = device, workers
        self._deliver, self._say = deliver, say
        self._first, self._last, self._step = *steps, 0
        self._trace: profile | None = None  # from the step before the first one on
        self._label: record_function | None = None  # of the present step, while it is recorded
        self._timed: dict[str, float] = {}  # the phases' totals before the first step
        self._writer: threading.Thread | None = None

    def resume(self, step: int) -> None:
        """The workers go on from `step` steps of the run. What was being recorded is thrown away."""
        self._drop()
        self._first = self._wanted[0]
        if self._first <= step == self._last - 1:
            self._say(f"{self._name()} is cut off: one step is left, and a first one says little")
        self._first, self._step = max(self._first, step + 1), step
        self._advance()

    def stepped(self, step: int) -> None:
        """`step` steps of the run are done. Call it in every step."""
        self._step = step
        self._advance()

    def close(self, timeout: float | None = None) -> None:
        """Throw away what is being recorded. Wait for the files of a window that is over, at most `timeout` seconds."""
        self._drop()
        if self._writer is not None:
            self._writer.join(timeout)

    def _advance(self) -> None:
        with self._never_failing():
            if self._trace is None:
                if self._step == self._first - 1 and self._first < self._last:
                    self._trace = profile(activities=self._activities())
                    self._trace.prepare_trace()
            elif self._step == self._last:
                self._finish(self._trace)
            elif self._step == self._first:
                self._wait_for_device()
                self._timed = self._engine.phases.totals()
                self._trace.start_trace()
                self._begin_step()
            elif self._step > self._first:
                self._end_step()
                self._begin_step()

    def _finish(self, trace: profile) -> None:
        self._wait_for_device()
        self._end_step()
        trace.stop_trace()
        self._trace = None
        spent = self._engine.phases.since(self._timed)
        window = Window(self._first, self._last, self._device, self._workers, spent)
        self._writer = threading.Thread(
            target=self._write, args=(trace, window, self._writer), name="profile", daemon=True
        )
        self._writer.start()

    def _drop(self) -> None:
        """End a trace before its time."""
        trace, self._trace = self._trace, None
        if trace is None:
            return
        with self._never_failing():
            if self._label is not None:
                self._say(f"{self._name()} is cut off after step {self._step}")
                self._end_step()
            else:
                trace.start_trace()  # one that only warms up cannot be stopped
            trace.stop_trace()

    def _write(self, trace: profile, window: Window, earlier: threading.Thread | None) -> None:
        """In the background: sum up, and put the files beside the run. Of steps that were done again, the later ones
        stay."""
        if earlier is not None:
            earlier.join()
        folder = f"profile/steps-{window.first:06d}-{window.last:06d}"
        try:
            with tempfile.TemporaryDirectory(prefix="vit-profile-") as local:
                file, page = Path(local, TRACE), Path(local, SUMMARY)
                trace.export_chrome_trace(str(file))
                with gzip.open(file) as content:
                    page.write_text(summarise(json.load(content)["traceEvents"], window))
                for path in (file, page):
                    storage.put_file(path, f"{self._run_url}/{folder}/{path.name}")
        except Exception as error:  # of the profiler, the disk or whatever library speaks to the store
            self._say(f"{self._name()} could not be written ({storage.describe(error)})")
            return
        self._say(f"{self._name()}: {self._run_url}/{folder}/{SUMMARY}")
        self._deliver(folder)

    @contextmanager
    def _never_failing(self) -> Iterator[None]:
        """A profiler that fails is given up, and no reason to stop training."""
        try:
            yield
        except Exception as error:  # of the profiler's libraries and drivers
            self._trace = self._label = None
            self._say(f"{self._name()} was given up ({storage.describe(error)})")

    def _begin_step(self) -> None:
        self._label = record_function(f"{STEP_LABEL}{self._step + 1}")
        self._label.__enter__()

    def _end_step(self) -> None:
        if self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None

    def _wait_for_device(self) -> None:
        """So that a trace holds its own steps' kernels, and all of them."""
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)

    def _activities(self) -> list[ProfilerActivity]:
        on_gpu = self._engine.device.type == "cuda"
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def _name(self) -> str:
        return f"the profile of steps {self._first} to {self._last}"
