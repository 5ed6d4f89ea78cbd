"""The progress of a long command, on stderr: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from dataclasses import dataclass, field
from typing import Self, TextIO

from tqdm import tqdm

from data.quantities import rate, size

LINE_SECONDS = 5.0


@dataclass
class Progress:
    """Counts finished items of a known total; shows their rate and the time left. A context manager.

    Attributes:
        name: of the work, such as "packing digits/train".
        unit: name of the items, in the plural: "images".
        total: number of items.
        done: items that are done. Those that were done at the start do not count for the rate.
        stream: where the bar or the lines go.
    """

    name: str
    unit: str
    total: int
    done: int = 0
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __enter__(self) -> Self:
        self._began = self._shown = time.monotonic()
        self._before = self.done
        self._bar = (
            tqdm(
                total=self.total,
                initial=self.done,
                desc=self.name,
                unit="B" if self.unit == "bytes" else f" {self.unit}",
                unit_scale=self.unit == "bytes",
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
        """Count `count` more items as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS and self.done < self.total:
            self._shown = now
            print(f"{self.name}: {self.line(now - self._began)}", file=self.stream, flush=True)

    def line(self, seconds: float) -> str:
        """The state after `seconds`: '1,200 of 9,000 images (13%), 240.0 images/s, 00:32 left'."""
        share = f"{self.done:,} of {self.total:,} {self.unit}"
        if self.unit == "bytes":
            share = f"{size(self.done)} of {size(self.total)}"
        share += f" ({self.done / self.total:.0%})"
        each_second = (self.done - self._before) / seconds
        if not each_second:
            return share
        left = tqdm.format_interval((self.total - self.done) / each_second)
        return f"{share}, {rate(each_second, self.unit)}, {left} left"
