"""How K is cut for integer kernels: groups, segments that int32 holds, and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.align import align
from abqc.codegen.builder import Builder, Value
from abqc.dialects.formats import Scheme

SEGMENT_TERMS = 32768  # so many terms of 8 x 8 bits fit int32 (docs/numerics.md)


@dataclass(frozen=True)
class Reduction:
    """K as groups of equal size (the last may be short), each cut into segments of equal length.

    A segment is what int32 can sum; groups of more than `SEGMENT_TERMS` terms have several, and a
    short last group may have empty ones. Each segment begins at a multiple of `unit` in the packed
    rows, the gap filled with padding.
    """

    k: int
    group_size: int
    unit: int

    @staticmethod
    def of(k: int, weight: Scheme, unit: int) -> Reduction:
        return Reduction(k, min(weight.group_size or k, k), unit)

    @cached_property
    def n_groups(self) -> int:
        return -(-self.k // self.group_size)

    @cached_property
    def segments_per_group(self) -> int:
        return -(-self.group_size // SEGMENT_TERMS)

    @cached_property
    def n_segments(self) -> int:
        return self.n_groups * self.segments_per_group

    @cached_property
    def segment_size(self) -> int:
        """Terms of every segment but a group's last one."""
        return min(self.group_size, SEGMENT_TERMS)

    @cached_property
    def segment_pitch(self) -> int:
        """Packed elements from one segment's begin to the next one's."""
        return align(self.segment_size, self.unit)

    @cached_property
    def padded_k(self) -> int:
        """Packed elements of a row; the last segment is not padded to the full pitch."""
        segments = [pair for pair in self.bounds() if pair[0] < pair[1]]
        last = len(segments) - 1
        begin, end = segments[last]
        return self.index_of(begin) * self.segment_pitch + align(end - begin, self.unit)

    def index_of(self, begin: int) -> int:
        """The index of the segment that begins at term `begin`."""
        group, offset = divmod(begin, self.group_size)
        return group * self.segments_per_group + offset // self.segment_size

    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end, in K, of each segment; empty ones have begin == end."""
        out = []
        for group in range(0, self.k, self.group_size):
            group_end = min(group + self.group_size, self.k)
            for s in range(self.segments_per_group):
                begin = min(group + s * self.segment_size, group_end)
                out.append((begin, min(begin + self.segment_size, group_end)))
        return out

    def divides(self, lanes: int) -> bool:
        """Whether `lanes` divides the length of every segment."""
        return all((end - begin) % lanes == 0 for begin, end in self.bounds())

    @cached_property
    def uniform(self) -> bool:
        """Whether all segments have one length."""
        return len({end - begin for begin, end in self.bounds()}) == 1

    def emit_terms(self, b: Builder, group: Value, j: Value) -> Value:
        """The length (index) of segment `j` of a group."""
        if self.uniform:
            return b.index(self.segment_size)
        group_terms = b.min(self.k - group * self.group_size, b.index(self.group_size))
        left = group_terms - j * self.segment_size
        return b.max(b.min(left, self.segment_size), 0)

    def emit_segments(self, b: Builder, body: Callable[[Value, Value, Value], None]) -> None:
        """Loop `body(segment, begin in K, terms)` over all segments."""
        with b.loop(0, self.n_groups) as groups, b.loop(0, self.segments_per_group) as parts:
            segment = groups.i * self.segments_per_group + parts.i
            begin = groups.i * self.group_size + parts.i * self.segment_size
            body(segment, begin, self.emit_terms(b, groups.i, parts.i))
