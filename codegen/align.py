"""Sizes rounded up."""

from __future__ import annotations


def align(value: int, to: int) -> int:
    """`value` rounded up to a multiple of `to`."""
    return -(-value // to) * to
