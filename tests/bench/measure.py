"""Measurements that the benchmarks share: compiling in a process of its own, decoding steps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from abqc.runtime.artifact import manifest_of
from abqc.runtime.model import Model

POLL_SECONDS = 0.05

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Compiled:
    """A compile as a user sees it: seconds of the whole command, peak memory of its processes."""

    library: Path
    seconds: float
    peak_bytes: int

    @property
    def bytes(self) -> int:
        return self.library.stat().st_size

    @property
    def overhead(self) -> int:
        """Bytes of the artifact beyond weights, scales and constants."""
        return self.bytes - manifest_of(self.library)["bytes"]["weights"]


def compile_model(model: Path, recipe: str, library: Path) -> Compiled:
    """Run `abqc compile` and watch it. Raises RuntimeError where it fails."""
    command = [sys.executable, "-m", "abqc.compiler.cli", "compile"]
    command += [str(model), "-o", str(library), "--quant", recipe]
    started = time.perf_counter()
    peak = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of_group(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read().decode())
    return Compiled(library, seconds, peak)


def memory_of_group(group: int) -> int:
    """Bytes in use by the processes of a group, shared pages counted once (PSS)."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getpgid(int(entry.name)) == group:
                total += _pss(entry)
        except (OSError, ProcessLookupError):
            continue
    return total


def _pss(entry: Path) -> int:
    for line in (entry / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


class Decoder:
    """smollm2 with caches in fixed buffers that the model grows in place."""

    def __init__(self, model: Model, capacity: int) -> None:
        self.model = model
        names = [spec.name for spec in model.inputs if spec.name.startswith("past")]
        self.caches = {name: np.zeros((1, 3, capacity, 64), np.float32) for name in names}
        self.length = 0

    def step(self, ids: np.ndarray) -> np.ndarray:
        """Append the tokens `ids` [count]; logits [count, vocabulary]."""
        begin, end = self.length, self.length + len(ids)
        feeds = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end)[None],
        }
        past = {name: cache[:, :, :begin] for name, cache in self.caches.items()}
        present = {
            name.replace("past_key_values", "present"): cache[:, :, :end]
            for name, cache in self.caches.items()
        }
        self.length = end
        return self.model.run(feeds | past, outputs=present)[0][0]
