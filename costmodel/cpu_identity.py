"""What CPU this is, as Linux tells, and which instruction sets of our kernels it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

CPU_INFO = Path("/proc/cpuinfo")

# What tells CPUs apart that run the best kernels of a width; best first.
_TELLING: dict[str, frozenset[str]] = {
    "avx512": frozenset({"avx512bw", "avx512_vnni", "avx512_vpopcntdq", "avx512vbmi"}),
    "avx2": frozenset({"avx2", "fma"}),
    "plain": frozenset(),
}


@dataclass(frozen=True)
class CpuIdentity:
    """`vendor`, `family` and `model` are those of CPUID leaves 0 and 1, as Linux prints them."""

    vendor: str
    family: int
    model: int
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From the text of /proc/cpuinfo; None where it does not say."""
        fields: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        try:
            family, model = int(fields["cpu family"]), int(fields["model"])
            return cls(fields["vendor_id"], family, model, frozenset(fields["flags"].split()))
        except (KeyError, ValueError):
            return None

    @classmethod
    def of_this_machine(cls) -> Self | None:
        try:
            return cls.parse(CPU_INFO.read_text())
        except (OSError, UnicodeDecodeError):
            return None

    @property
    def best_isa(self) -> str:
        """The best instruction set of all kernels that it has."""
        return next(isa for isa, flags in _TELLING.items() if flags <= self.flags)

    @property
    def text(self) -> str:
        return f"{self.vendor} family {self.family} model {self.model}"
