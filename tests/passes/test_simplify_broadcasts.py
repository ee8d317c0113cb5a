from facts import Facts, after


def broadcast(index: str, source: str = "tensor<?xf32>") -> Facts:
    return after(
        f"""#id = affine_map<(d0, d1) -> (d0, d1)>
        func.func @main(%x: {source}, %m: index, %n: index) -> tensor<?x?xf32> {{
          %c0 = arith.constant 0 : index
          %c1 = arith.constant 1 : index
          %e = tensor.empty(%m, %n) : tensor<?x?xf32>
          %y = linalg.generic {{
              indexing_maps = [#id], iterator_types = ["parallel", "parallel"]}}
              outs(%e : tensor<?x?xf32>) {{
          ^bb0(%out: f32):
            %i = linalg.index 0 : index
            %j = linalg.index 1 : index
            {index}
            linalg.yield %v : f32
          }} -> tensor<?x?xf32>
          return %y : tensor<?x?xf32>
        }}""",
        "simplify-broadcasts",
        "canonicalize",
    )


def maps(facts: Facts) -> str:
    (loops,) = facts("linalg.generic")
    return str(loops.attributes["indexing_maps"])


def test_select_of_the_loops_own_size_goes() -> None:
    facts = broadcast("""%one = arith.cmpi eq, %n, %c1 : index
      %at = arith.select %one, %c0, %j : index
      %v = tensor.extract %x[%at] : tensor<?xf32>""")
    assert not facts("tensor.extract")
    assert not facts("arith.select")
    assert "(d0, d1) -> (d1)" in maps(facts)


def test_select_of_another_size_stays() -> None:
    facts = broadcast("""%one = arith.cmpi eq, %m, %c1 : index
      %at = arith.select %one, %c0, %j : index
      %v = tensor.extract %x[%at] : tensor<?xf32>""")
    assert len(facts("tensor.extract")) == 1


def test_select_of_another_index_stays() -> None:
    facts = broadcast("""%one = arith.cmpi eq, %n, %c1 : index
      %at = arith.select %one, %c1, %j : index
      %v = tensor.extract %x[%at] : tensor<?xf32>""")
    assert len(facts("arith.select")) == 1


def test_load_along_an_axis_of_size_1_is_an_operand() -> None:
    facts = broadcast("%v = tensor.extract %x[%i, %c0] : tensor<?x1xf32>", source="tensor<?x1xf32>")
    assert not facts("tensor.extract")
    assert "(d0, d1) -> (d0, 0)" in maps(facts)


def test_computed_positions_stay() -> None:
    facts = broadcast("""%at = arith.addi %i, %j : index
      %v = tensor.extract %x[%at] : tensor<?xf32>""")
    assert len(facts("tensor.extract")) == 1
