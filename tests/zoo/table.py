"""All models of the zoo, by name."""

from __future__ import annotations

from zoo import exports, packages
from zoo.entry import Entry

_BASES = [*packages.ENTRIES, *exports.ENTRIES]
ENTRIES: list[Entry] = [*_BASES, *exports.of_onnxruntime(_BASES)]
BY_NAME = {entry.name: entry for entry in ENTRIES}
assert len(BY_NAME) == len(ENTRIES), "two models have one name"
