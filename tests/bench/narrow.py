"""Models on a narrower instruction set than this CPU has, beside a peer limited to it.

oneDNN, which OpenVINO computes with, reads ONEDNN_MAX_CPU_ISA when it is first used: so a process
of its own measures, which gets a JSON object on stdin and writes one on stdout. OpenVINO's
compressed weights are left out: limited to AVX2, version 2026.4.1 returns empty outputs for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIMITED = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
ISA = "avx2"


def measure(model: Path, libraries: dict[str, Path], size: str, folder: Path) -> dict[str, float]:
    """Milliseconds, one thread: of `libraries` by recipe with AVX2 and with the best instruction
    set of this CPU, and of OpenVINO in f32 limited to AVX2; `size` is one of bench_models.SIZES."""
    question = {
        "model": str(model),
        "libraries": {recipe: str(path) for recipe, path in libraries.items()},
        "size": [model.parent.name, size],
        "folder": str(folder),
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        env=os.environ | LIMITED,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{__file__} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer(question: dict[str, Any]) -> dict[str, float]:
    import abqc
    from bench.bench_models import SIZES, in_turns, run_of
    from bench.peers import OpenVino

    name, size = question["size"]
    feeds = SIZES[name][size]
    sides = {}
    for recipe, path in question["libraries"].items():
        for isa in (None, ISA):
            engine = abqc.load(path, threads=1, isa=isa)
            sides[f"abqc {recipe}{', ' + isa if isa else ''}"] = run_of(engine, feeds)
    peer = OpenVino(Path(question["model"]), "f32", 1, Path(question["folder"]))
    sides["OpenVINO f32, avx2"] = run_of(peer, feeds)
    return in_turns(sides)


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
