"""What can go wrong when PTX is read or run."""

from __future__ import annotations

from ...errors import AbqcError


class PtxSyntaxError(AbqcError):
    """The text is not PTX, or names something that is not declared; has the line."""

    def __init__(self, message: str, line: int | None = None, text: str = "") -> None:
        where = "" if line is None else f"PTX line {line}: "
        what = f" in `{text}`" if text else ""
        super().__init__(f"{where}{message}{what}")
        self.line = line
        self.text = text


class PtxFault(AbqcError):
    """A kernel did, or would do on hardware, what no correct kernel does.

    `reason` alone says what happened. `kernel`, `line` (of the PTX), `text` (the instruction),
    `block` and `thread` (three coordinates each) say where, as far as it is known.
    """

    def __init__(
        self,
        reason: str,
        *,
        kernel: str = "",
        line: int | None = None,
        text: str = "",
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
    ) -> None:
        places = [
            f"kernel {kernel}" if kernel else "",
            "" if line is None else f"PTX line {line} `{text}`",
            "" if block is None else f"block {_coordinates(block)}",
            "" if thread is None else f"thread {_coordinates(thread)}",
        ]
        where = ", ".join(place for place in places if place)
        super().__init__(f"{reason} ({where})" if where else reason)
        self.reason = reason
        self.kernel = kernel
        self.line = line
        self.text = text
        self.block = block
        self.thread = thread


class LaneFault(Exception):
    """Inside a batch: `reason`, and the lane (a thread's number in the batch) that is to blame.

    The scheduler knows the instruction and turns it into a `PtxFault`. `line`: that of another
    instruction, which is to blame.
    """

    def __init__(self, reason: str, lane: int | None = None, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason
        self.lane = lane


def _coordinates(point: tuple[int, int, int]) -> str:
    return str(point[0]) if point[1:] == (0, 0) else str(point)
