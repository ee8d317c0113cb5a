"""Code that is loaded into a process, whatever else is mapped there."""

from __future__ import annotations

import subprocess
import sys

# A table that code addresses relative to itself, in a process whose free memory is a hole of two
# pages, which holds the code or the table, and what lies 8 GB below it.
SPLIT = """
import ctypes, mmap
import llvmlite.binding as llvm
from abqc.dialects import jit

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
target = llvm.Target.from_default_triple()
machine = target.create_target_machine(codemodel="default", reloc="pic")
text = '@t = internal constant [4096 x i32] [' + ', '.join(f'i32 {i}' for i in range(4096)) + ']'
text += '''
define hidden i32 @at(i64 %i) {
  %p = getelementptr i32, ptr @t, i64 %i
  %v = load i32, ptr %p
  ret i32 %v
}'''
object = machine.emit_object(llvm.parse_assembly(text))
jit.load(object, ['at'])  # what LLVM allocates but once

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
NORESERVE = 0x4000
def reserve(size):
    return libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE, -1, 0)

wall = reserve(1 << 34)
while reserve(mmap.PAGESIZE) > wall:
    pass
libc.munmap(wall + (1 << 33), 2 * mmap.PAGESIZE)
code = jit.load(object, ['at'])
at = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)(code['at'])
assert [at(i) for i in (0, 5, 4095)] == [0, 5, 4095]
"""


def test_sections_lie_together() -> None:
    subprocess.run([sys.executable, "-c", SPLIT], check=True, timeout=60)
