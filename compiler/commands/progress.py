"""Progress of long steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

WIDTH = 24
SECONDS_BETWEEN_LINES = 30
CLEAR_LINE = "\r\x1b[2K"


class Progress:
    """Call it as work goes on: the step, and how many of its parts are done.

    A bar shows the parts; in plain lines a step shows when it begins, and how far it is every
    half minute.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.bar = self.stream.isatty()
        self.step: str | None = None
        self.started = time.perf_counter()
        self.step_started = self.last_line = 0.0

    def __call__(self, step: str, done: int = 0, total: int = 1) -> None:
        seconds = time.perf_counter() - self.started
        if step != self.step:
            self.step_started = self.last_line = seconds
        left = _time_left(seconds - self.step_started, done, total)
        if self.bar:
            filled = WIDTH * min(done, total) // max(total, 1)
            bar = f"[{'#' * filled}{'.' * (WIDTH - filled)}]"
            self._write(f"{CLEAR_LINE}{bar} {seconds:.1f} s  {step}{left}")
        elif step != self.step:
            self._write(f"{seconds:6.1f} s  {step}\n")
        elif seconds - self.last_line > SECONDS_BETWEEN_LINES:
            self._write(f"{seconds:6.1f} s  {step} {done}/{total}{left}\n")
            self.last_line = seconds
        self.step = step

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar:
            self._write(CLEAR_LINE)


def _time_left(seconds: float, done: int, total: int) -> str:
    """What a step will still take, if its parts take as long as those that are done."""
    if done < 1 or done >= total or seconds < SECONDS_BETWEEN_LINES / 2:
        return ""
    return f", {seconds / done * (total - done):.0f} s left"
