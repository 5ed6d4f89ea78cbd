"""A trace of a few steps of rank 0 (`profile.steps`): the trace and a page that sums it up, in the run's folder.

    {run}/profile/steps-000010-000015/trace.json.gz     of torch.profiler, for chrome://tracing and ui.perfetto.dev
    {run}/profile/steps-000010-000015/summary.md        written last

MLflow gets the same files. The step before the first one is traced and thrown away, because a profiler is slow at its
start. If workers restart inside the window, the rest of it is traced, and repeated steps are traced again. A failure
here costs a line on the terminal, and training continues.
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
        deliver: called with the folder of the files, relative to the run's, once they are written.
        say: called with lines for the terminal.
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
        self._wanted = steps
        self._engine = engine
        self._run_url = run_url
        self._device = device
        self._workers = workers
        self._deliver = deliver
        self._say = say

        self._first, self._last = steps
        self._step = 0
        self._trace: profile | None = None  # from the step before the first one
        self._label: record_function | None = None  # of the present step, while it is traced
        self._timed: dict[str, float] = {}  # the phases' totals before the first step
        self._writer: threading.Thread | None = None

    def resume(self, step: int) -> None:
        """Training continues after `step` steps of the run. A trace under way is thrown away."""
        self._drop()
        self._first = self._wanted[0]
        if self._first <= step == self._last - 1:
            self._say(f"{self._name()} skipped: only one step of the window is left")
        self._first, self._step = max(self._first, step + 1), step
        self._advance()

    def stepped(self, step: int) -> None:
        """`step` steps of the run are done. Call it in every step."""
        self._step = step
        self._advance()

    def close(self, timeout: float | None = None) -> None:
        """Throw a trace under way away. Wait at most `timeout` seconds for the files of a complete one."""
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
                self._say(f"{self._name()} is cut short after step {self._step}")
                self._end_step()
            else:
                trace.start_trace()  # a trace that is still warming up cannot be stopped
            trace.stop_trace()

    def _write(self, trace: profile, window: Window, earlier: threading.Thread | None) -> None:
        """In the background: sum up, and put the files into the run's folder. Repeated steps replace earlier ones."""
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
        except Exception as error:  # of the profiler, the disk or the store's library
            self._say(f"{self._name()} could not be written ({storage.describe(error)})")
            return
        self._say(f"{self._name()}: {self._run_url}/{folder}/{SUMMARY}")
        self._deliver(folder)

    @contextmanager
    def _never_failing(self) -> Iterator[None]:
        """Catch failures of the profiler: they must not stop training."""
        try:
            yield
        except Exception as error:  # of the profiler's libraries and drivers
            self._trace = self._label = None
            self._say(f"{self._name()} failed ({storage.describe(error)})")

    def _begin_step(self) -> None:
        self._label = record_function(f"{STEP_LABEL}{self._step + 1}")
        self._label.__enter__()

    def _end_step(self) -> None:
        if self._label is not None:
            self._label.__exit__(None, None, None)
            self._label = None

    def _wait_for_device(self) -> None:
        """Wait until the device is idle, so that a trace holds exactly its own steps' kernels."""
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)

    def _activities(self) -> list[ProfilerActivity]:
        on_gpu = self._engine.device.type == "cuda"
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def _name(self) -> str:
        return f"the profile of steps {self._first} to {self._last}"
