"""Where the time of a run on a CPU goes: its launches, each with its begin and end.

profile = Profile()
model.run(inputs, profile=profile)
for launch in profile.launches:
    print(model.manifest["launches"][launch["launch"]]["node"], launch["end"] - launch["begin"])
"""

from __future__ import annotations

import ctypes

import numpy as np

LAUNCH = np.dtype([("launch", "i8"), ("rows", "i8"), ("begin", "i8"), ("end", "i8")])


class _Table(ctypes.Structure):
    """`abqc_profile` of abqc.h."""

    _fields_ = (
        ("launches", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("count", ctypes.c_int64),
    )


class Profile:
    """Memory for the launches of one run at a time.

    Where there are more than `capacity` of them (a model that loops), `missing` says how many were
    not noted.
    """

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._records = np.zeros(capacity, LAUNCH)
        self._table = _Table(self._records.ctypes.data, capacity, 0)

    @property
    def address(self) -> int:
        """Of the structure that a run takes."""
        return ctypes.addressof(self._table)

    @property
    def launches(self) -> np.ndarray:
        """Those of the last run, in order (LAUNCH): `launch` is a place in the manifest's
        `launches`, `rows` those of a product with weights, `begin` and `end` are nanoseconds of
        `time.monotonic_ns()`. A copy."""
        return self._records[: self._table.count].copy()

    @property
    def missing(self) -> int:
        """Launches of the last run that found no room."""
        return max(self._table.count - len(self._records), 0)
