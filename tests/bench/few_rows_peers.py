"""Products of few rows by other runtimes: weights of 4 and 2 bits in blocks of 32, one thread.

Each call does several products of one input, with weights of their own. Runtimes are imported by
what asks for them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 32
INTEGER_ACCURACY = 4  # MatMulNBits' accuracy_level: activations of 8 bits


def onnxruntime_call(bits: int, x: np.ndarray, n: int, copies: int) -> Callable[[], None]:
    """`copies` MatMulNBits of weights [n, K]."""
    import onnx
    import onnxruntime

    k = x.shape[1]
    rng = np.random.default_rng(1)
    nodes, constants, outputs = [], [], []
    scales = np.full((n, k // BLOCK), 0.01, np.float32)
    constants.append(onnx.numpy_helper.from_array(scales.reshape(-1), "scales"))
    for i in range(copies):
        codes = rng.integers(0, 256, (n, k // BLOCK, BLOCK * bits // 8), np.uint8)
        constants.append(onnx.numpy_helper.from_array(codes, f"w{i}"))
        node = onnx.helper.make_node(
            "MatMulNBits",
            ["x", f"w{i}", "scales"],
            [f"y{i}"],
            domain="com.microsoft",
            K=k,
            N=n,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=INTEGER_ACCURACY,
        )
        nodes.append(node)
        outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, None))
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))
    graph = onnx.helper.make_graph(nodes, "peers", [given], outputs, constants)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x}) and None


def openvino_call(x: np.ndarray, n: int, copies: int) -> Callable[[], None]:
    """`copies` products with compressed weights [n, K] of 4 bits, scales of f16."""
    import openvino
    from openvino import opset13

    k = x.shape[1]
    rng = np.random.default_rng(1)
    given = opset13.parameter(list(x.shape), np.float32, name="x")
    outputs = []
    for _ in range(copies):
        packed = rng.integers(0, 256, n * k // 2, np.uint8)
        tensor = openvino.Tensor(packed, openvino.Shape([n, k // BLOCK, BLOCK]), openvino.Type.u4)
        codes = opset13.convert(openvino.op.Constant(tensor), np.float16)
        zero = np.full((n, k // BLOCK, 1), 8, np.float16)
        centred = opset13.subtract(codes, opset13.constant(zero))
        scaled = opset13.multiply(centred, opset13.constant(zero / 800))
        rows = opset13.reshape(scaled, opset13.constant([n, k]), special_zero=False)
        weight = opset13.convert(rows, np.float32)
        outputs.append(opset13.matmul(given, weight, False, True))
    model = openvino.Model(outputs, [given])
    settings = {"INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": BLOCK}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return request.infer
