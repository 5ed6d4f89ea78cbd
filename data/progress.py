"""How far a long command has come, on stderr: a bar on a terminal, one line every few seconds in a log."""

import sys
import time
from dataclasses import dataclass, field
from typing import Self, TextIO

from tqdm import tqdm

LINE_SECONDS = 5.0


@dataclass
class Progress:
    """Counts things done, of a known total, and tells the rate and the time left. A context manager.

    Attributes:
        name: what is being done.
        unit: of what is counted, in the plural: "images".
        total: how many there are.
        done: how many are done; those that are done before it begins do not count for the rate.
        stream: where to write.
    """

    name: str
    unit: str
    total: int
    done: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __enter__(self) -> Self:
        self._began = self._told = time.monotonic()
        self._before = self.done
        self._bar = (
            tqdm(
                total=self.total,
                initial=self.done,
                desc=self.name,
                unit=f" {self.unit}",
                file=self.stream,
                dynamic_ncols=True,
            )
            if self.stream.isatty()
            else None
        )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS and self.done < self.total:
            self._told = now
            print(f"{self.name}: {self.line(now - self._began)}", file=self.stream, flush=True)

    def line(self, seconds: float) -> str:
        """Where it stands after `seconds`: '1,200 of 9,000 images (13%), 240.0 images/s, 00:32 left'."""
        share = f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
        rate = (self.done - self._before) / seconds
        if not rate:
            return share
        left = tqdm.format_interval((self.total - self.done) / rate)
        return f"{share}, {rate:,.1f} {self.unit}/s, {left} left"
