"""The error of a job that cannot run, and how its line shows a key and its value."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator.redact import redact_text
from orchestrator.wording import one_line

LONGEST_VALUE = 120  # characters
ABSENT = object()


class JobError(ValueError):
    """A job that cannot run. Each line of its text is one mistake: the file, the key, the value, what to do.

    Args:
        lines: one or more. Line breaks in a line become spaces, and credentials are removed.

    Attributes:
        lines: the mistakes, each once.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(dict.fromkeys(redact_text(" ".join(line.splitlines())) for line in lines))
        super().__init__(*self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Mistakes:
    """Collects the errors of several checks, so that all are reported at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """The rest of the block is left out after a JobError; its lines are kept."""
        try:
            yield
        except JobError as error:
            self.add(error)

    def add(self, error: JobError) -> None:
        """Keep the lines of an error."""
        self._lines += error.lines

    def report(self) -> None:
        """Raise all that was collected, as one JobError; nothing if there is none."""
        if self._lines:
            raise JobError(*self._lines)


@contextmanager
def unexpected_errors_in(source: str) -> Iterator[None]:
    """Turns every error into one line. File systems, clouds and parsers each have errors of their own.

    Raises:
        JobError: in place of any other exception.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        reason = one_line(error) or "no further explanation"
        raise JobError(f"{source}: {type(error).__name__}: {reason}") from error


def lookup(raw: Any, parts: Sequence[str]) -> Any:
    """The value of a key in nested mappings, or `ABSENT`."""
    for part in parts:
        if not isinstance(raw, dict) or part not in raw:
            return ABSENT
        raw = raw[part]
    return raw


def with_value(raw: Any, parts: Sequence[str]) -> str:
    """A key and its value, as in `model.image_size = 225`; the key alone if it is absent."""
    value = lookup(raw, parts)
    return ".".join(parts) + ("" if value is ABSENT else f" = {shown(value)}")


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line, cut to `LONGEST_VALUE`."""
    import yaml  # not at the top: the training step alone needs the error and no job file

    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError:  # a Python object, from a mapping of overrides
        text = repr(value)
    text = text.strip().removesuffix("\n...")
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def did_you_mean(value: Any, words: Sequence[str]) -> str:
    """The end of a line that suggests the nearest of the words; empty if none is near."""
    near = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""
