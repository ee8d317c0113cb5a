"""Kernels around bulk copies: pieces of PTX, and launches with tensor maps as parameters."""

from __future__ import annotations

import numpy as np
from abqc.runtime.ptx import Device, parse
from abqc.runtime.ptx.tensor_map import encode_tiled

FRAME = """
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .align 64 .b8 map[128], .param .u64 input, .param .u64 out)
{{
    .reg .pred %p, %q, %done, %leader;
    .reg .b32 %t, %x, %y, %s, %m, %i, %c<5>;
    .reg .b64 %map, %input, %out, %wide, %state;
    .shared .align 1024 .b8 tile[{tile}];
    .shared .align 8 .b8 bars[16];
    mov.b64 %map, map;
    cvta.param.u64 %map, %map;
    ld.param.u64 %input, [input];
    ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x;
    mov.u32 %s, tile;
    mov.u32 %m, bars;
    setp.eq.u32 %leader, %t, 0;
    setp.eq.u32 %p, %t, 0;
{body}
    ret;
}}
"""

INIT = """
    @%leader mbarrier.init.shared::cta.b64 [%m], 1;
    @%leader fence.mbarrier_init.release.cluster;
    bar.sync 0;
"""
EXPECT = "@%leader mbarrier.arrive.expect_tx.shared::cta.b64 %state, [%m], {bytes};"
WAIT = """
wait:
    mbarrier.try_wait.parity.shared::cta.b64 %done, [%m], 0;
    @!%done bra wait;
"""
LOAD = (
    "@%leader cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
    "[%s], [%input], {bytes}, [%m];"
)
# Every thread copies its words of the tile to the output.
OUT = """
    shl.b32 %i, %t, 2;
copy:
    add.u32 %y, %s, %i;
    ld.shared.b32 %x, [%y];
    cvt.u64.u32 %wide, %i;
    add.u64 %wide, %out, %wide;
    st.global.b32 [%wide], %x;
    add.u32 %i, %i, 128;
    setp.lt.u32 %q, %i, {tile};
    @%q bra copy;
"""
IN = """
    shl.b32 %i, %t, 2;
fill:
    add.u32 %y, %s, %i;
    cvt.u64.u32 %wide, %i;
    add.u64 %wide, %input, %wide;
    ld.global.b32 %x, [%wide];
    st.shared.b32 [%y], %x;
    add.u32 %i, %i, 128;
    setp.lt.u32 %q, %i, {tile};
    @%q bra fill;
"""


def box_load(rank: int) -> str:
    coordinates = ", ".join(f"%c{k}" for k in range(rank))
    return (
        f"@%leader cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile"
        f".mbarrier::complete_tx::bytes [%s], [%map, {{{coordinates}}}], [%m];"
    )


def box_store(rank: int) -> str:
    coordinates = ", ".join(f"%c{k}" for k in range(rank))
    return (
        f"@%leader cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group "
        f"[%map, {{{coordinates}}}], [%s];"
    )


def coordinates(*values: int) -> str:
    return "\n    ".join(f"mov.b32 %c{k}, {value};" for k, value in enumerate(values))


def text_of(body: str, tile: int) -> str:
    return FRAME.format(body=body.replace("{tile}", str(tile)), tile=tile)


def run(
    body: str,
    tile: int,
    input: np.ndarray,
    out_bytes: int,
    tensor: tuple | None = None,
    **options: int,
) -> np.ndarray:
    """The output as bytes, of one warp. `tensor`: data type, sizes, strides, box and steps of a map
    of the input, or with `of_output` of the output."""
    of_output = options.pop("of_output", 0)
    device = Device((9, 0), 1 << 22)
    kernel = parse(text_of(body, tile)).kernels["k"]
    source, target = device.allocate(input.nbytes), device.allocate(out_bytes)
    device.write(source, input)
    device.write(target, np.zeros(out_bytes, np.uint8))
    words = bytes(128)
    if tensor is not None:
        kind, *extents = tensor
        words = encode_tiled(kind, target if of_output else source, *extents, **options)
    device.launch(kernel, (1, 1, 1), (32, 1, 1), [words, source, target])
    return device.read(target, out_bytes)
