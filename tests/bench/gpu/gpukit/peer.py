"""What all other engines' products have in common: cases, operands, checks, times.

A peer is a class of `peer_*.py`. It is opened once a process, prepares the weights of a case and
says how its product is launched.
"""

from __future__ import annotations

import importlib.util
import lzma
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# How far results may be from those of exact rows, over the size of all of them: rows of 8 and 4
# bits are off by half a step of their largest value.
TOLERANCE = {16: 1e-2, 8: 3e-2, 4: 0.3}

Launch = Callable[[int], Any]  # of the copy of the weight with this number


@dataclass(frozen=True)
class Case:
    """A format as the table calls it, `W<bits>A<bits>`; `group` rows of the weight share a scale
    (0: all of a column)."""

    format: str
    group: int = 0

    @property
    def bits(self) -> tuple[int, int]:
        """Of the weights and of the activations."""
        found = re.fullmatch(r"W(\d+)A(\d+)", self.format)
        assert found, self.format
        return int(found[1]), int(found[2])

    @property
    def label(self) -> str:
        return f"{self.format} g{self.group}" if self.group else self.format


@dataclass(frozen=True)
class Operands:
    """Copies of a weight as the peer lays it out; `dense` is f32 [n, k] of what they mean."""

    weights: list[Any]
    dense: Any
    extra: Any = None


class Peer:
    """One engine. Methods may raise whatever the engine does."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()  # of the folder of peers
    module: ClassVar[str] = ""  # does instead of the files, where it is installed
    dtype: ClassVar[str] = "float16"  # of activations
    version = ""

    def tolerance(self, case: Case) -> float:
        return TOLERANCE[case.bits[1]]

    def __init__(self, torch: Any, folder: Path) -> None:
        self.torch = torch
        self.folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self.open()

    def open(self) -> None:
        """Load what the peer needs."""

    def takes(self, case: Case, m: int, n: int, k: int) -> str:
        """Why it does not do this product; "": it does."""
        return ""

    def operands(self, case: Case, n: int, k: int, copies: int) -> Operands:
        raise NotImplementedError

    def launches(self, case: Case, operands: Operands, x: Any) -> tuple[Launch, Launch | None]:
        """The product of x [m, k] alone, and with quantizing x where that is the peer's own work.
        Both give the output [m, n]."""
        raise NotImplementedError

    @classmethod
    def missing(cls, folder: Path) -> str:
        """Why it cannot be opened on this machine; "": nothing is known."""
        lacks = [name for name in cls.files if not (folder / name).exists()]
        if not lacks or (cls.module and importlib.util.find_spec(cls.module)):
            return ""
        return f"there is no peers/{lacks[0]} in the kit"

    # Random numbers

    def random_codes(self, bits: int, n: int, k: int) -> Any:
        """int32 [n, k], 0 to 2**bits - 1."""
        torch = self.torch
        return torch.randint(0, 2**bits, (n, k), dtype=torch.int32, device="cuda")

    def random_scales(self, n: int, groups: int) -> Any:
        """f32 [n, groups]."""
        return (self.torch.rand(n, groups, device="cuda") + 0.5) / 64

    def dense(self, values: Any, scale: Any) -> Any:
        """f32 [n, k] of integers [n, k] and scales [n, groups]."""
        n, k = values.shape
        groups = scale.shape[1]
        return (values.float().view(n, groups, k // groups) * scale.float()[..., None]).view(n, k)

    # Files

    @property
    def scratch(self) -> Path:
        """A folder of this process."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="abqc-peer-")
        return Path(self._scratch.name)

    def library(self, name: str) -> Path:
        """`<library>.xz` of the folder, unpacked."""
        path = self.scratch / name.removesuffix(".xz")
        path.write_bytes(lzma.decompress((self.folder / name).read_bytes()))
        return path

    def imported(self) -> Any:
        """Its module: of the archive in the folder, or as it is installed."""
        archive = self.folder / self.files[0]
        if archive.exists():
            site = self.scratch / "site"
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    path = Path(file.extract(entry, site))
                    if path.is_file() and entry.external_attr >> 16:
                        path.chmod(entry.external_attr >> 16 & 0o777)
            sys.path.insert(0, str(site))
        return importlib.import_module(self.module)


def clones(weight: Any, copies: int) -> list[Any]:
    """A clone keeps the strides."""
    return [weight, *(weight.clone() for _ in range(copies - 1))]
