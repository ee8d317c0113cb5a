"""How the runs of a model went: as graphs of the driver, or kernel by kernel."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


class StatisticsTable(ctypes.Structure):
    """`abqc_statistics` of abqc.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("graph_error", ctypes.c_int32),
        ("graph_call", ctypes.c_char_p),
        ("graph_error_name", ctypes.c_char_p),
        ("graph_runs", ctypes.c_int64),
        ("launched_runs", ctypes.c_int64),
        ("graph_launches", ctypes.c_int64),
        ("graph_path", ctypes.c_int64),
        ("graph_edges", ctypes.c_int64),
        ("dependent_edges", ctypes.c_int64),
    )


# How much of the table libraries know that say nothing of the shape of graphs.
OLDER_SIZE = StatisticsTable.graph_launches.offset


@dataclass(frozen=True)
class GraphShape:
    """The CUDA graph of a run: its launches, those of the longest path that follow each other, and
    how many edges order them. At `dependent` edges a launch begins before the one that it depends
    on has ended (programmatic dependent launch)."""

    launches: int
    path: int
    edges: int
    dependent: int


@dataclass(frozen=True)
class RunStatistics:
    """Runs since the model was loaded that ended well; on a CPU there is nothing to tell.

    `graph_runs` were one CUDA graph. `launched_runs` went kernel by kernel: those of a new sequence
    of kernels (the first run of all), and those whose sizes depend on data. `graph_error`: what the
    driver said when it first refused to make or to change a graph ("cuGraphCreate:
    CUDA_ERROR_..."); None if it never did. Without graphs a model is right, but slower. `graph` is
    that of the last run that was one.
    """

    graph_runs: int = 0
    launched_runs: int = 0
    graph_error: str | None = None
    graph: GraphShape | None = None

    @staticmethod
    def of(table: StatisticsTable) -> RunStatistics:
        """What the library filled in."""
        error = None
        if table.graph_error:
            name = table.graph_error_name or f"CUDA error {table.graph_error}".encode()
            error = f"{(table.graph_call or b'').decode()}: {name.decode()}"
        graph = None
        if table.graph_launches:
            graph = GraphShape(
                table.graph_launches, table.graph_path, table.graph_edges, table.dependent_edges
            )
        return RunStatistics(table.graph_runs, table.launched_runs, error, graph)
