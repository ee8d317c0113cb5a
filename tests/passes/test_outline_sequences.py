from __future__ import annotations

from abqc.codegen.strategy import Kernel
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit
from facts import Facts, after

LOOP = """
  scf.for %i = %c0 to %steps step %c1 {
    func.call @product(%steps, STATE) : (index, memref<?xf32>) -> ()
    linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
      ins(STATE : memref<?xf32>) outs(STATE : memref<?xf32>) {
      ^bb0(%in: f32, %out: f32):
        %t = math.tanh %in : f32
        linalg.yield %t : f32
    }
  } {abq.sequence}"""


def outlined(*states: str) -> tuple[Facts, Unit]:
    loops = "".join(LOOP.replace("STATE", state) for state in states)
    text = f"""#id = affine_map<(d0) -> (d0)>
      func.func private @product(index, memref<?xf32>) attributes {{abq.kernel}}
      func.func @main(%x: memref<?xf32>, %y: memref<?xf32>, %steps: index, %many: i1) {{
        %c0 = arith.constant 0 : index
        %c1 = arith.constant 1 : index
        scf.if %many {{ {loops} }}
        scf.if %many {{ {loops} }}
        return
      }}"""
    product = Kernel("product", (1,), _product, uses=frozenset(["dot"]))
    unit = Unit(target=CpuTarget(), kernels={"product": product})
    return after(text, "outline-kernels", "outline-sequences", unit=unit), unit


def _product(module: ir.Module, isa: object) -> None:
    text = "module { func.func @product(%i: index, %x: memref<?xf32>) { return } }"
    library = ir.Module.parse(text, module.context)  # which owns the function
    (function,) = library.body.operations
    module.body.append(function.operation.clone())


def test_equal_loops_are_launches_of_one_kernel() -> None:
    facts, unit = outlined("%x")
    assert not facts("scf.for")
    name, again = facts.calls()
    assert name == again and name.startswith("sequence_")
    assert unit.kernels[name].uses == {"dot"}
    (grid, *_) = facts("func.call")[0].operands
    assert grid.owner.attributes["value"].value == 1


def test_a_kernel_has_all_that_it_launches() -> None:
    facts, unit = outlined("%x")
    (name, _), context = facts.calls(), facts.module.context
    with context, ir.Location.unknown():
        module = ir.Module.create()
        unit.kernels[name].emit(module, None)
        assert module.operation.verify()
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations}
    assert len(functions) == 3 and {name, "product"} < functions.keys()
    assert all(len(op.regions[0].blocks) for op in functions.values())


def test_loops_of_a_block_are_indices_of_one_grid() -> None:
    facts, _ = outlined("%x", "%y")
    assert not facts("scf.for")
    calls = facts("func.call")
    assert len(calls) == 2
    assert calls[0].operands[0].owner.attributes["value"].value == 2
