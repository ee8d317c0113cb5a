"""Put the text of the Debian Administrator's Handbook into the cache, for perplexity.

    python tests/models/make_handbook.py      # needs apt-get and dpkg-deb

Takes the paragraphs of the English edition from Debian's package debian-handbook (GPL-2+ or
CC-BY-SA 3.0) and writes handbook.txt into the cache directory of fetch.py.
"""

from __future__ import annotations

import html
import re
import subprocess
import tempfile
from pathlib import Path

from fetch import cache_directory

PAGES = "usr/share/doc/debian-handbook/html/en-US/*.html"
PARAGRAPH = re.compile(r'<p[^>]*>(.*?)</p>|<div class="para">(.*?)</div>', re.DOTALL)
SHORTEST = 80  # characters; leaves out captions and navigation


def paragraphs(page: str) -> list[str]:
    """The plain text of a page's paragraphs."""
    body = re.sub(r"<(script|style|head).*?</\1>", "", page, flags=re.DOTALL)
    texts = (re.sub(r"<[^>]+>", "", a or b) for a, b in PARAGRAPH.findall(body))
    flat = (" ".join(html.unescape(text).split()) for text in texts)
    return [text for text in flat if len(text) > SHORTEST]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "debian-handbook"], cwd=scratch, check=True)
        package = next(Path(scratch).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
        pages = sorted(Path(scratch).glob(PAGES))
        found = [p for page in pages for p in paragraphs(page.read_text("utf-8", "ignore"))]
    target = cache_directory() / "handbook.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(found), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
