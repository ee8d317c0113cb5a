"""The float model's logits on the windows that are measured, kept on the disk in f32.

Every row compares with the same logits, and onnxruntime needs longer for a window than most
compiled models: 40 windows of SmolLM2 take 4 GB in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from abqc.compiler.onnxruntime_peer import Peer

LOGITS = "logits"


class CachedLogits:
    """The float model as `compare_windows` runs it: of its outputs, `logits` alone are given."""

    def __init__(self, model: Path, directory: Path, threads: int = 2) -> None:
        self.directory = directory
        self.peer = Peer(model, threads=threads)
        self.at = self.peer.outputs.index(LOGITS)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[int, np.ndarray]:
        """The outputs by number: that of `logits` alone."""
        key = hashlib.sha256(np.ascontiguousarray(feeds["input_ids"]).tobytes()).hexdigest()[:16]
        path = self.directory / f"{key}.npy"
        if not path.exists():
            self._make(path, feeds)
        return {self.at: np.load(path, mmap_mode="r")}

    def _make(self, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
        logits = self.peer.run(feeds)[self.at]
        self.directory.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".tmp.npy")
        np.save(made, logits)
        made.replace(path)
