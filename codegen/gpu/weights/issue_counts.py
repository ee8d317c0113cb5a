"""How many instructions the kernels over packed weights (layout.py) issue, for the cost model.

Read from the machine code for sm_90a; tests/bench/gpu/issue_slots.py prints what it has now. Counts
are of a lane; `decode` is by code, the rest by unit of K (32 codes) or by stage.
"""

from __future__ import annotations

from ..arch import WARP
from ..packing.layout import K_UNIT
from ..tiles.plan import TilePlan
from ..wgmma.plan import HALF_BLOCKS, PRODUCERS, WgmmaPlan
from .layout import BLOCK_COLUMNS, BLOCKS, LANE_CODES, WORDS_PER_LOAD, WeightLayout

# To decode a code, by bits (decode.py). Of f16, HALF_FLOAT of it is no integer instruction.
S8_DECODE = (0.47, 0.44, 0.95, 0.38, 0.95, 0.95, 1.45, 0.0)
HALF_DECODE = (1.05, 1.06, 1.9, 1.1, 1.9, 1.9, 3.0, 1.25)
HALF_ZERO, HALF_FLOAT = 0.5, 0.5

# Of tiles: to end a group, for each accumulator a conversion (or subtraction) and a multiply-add,
# and another multiply-add for each kind of zero point; for each block of 8 columns; for 16 copied
# bytes; for a turn of the loop.
FLUSH, CORRECTION = 2.0, 1.0
FLUSH_COLUMNS, COPY, TURN = 8.0, 4.0, 30.0

# Of wgmma: around an instruction, its descriptor and the waits; for a turn of the loop. Of a thread
# that copies: for a stage, and for 16 bytes of rows; or for a box.
WGMMA_STEP, WGMMA_TURN = 5.0, 30.0
WGMMA_COPIES, WGMMA_COPY = 45.0, 5.0
WGMMA_BOXES, WGMMA_BOX = 45.0, 6.0

# Of rows: a unit's addresses, and the end of a group by dot products and by MMA, for each row.
ROWS_UNIT = 3.0
DOT_GROUP, DOT_GROUP_ROW = 8.0, 18.0
MMA_GROUP = {8: 60.0, 16: 28.0}  # by the bits of a decoded code


def quantized(layout: WeightLayout) -> bool:
    """Whether activations are: codes become bytes, else floats."""
    return layout.lane_bits == 8


def decode(layout: WeightLayout) -> float:
    """Instructions for a code."""
    if quantized(layout):
        return S8_DECODE[layout.bits - 1]
    return HALF_DECODE[layout.bits - 1] + HALF_ZERO * layout.has_zeros


def decode_integer(layout: WeightLayout) -> float:
    """Of these, those for integers and logic."""
    if quantized(layout):
        return decode(layout)
    return HALF_DECODE[layout.bits - 1] - HALF_FLOAT


def flush(layout: WeightLayout) -> float:
    """To end a group, for an accumulator."""
    if not quantized(layout):
        return 1.0
    return FLUSH + CORRECTION * (layout.has_sums + layout.has_zeros)


def rows_unit(layout: WeightLayout, rows: int, by_mma: bool) -> float:
    """Of a rows kernel for a unit of K and 32 columns."""
    codes, registers = LANE_CODES * BLOCKS, layout.registers_per_block
    loads = codes * layout.bits / 32 / WORDS_PER_LOAD
    total = decode(layout) * codes + loads + ROWS_UNIT
    end = 0.0
    if by_mma:
        total += 2 * registers  # MMAs, and loads of activations
        end = MMA_GROUP[layout.lane_bits]
    else:
        words = BLOCKS * registers * rows
        total += registers * rows  # loads of activations
        # dp4a; or two multiply-adds a word, and conversions of weights and activations
        total += words if quantized(layout) else 2 * words + codes + 2 * registers * rows
        end = DOT_GROUP + DOT_GROUP_ROW * rows
    return total + (end / layout.grouped.group_units if layout.grouped.groups > 1 else 0.0)


def tile_stage(plan: TilePlan) -> float:
    """Of a tile kernel for a stage."""
    layout = plan.weights
    k_steps = plan.stage_units * plan.unit_bytes // 32  # of 32 bytes of K
    products = plan.row_blocks * plan.column_blocks * k_steps
    loads = plan.row_blocks * k_steps + plan.warp_tiles * plan.stage_chunks * layout.chunk_loads
    codes = plan.stage_units * LANE_CODES * plan.column_blocks
    total = products + loads + decode(layout) * codes + COPY * plan.pieces + TURN
    if plan.grouped:
        ends = plan.stage_units / plan.group_units
        total += ends * (flush(layout) * plan.accumulators + FLUSH_COLUMNS * plan.column_blocks)
    return total


def wgmma_stage(plan: WgmmaPlan) -> float:
    """Of a kernel by wgmma for a stage, of a thread that multiplies."""
    layout = plan.weights
    steps = plan.stage_units * plan.k_steps
    codes = plan.halves * plan.stage_units * K_UNIT * HALF_BLOCKS * BLOCK_COLUMNS / WARP
    total = (WGMMA_STEP + plan.halves) * steps + decode(layout) * codes + WGMMA_TURN
    total += plan.stage_chunks * layout.chunk_loads
    if plan.grouped:
        ends = plan.stage_units / plan.group_units
        total += ends * (flush(layout) * plan.accumulators + 2 * plan.halves * FLUSH_COLUMNS)
    return total


def wgmma_copies(plan: WgmmaPlan) -> float:
    """Of a kernel by wgmma for a stage, of all threads that copy."""
    if plan.schedule.boxes:
        return WARP * (WGMMA_BOXES + WGMMA_BOX * plan.atoms)
    return PRODUCERS * (WGMMA_COPIES + WGMMA_COPY * plan.pieces)
