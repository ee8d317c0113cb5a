"""Fetch or export the models of the zoo into the cache (tests/models/fetch.py says where).

    python tests/zoo/make.py [GLOB ...] [--python PATH] [--list]

What is there stays. What cannot be had is said with the reason, at the end. Models of PyTorch and
scikit-learn are written in a process of the interpreter `--python` (or ABQC_ZOO_PYTHON), so that
their libraries need not be in the environment of the tests:

    python -m venv ENV && ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install transformers==5.24.0 onnx onnxruntime onnxscript scikit-learn skl2onnx
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.fetch import Unavailable, cache_directory, exported, fetch_source
from zoo.entry import Entry, Product, Script, Source, chosen
from zoo.table import BY_NAME, ENTRIES

MODEL = "model.onnx"
WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
from pathlib import Path
import_module('zoo.' + sys.argv[2]).make(sys.argv[3], sys.argv[4], Path(sys.argv[5]))
"""
PRODUCE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from zoo.products import make
from zoo.table import BY_NAME
make(sys.argv[2], BY_NAME[sys.argv[3]], Path(sys.argv[4]), Path(sys.argv[5]))
"""


def path_of(entry: Entry) -> Path | None:
    """The model's file where it is in the cache already."""
    match entry.source:
        case Source() as source:
            path = cache_directory() / entry.name / source.name
        case Script(module=""):
            path = cache_directory() / entry.source.function / MODEL
        case _:
            path = cache_directory() / "zoo" / entry.name / MODEL
    return path if path.exists() else None


def make(entry: Entry, python: str = sys.executable) -> Path:
    """The model's file, fetched or written where it is not there. Raises Unavailable."""
    found = path_of(entry)
    if found is not None:
        return found
    tests = str(Path(__file__).resolve().parent.parent)
    match entry.source:
        case Source() as source:
            return fetch_source(source, cache_directory() / entry.name)
        case Script(module="", function=function):
            return exported(function)
        case Script(module=module, function=function, variant=variant):
            return _write(entry, [python, "-c", WRITE, tests, module, function, variant])
        case Product(base=base, tool=tool):
            source_path = str(make(BY_NAME[base], python))
            return _write(entry, [python, "-c", PRODUCE, tests, tool, base, source_path])


def _write(entry: Entry, command: list[str]) -> Path:
    """Run `command` with a folder of its own, which becomes the model's when it has succeeded."""
    folder = cache_directory() / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        target = Path(scratch) / entry.name / MODEL
        target.parent.mkdir()
        done = subprocess.run([*command, str(target)], capture_output=True, text=True)
        if done.returncode != 0 or not target.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing was written"]
            raise Unavailable(f"{entry.name} cannot be made: {lines[-1].strip()}")
        made = folder / entry.name
        if not made.exists():  # else another process was faster
            target.parent.replace(made)
    return made / MODEL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="GLOB")
    parser.add_argument("--python", default=os.environ.get("ABQC_ZOO_PYTHON", sys.executable))
    parser.add_argument("--list", action="store_true", help="say what there is, make nothing")
    arguments = parser.parse_args()
    missing: dict[str, str] = {}
    for entry in chosen(ENTRIES, arguments.patterns):
        if arguments.list:
            state = "" if path_of(entry) else "  (not made)"
            print(f"{entry.name:34} {entry.licence:24} {entry.what}{state}")
            continue
        started = time.perf_counter()
        try:
            path = make(entry, arguments.python)
            size = sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file())
            seconds = time.perf_counter() - started
            print(f"{entry.name:34} {size / 1e6:8.1f} MB {seconds:6.1f} s", flush=True)
        except Unavailable as error:
            missing[entry.name] = str(error)
            print(f"{entry.name:34} cannot be had", flush=True)
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
