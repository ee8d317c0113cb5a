from facts import after, maker


def loops(body: str, table: str = "memref<7xf32>") -> str:
    return f"""#id = affine_map<(d0) -> (d0)>
    func.func @main(%t: {table}, %i: memref<?xi64>, %y: memref<?xf32>) {{
      linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel"]}}
          ins(%i : memref<?xi64>) outs(%y : memref<?xf32>) {{
      ^bb0(%in: i64, %out: f32):
        %at = arith.index_cast %in : i64 to index
        {body}
      }}
      return
    }}"""


GATHER = "%v = memref.load %t[%at] : {}\nlinalg.yield %v : f32"


def test_positions_from_data_are_compared_with_the_size() -> None:
    facts = after(loops(GATHER.format("memref<7xf32>")), "guard-indices")
    (load,) = facts("memref.load")
    assert maker(load.operands[1]) == "arith.select"
    (yielded,) = facts("linalg.yield")[0].operands
    assert maker(yielded) == "arith.select"  # NaN where the position is outside
    assert not facts.messages()


def test_a_table_without_rows_is_an_error() -> None:
    facts = after(loops(GATHER.format("memref<?xf32>"), "memref<?xf32>"), "guard-indices")
    assert facts.messages() == ["the model: it reads from a tensor without elements"]


def test_positions_of_loops_stay() -> None:
    body = """%j = linalg.index 0 : index
        %v = memref.load %t[%j] : memref<7xf32>
        linalg.yield %v : f32"""
    facts = after(loops(body), "guard-indices")
    assert maker(facts("memref.load")[0].operands[1]) == "linalg.index"


def test_checks_inside_of_loops_stay() -> None:
    check = "%c7 = arith.constant 7 : index\n%ok = arith.cmpi slt, %at, %c7 : index\n"
    check += 'cf.assert %ok, "index must be smaller than dim size"\n'
    facts = after(loops(check + GATHER.format("memref<7xf32>")), "guard-indices")
    assert facts.messages() == ["index must be smaller than dim size"]
    assert maker(facts("memref.load")[0].operands[1]) == "arith.select"


def test_positions_that_loops_hand_round_are_guarded() -> None:
    body = """%c0 = arith.constant 0 : index
        %c1 = arith.constant 1 : index
        %c9 = arith.constant 9 : index
        %z = arith.constant 0.0 : f32
        %r:2 = scf.for %k = %c0 to %c9 step %c1 iter_args(%p = %c0, %s = %z) -> (index, f32) {
          %v = memref.load %t[%p] : memref<7xf32>
          %w = memref.load %t[%k] : memref<7xf32>
          %next = arith.addi %p, %at : index
          scf.yield %next, %v : index, f32
        }
        linalg.yield %r#1 : f32"""
    facts = after(loops(body), "guard-indices")
    moving, counted = facts("memref.load")
    assert maker(moving.operands[1]) == "arith.select"
    assert maker(counted.operands[1]) == "argument"


def test_a_position_computed_in_many_steps_is_looked_at_once() -> None:
    steps = "\n".join(f"%s{i + 1} = arith.addi %s{i}, %s{i} : index" for i in range(60))
    body = f"%s0 = linalg.index 0 : index\n{steps}\n" + GATHER.format("memref<7xf32>")
    facts = after(loops(body.replace("[%at]", "[%s60]")), "guard-indices")
    assert maker(facts("memref.load")[0].operands[1]) == "arith.addi"


def test_stores_outside_are_left_out() -> None:
    facts = after(
        """func.func @main(%t: memref<7xf32>, %i: memref<i64>, %v: f32) {
          %n = memref.load %i[] : memref<i64>
          %at = arith.index_cast %n : i64 to index
          memref.store %v, %t[%at] : memref<7xf32>
          return
        }""",
        "guard-indices",
    )
    (branch,) = facts("scf.if")
    assert facts("memref.store")[0].block == branch.regions[0].blocks[0]
