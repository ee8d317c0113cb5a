"""How a process finds out that a CPU has a feature: words of CPUID and XCR0, and bits in them.

After Intel's manual, volume 2, CPUID, and volume 1, 13.3 for XCR0: what the system saves of a
thread, without which registers must not be used.
"""

from __future__ import annotations

from collections.abc import Iterable

# The order of `needs` in shim.h.
WORDS = ("1.ecx", "7.ebx", "7.ecx", "7.edx", "7.1.eax", "80000001.ecx", "xcr0")

# By Linux's name in /proc/cpuinfo.
_BITS = {
    "fma": ("1.ecx", 12),
    "popcnt": ("1.ecx", 23),
    "f16c": ("1.ecx", 29),
    "bmi1": ("7.ebx", 3),
    "avx2": ("7.ebx", 5),
    "bmi2": ("7.ebx", 8),
    "avx512f": ("7.ebx", 16),
    "avx512dq": ("7.ebx", 17),
    "avx512cd": ("7.ebx", 28),
    "avx512bw": ("7.ebx", 30),
    "avx512vl": ("7.ebx", 31),
    "avx512vbmi": ("7.ecx", 1),
    "avx512_vbmi2": ("7.ecx", 6),
    "avx512_vnni": ("7.ecx", 11),
    "avx512_bitalg": ("7.ecx", 12),
    "avx512_vpopcntdq": ("7.ecx", 14),
    "amx_bf16": ("7.edx", 22),
    "amx_tile": ("7.edx", 24),
    "amx_int8": ("7.edx", 25),
    "avx_vnni": ("7.1.eax", 4),
    "avx512_bf16": ("7.1.eax", 5),
    "abm": ("80000001.ecx", 5),
}

_XMM_YMM, _ZMM, TILE_STATE = 0x06, 0xE0, 0x60000
_STATE = {"avx2": _XMM_YMM, "avx512f": _XMM_YMM | _ZMM, "amx_tile": TILE_STATE}


def needed_words(flags: Iterable[str]) -> tuple[int, ...]:
    """What must be set of each word for a CPU to have all of `flags`; KeyError for others."""
    found = dict.fromkeys(WORDS, 0)
    for flag in flags:
        word, bit = _BITS[flag]
        found[word] |= 1 << bit
        found["xcr0"] |= _STATE.get(flag, 0)
    return tuple(found.values())
