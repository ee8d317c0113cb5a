"""The texts of the accuracy table, from Debian's packages, cleaned, in the cache.

    python tests/accuracy/texts.py       # needs apt-get and dpkg-deb

`handbook` is measured on: the paragraphs of the Debian Administrator's Handbook (package
debian-handbook, GPL-2+ or CC-BY-SA 3.0). `jargon` (The Jargon File 4.4.7, package dict-jargon,
public domain) and `python` (package python3.11-doc, PSF licence) are calibrated on; nothing is
ever calibrated on what is measured. Each becomes one UTF-8 file, paragraphs parted by an empty
line, in the folder `accuracy` of the cache of models/fetch.py.
"""

from __future__ import annotations

import gzip
import html
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.fetch import Unavailable, cache_directory

PARAGRAPH = re.compile(r'<p(?:\s[^>]*)?>(.*?)</p>|<div class="para">(.*?)</div>', re.DOTALL)
SHORTEST = 80  # characters; leaves out captions, headings and navigation
PYTHON_FOLDERS = ("tutorial", "howto", "faq", "using", "library")
PYTHON_SIDEBAR = '<div class="sphinxsidebar"'


@dataclass(frozen=True)
class Text:
    """A Debian package and the function that finds paragraphs in its unpacked files."""

    package: str
    paragraphs: Callable[[Path], list[str]]


def html_paragraphs(page: str) -> list[str]:
    """The plain text of a page's paragraphs."""
    body = re.sub(r"<(script|style|head).*?</\1>", "", page, flags=re.DOTALL)
    texts = (re.sub(r"<[^>]+>", "", a or b) for a, b in PARAGRAPH.findall(body))
    flat = (" ".join(html.unescape(text).split()) for text in texts)
    return [text for text in flat if len(text) > SHORTEST]


def dictionary_paragraphs(text: str) -> list[str]:
    """The paragraphs of a dict file's definitions, without the braces of its cross references."""
    flat = (
        " ".join(re.sub(r"[{}]", "", block).split())
        for block in re.split(r"\n\s*\n", text)
        if block.startswith("    ")
    )
    return [text for text in flat if len(text) > SHORTEST]


def _handbook(root: Path) -> list[str]:
    pages = sorted(root.glob("usr/share/doc/debian-handbook/html/en-US/*.html"))
    return [p for page in pages for p in html_paragraphs(page.read_text("utf-8", "ignore"))]


def _python(root: Path) -> list[str]:
    base = root / "usr/share/doc/python3.11/html"
    pages = [page for folder in PYTHON_FOLDERS for page in sorted(base.glob(f"{folder}/*.html"))]
    bodies = (page.read_text("utf-8", "ignore").split(PYTHON_SIDEBAR)[0] for page in pages)
    return [p for body in bodies for p in html_paragraphs(body)]


def _jargon(root: Path) -> list[str]:
    content = gzip.decompress((root / "usr/share/dictd/jargon.dict.dz").read_bytes())
    return dictionary_paragraphs(content.decode("utf-8", "ignore"))


TEXTS = {
    "handbook": Text("debian-handbook", _handbook),
    "jargon": Text("dict-jargon", _jargon),
    "python": Text("python3.11-doc", _python),
}


def folder() -> Path:
    """Where texts, token files and results of the accuracy table are kept."""
    return cache_directory() / "accuracy"


def fetch_text(name: str) -> Path:
    """The file of a text in TEXTS, made where it is not there. Raises Unavailable."""
    target = folder() / f"{name}.txt"
    if target.exists():
        return target
    text = TEXTS[name]
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        _unpack_package(text.package, Path(scratch))
        found = text.paragraphs(Path(scratch))
        if not found:
            raise Unavailable(f"Debian's package {text.package} holds no text where it was")
        made = Path(scratch) / target.name
        made.write_text("\n\n".join(found) + "\n", encoding="utf-8")
        made.replace(target)
    return target


def _unpack_package(package: str, scratch: Path) -> None:
    try:
        _run(["apt-get", "download", "-q", package], scratch)
        archive = next(scratch.glob("*.deb"))
        _run(["dpkg-deb", "-x", str(archive), str(scratch)], scratch)
    except (OSError, StopIteration) as error:
        raise Unavailable(f"Debian's package {package} cannot be had here: {error}") from error


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Unavailable(f"`{' '.join(command)}` failed: {reason[0]}")


def sentences(name: str, count: int) -> list[str]:
    """`count` sentences of 6 to 40 words, each once, spread evenly over a text.

    Raises Unavailable.
    """
    text = fetch_text(name).read_text("utf-8")
    found = dict.fromkeys(
        sentence
        for paragraph in text.split("\n\n")
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph.strip())
        if 6 <= len(sentence.split()) <= 40 and sentence[0].isupper() and sentence[-1] in ".!?"
    )
    if len(found) < count:
        raise Unavailable(f"'{name}' has {len(found)} sentences, {count} are needed")
    chosen = list(found)
    return [chosen[i * len(chosen) // count] for i in range(count)]


if __name__ == "__main__":
    try:
        for text_name in TEXTS:
            print(fetch_text(text_name))
    except Unavailable as failure:
        sys.exit(str(failure))
