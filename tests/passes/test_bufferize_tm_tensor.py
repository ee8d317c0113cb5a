from facts import after

SCAN = """func.func @main(%x: tensor<?xf32>, %y: tensor<?xf32>, %z: tensor<f32>) -> tensor<?xf32> {
  %r, %last = tm_tensor.scan dimension(0) inclusive(true) ins(%x : tensor<?xf32>)
      outs(%y, %z : tensor<?xf32>, tensor<f32>) {
  ^bb0(%a: f32, %b: f32):
    %s = arith.addf %a, %b : f32
    tm_tensor.yield %s : f32
  } -> tensor<?xf32>, tensor<f32>
  return %r : tensor<?xf32>
}"""


def test_results_are_unaliased_buffers() -> None:
    facts = after(SCAN, "bufferize-tm-tensor")
    (scan,) = facts("tm_tensor.scan")
    assert not scan.results
    (result,) = facts("bufferization.to_tensor")
    assert "restrict" in result.attributes and "writable" in result.attributes


def test_without_such_operations_nothing_changes() -> None:
    text = "func.func @main(%x: tensor<?xf32>) -> tensor<?xf32> { return %x : tensor<?xf32> }"
    assert not after(text, "bufferize-tm-tensor")("bufferization.to_buffer")
