"""The command line: what it prints, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from abqc.compiler import cli, commands
from abqc.compiler.commands import bench, inspect
from abqc.compiler.commands.progress import Progress
from abqc.compiler.commands.table import byte_count, table
from abqc.runtime.model import load
from onnx import TensorProto, helper

DIGITS = Path(__file__).parent / "models" / "data" / "digits_mlp.onnx"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def abqc(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def mlp(compiled: Callable[[str, str], Path]) -> Path:
    return compiled("digits_mlp", "w8a8")


def error_line(answer: tuple[int, str, str], code: int = 1) -> str:
    """The message of a failed command, which must be one line and no traceback."""
    actual, _, err = answer
    assert actual == code, err
    lines = [line for line in err.splitlines() if line.startswith("abqc: error: ")]
    assert len(lines) == 1 and err.rstrip().endswith(lines[0])
    assert "Traceback" not in err
    return lines[0].removeprefix("abqc: error: ")


@pytest.mark.parametrize("command", [c.NAME for c in commands.ALL])
def test_help_has_examples(abqc: Run, command: str) -> None:
    code, out, _ = abqc(command, "--help")
    assert code == 0
    assert f"abqc {command}" in out.partition("examples:")[2]


def test_python_m_is_the_command(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "abqc", "--version"]
    found = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("abqc ")


def test_commands_are_those_of_the_design(abqc: Run) -> None:
    _, out, _ = abqc("--help")
    for name in ("compile", "run", "generate", "bench", "inspect", "eval", "tune", "opt", "doctor"):
        assert f"    {name} " in out


@pytest.mark.parametrize(
    "arguments",
    [(), ("frobnicate",), ("compile",), ("compile", "m.onnx", "--shape", "x=1xa"),
     ("bench", "m.so", "--threads", "0"), ("run", "m.so", "--input", "x.npy"),
     ("compile", "m.onnx", "--quant", "w8a8", "--recipe", "r.txt")],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_code_2(abqc: Run, arguments: tuple[str, ...]) -> None:
    assert "--help" in error_line(abqc(*arguments), 2)


def test_compile_run_inspect(abqc: Run, tmp_path: Path, digits: tuple) -> None:
    images, labels = digits
    library, x, y = (tmp_path / name for name in ("model.so", "x.npy", "y.npz"))
    code, out, err = abqc("compile", DIGITS, "-o", library, "--quant", "w8a8")
    assert (code, library.exists()) == (0, True)
    assert "compiled in" in out and "import" in err

    np.save(x, images)
    code, out, _ = abqc("run", library, "--input", f"X={x}", "--output", y, "--threads", 2)
    assert code == 0 and "probabilities  float32  200x10" in out
    with np.load(y) as outputs:
        assert np.mean(outputs["probabilities"].argmax(1) == labels) > 0.9
    code, out, _ = abqc("inspect", library, "--json")
    manifest = json.loads(out)
    assert code == 0 and manifest["recipe"] == "w8a8"
    assert manifest["bytes"]["total"] == library.stat().st_size
    assert {"node", "kind", "n", "k", "bpw", "strategy", "why"} <= set(manifest["ops"][0])
    assert [ranking["rows"] for ranking in manifest["ops"][0]["predicted"]] == [1, 16, 128]
    code, out, _ = abqc("inspect", library)
    assert code == 0 and "w8:channel:sym a8:token:asym" in out
    assert " dB, worst 'MatMul" in out
    assert "  predicted time\n" in out and "\n  M=16: " in out


def test_where_the_library_cannot_be_written_is_known_at_once(abqc: Run, tmp_path: Path) -> None:
    result = abqc("compile", DIGITS, "-o", tmp_path / "absent" / "model.so")
    assert "there is no directory" in error_line(result, 1)
    assert len(result[2].strip().splitlines()) == 1  # no step was begun


def test_bench_says_where_it_ran() -> None:
    result = {"median_ms": 1.5, "runs": 3, "threads": 2, "device": "cuda:0"}
    assert bench.describe(result, None) == "1.500 ms (median of 3 runs, cuda:0)"
    assert "2 threads)" in bench.describe(result | {"device": "cpu"}, None)
    refused = {"device": "cuda:0", "graph_error": "cuGraphCreate: CUDA_ERROR_NOT_SUPPORTED"}
    text = bench.describe(result | refused, None)
    assert text.endswith(
        "\nkernel by kernel, for the driver refuses graphs: " + refused["graph_error"]
    )
    assert "nothing about a GPU" in bench.describe(result | {"device": "ptx-vm"}, None)


def test_what_is_slow_on_a_gpu_is_said(abqc: Run, tmp_path: Path) -> None:
    """Each box that is chosen depends on those before it."""
    nms = helper.make_node("NonMaxSuppression", ["boxes", "scores", "limit"], ["y"], name="pick")
    graph = helper.make_graph(
        [nms],
        "main",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, "n"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["m", 3])],
        [helper.make_tensor("limit", TensorProto.INT64, [1], [5])],
    )
    source, library = tmp_path / "model.onnx", tmp_path / "model.so"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), source)
    code, _, err = abqc("compile", source, "-o", library, "--target", "sm_90a")
    assert code == 0 and "note: node 'pick' runs on one thread of the GPU" in err
    code, out, _ = abqc("inspect", library)
    assert code == 0 and "pick  runs on one thread of the GPU" in out


def test_bench_against_onnxruntime(abqc: Run, mlp: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, out, err = abqc(
        "bench", mlp, "--against", "onnxruntime:float", DIGITS,
        "--threads", 1, "--shape", "X=4x64", "--seconds", 0.1, "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert {"median_ms", "peer_median_ms", "ratio", "threads", "shapes"} <= set(result)
    assert (result["threads"], result["shapes"]) == (1, {"X": [4, 64]})


@pytest.mark.parametrize("kind", ["int8", "nbits4", "nbits2"])
def test_quantized_peers(
    abqc: Run, mlp: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = abqc(
        "bench", mlp, "--against", f"onnxruntime:{kind}", DIGITS,
        "--shape", "X=1x64", "--seconds", 0, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["peer_median_ms"] > 0


def test_eval_on_samples(abqc: Run, mlp: Path, digits: tuple, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = tmp_path / "data.npz"
    np.savez(data, X=digits[0])
    code, out, _ = abqc("eval", DIGITS, mlp, "--data", data, "--json")
    (model,) = json.loads(out)["models"]
    (accuracy,) = model["outputs"]
    assert code == 0 and accuracy["vectors"] == 200
    assert accuracy["cosine"] > 0.99 and accuracy["top1"] > 0.97
    code, out, _ = abqc("eval", DIGITS, mlp, "--data", data)
    assert code == 0 and "probabilities" in out


def test_eval_of_several_libraries_writes_a_report(
    abqc: Run, mlp: Path, digits: tuple, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    data, labels, page = tmp_path / "data.npz", tmp_path / "labels.npy", tmp_path / "report.html"
    np.savez(data, X=digits[0])
    np.save(labels, digits[1])
    command = ("eval", DIGITS, mlp, mlp, "--data", data, "--labels", labels)
    code, out, _ = abqc(*command, "--html", page)
    assert code == 0 and out.count("200 labels of output 'probabilities'") == 2
    text = page.read_text("utf-8")
    assert "Bits against accuracy" in text and "Activations before" in text
    answer = abqc("eval", DIGITS, mlp, "--text", data, "--labels", labels)
    assert "--labels belong to --data" in error_line(answer)


def test_opt_reads_and_prints_text(abqc: Run, tmp_path: Path) -> None:
    source = tmp_path / "m.mlir"
    source.write_text(
        "func.func @main(%x: f32) -> f32 {\n  %0 = arith.addf %x, %x : f32\n  return %x : f32\n}\n"
    )
    code, out, err = abqc("opt", source, "--passes", "canonicalize")
    assert code == 0, err
    assert "return" in out and "addf" not in out
    assert "no-such-pass" in error_line(abqc("opt", source, "--passes", "no-such-pass"))


def test_doctor_answers(abqc: Run) -> None:
    code, out, _ = abqc("doctor")
    assert code in (0, 1) and "torch-mlir" in out


def node_model(op_type: str, domain: str = "") -> bytes:
    """A model with one node, named `culprit`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    node = helper.make_node(op_type, ["x"], ["y"], name="culprit", domain=domain)
    graph = helper.make_graph([node], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def external_model() -> bytes:
    """A model whose weights are in a file that does not exist."""
    model = onnx.load(DIGITS)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 2)
    weight.ClearField("raw_data")
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="missing.bin")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is not ONNX", ""),
        (b"", ""),
        (DIGITS.read_bytes()[:5000], ""),
        (external_model(), "missing.bin"),
        (node_model("Frobnicate"), "culprit"),
        (node_model("Relu", "com.example"), "culprit"),
    ],
    ids=["not-onnx", "empty", "truncated", "no-external-data", "unknown-op", "unknown-domain"],
)
def test_models_that_cannot_be_compiled(
    abqc: Run, tmp_path: Path, content: bytes, message: str
) -> None:
    model, library = tmp_path / "model.onnx", tmp_path / "model.so"
    model.write_bytes(content)
    assert message in error_line(abqc("compile", model, "-o", library))
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quant", "w99"), "w99"),
        (("--quant", '"*nothing*" w4a8'), "nothing"),
        (("--recipe", "missing.txt"), "missing.txt"),
        (("--target", "abacus"), "abacus"),
        (("--shape", "Y=1x64"), "Y"),
        (("--shape", "X=1x65"), "X"),
    ],
)
def test_options_that_cannot_be_met(
    abqc: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    library = tmp_path / "model.so"
    assert message in error_line(abqc("compile", DIGITS, "-o", library, *arguments))
    assert not library.exists()


def test_output_that_cannot_be_written(abqc: Run, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "model.so"
    assert str(missing) in error_line(abqc("compile", DIGITS, "-o", missing))
    assert "directory" in error_line(abqc("compile", DIGITS, "-o", tmp_path)).lower()


def test_no_c_compiler(abqc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    library = tmp_path / "model.so"
    assert "compiler" in error_line(abqc("compile", DIGITS, "-o", library))
    assert not library.exists()


def test_a_single_output_as_npy(abqc: Run, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [3])] for n in "xy"]
    source, library, x, y = (tmp_path / n for n in ("m.onnx", "m.so", "x.npy", "y.npy"))
    graph = helper.make_graph([node], "main", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), source)
    np.save(x, np.arange(3, dtype=np.float32))
    assert abqc("compile", source, "-o", library)[0] == 0
    assert abqc("run", library, "--input", f"x={x}", "--output", y)[0] == 0
    np.testing.assert_array_equal(np.load(y), -np.arange(3, dtype=np.float32))


def test_all_inputs_from_one_file(abqc: Run, mlp: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((3, 64)).astype(np.float32)
    feeds, single, y = (tmp_path / name for name in ("feeds.npz", "x.npy", "y.npz"))
    np.savez(feeds, X=x)
    np.save(single, 0 * x)
    for arguments in (("--input", feeds), ("--input", f"X={single}", "--input", feeds)):
        assert abqc("run", mlp, *arguments, "--output", y)[0] == 0
        with np.load(y) as outputs:
            expected = load(mlp).run([x])
            np.testing.assert_array_equal(outputs["probabilities"], expected[-1])
    assert abqc("bench", mlp, "--input", feeds, "--seconds", 0.1)[0] == 0
    np.savez(feeds, X=x, Z=x)
    assert "the model has no input 'Z'" in error_line(abqc("run", mlp, "--input", feeds))
    assert f"--input {feeds}" in error_line(abqc("run", mlp, "--input", f"X={feeds}"))


def test_types_that_numpy_lacks(abqc: Run, tmp_path: Path) -> None:
    """Their codes are read and written."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    types = {"b": (TensorProto.BFLOAT16, "bfloat16"), "i": (TensorProto.INT4, "int4")}
    ends = [
        [helper.make_tensor_value_info(prefix + n, number, [3]) for n, (number, _) in types.items()]
        for prefix in ("", "y")
    ]
    nodes = [helper.make_node("Identity", [n], ["y" + n], name=n) for n in types]
    source, library = tmp_path / "model.onnx", tmp_path / "model.so"
    graph = helper.make_graph(nodes, "main", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)]), source)
    answer = abqc("compile", source, "-o", library)
    assert answer[0] == 0, answer
    feeds, y = tmp_path / "feeds.npz", tmp_path / "y.npz"
    values = {n: np.array([1, -2, 3]).astype(getattr(ml_dtypes, name)) for n, (_, name) in
              types.items()}  # fmt: skip
    np.savez(feeds, **values)
    code, out, _ = abqc("run", library, "--input", feeds, "--output", y)
    assert code == 0 and "yb      bfloat16  3" in out and "yi      int4      3" in out
    answer = abqc("run", library, "--input", feeds, "--output", y.with_suffix(".npy"))
    assert "holds one array, the model has" in error_line(answer)
    with np.load(y) as outputs:
        np.testing.assert_array_equal(outputs["yb"], values["b"].view(np.uint16))
        np.testing.assert_array_equal(outputs["yi"], np.array([1, -2, 3], np.int8))
    assert abqc("bench", library, "--seconds", 0.1)[0] == 0
    assert "yi      int4      3" in abqc("inspect", library)[1]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("Y", np.zeros((1, 64), np.float32), "X"),
        ("X", np.zeros((1, 64), np.float64), "float64"),
        ("X", np.zeros((64,), np.float32), "X"),
        ("X", np.zeros((1, 65), np.float32), "65"),
    ],
    ids=["name", "type", "rank", "size"],
)
def test_inputs_that_do_not_fit(
    abqc: Run, mlp: Path, tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    answer = abqc("run", mlp, "--input", f"{name}={tmp_path / 'x.npy'}")
    assert message in error_line(answer)


def test_damaged_artifacts(abqc: Run, mlp: Path, tmp_path: Path) -> None:
    whole = mlp.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for content in (whole[:-1000], bytes(altered), b"", b"text", whole + b"x"):
        path = tmp_path / "model.so"
        path.write_bytes(content)
        for command in (("run", path), ("inspect", path), ("bench", path)):
            assert str(path) in error_line(abqc(*command))


def test_files_that_are_missing(abqc: Run, mlp: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for arguments in (
        ("compile", missing),
        ("run", missing),
        ("inspect", missing),
        ("run", mlp, "--input", f"X={missing}"),
        ("eval", DIGITS, mlp, "--data", missing),
        ("bench", mlp, "--against", "onnxruntime:float", missing, "--shape", "X=1x64"),
        ("opt", missing),
    ):
        assert str(missing) in error_line(abqc(*arguments))


def test_unknown_peers_are_named(abqc: Run, mlp: Path) -> None:
    for peer in ("onnxruntime:fp4", "tensorrt:float"):
        answer = abqc("bench", mlp, "--against", peer, DIGITS, "--shape", "X=1x64")
        assert peer in error_line(answer)


def test_missing_onnxruntime_says_how_to_get_it(
    abqc: Run, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    answer = abqc("bench", mlp, "--against", "onnxruntime:float", DIGITS, "--shape", "X=1x64")
    assert "pip install onnxruntime" in error_line(answer)


def test_defects_are_one_line_unless_debug(abqc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr(commands.doctor, "run", broken)
    assert "--debug" in error_line(abqc("doctor"))
    with pytest.raises(KeyError):
        abqc("doctor", "--debug")
    with pytest.raises(KeyError):
        abqc("--debug", "doctor")


def test_interruption_is_code_130(abqc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.doctor, "run", interrupted)
    assert abqc("doctor")[0] == 130


def test_inspect_needs_neither_mlir_nor_numpy(mlp: Path) -> None:
    program = (
        "import sys\n"
        "absent = ('torch_mlir', 'llvmlite', 'onnx', 'numpy', 'lark')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        f"from abqc.compiler.cli import main\nsys.exit(main(['inspect', {str(mlp)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "probabilities" in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    for stream, expected in ((Terminal(), "[############............]"), (io.StringIO(), "pack\n")):
        with Progress(stream) as progress:
            progress("pack", 0, 4)
            progress("pack", 2, 4)
        assert expected in stream.getvalue()
        assert stream.getvalue().count("\n") == (0 if stream.isatty() else 1)


def test_tables_align() -> None:
    assert table(("a", "name"), [(10, "x"), (2, "yy")]) == " a  name\n--  ----\n10  x\n 2  yy"
    assert [byte_count(n) for n in (999, 1000, 2_500_000, 3 * 10**12)] == [
        "999 B", "1.0 kB", "2.5 MB", "3000.0 GB",
    ]  # fmt: skip


def test_inspect_groups_what_is_alike() -> None:
    caches = [
        {"name": f"past.{i}.{kind}", "dtype": "float32", "shape": [None, 3]}
        for i in range(2)
        for kind in ("key", "value")
    ]
    text = inspect.tensor_table("input", [*caches, {"name": "x", "dtype": "bool", "shape": []}])
    rows = [line.split("  ")[0] for line in text.splitlines()[2:]]
    assert rows == ["past.*.key (2)", "past.*.value (2)", "x"]


def test_tied_weights_count_once() -> None:
    head = {"weight": "w8", "symbol": "table", "bytes": 110, "n": 10, "k": 10}
    lookup = head | {"bytes": 0}
    assert inspect.bits_per_weight([head, lookup]) == "0.00 M weights at 8.80 bits"
