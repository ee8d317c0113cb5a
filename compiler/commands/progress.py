"""Progress of long steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

WIDTH = 24
CLEAR_LINE = "\r\x1b[2K"


class Progress:
    """Call it with the name of each step as it begins, and how much of the whole is done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.bar = self.stream.isatty()
        self.started = time.perf_counter()

    def __call__(self, step: str, fraction: float | None = None) -> None:
        seconds = time.perf_counter() - self.started
        if not self.bar:
            self._write(f"{seconds:6.1f} s  {step}\n")
            return
        filled = round(WIDTH * min(max(fraction or 0.0, 0.0), 1.0))
        bar = "" if fraction is None else f"[{'#' * filled}{'.' * (WIDTH - filled)}] "
        self._write(f"{CLEAR_LINE}{bar}{seconds:.1f} s  {step}")

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
