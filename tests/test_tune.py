"""`abqc tune`: the CPU for a moment, a GPU through a driver that only keeps books."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx_models
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.schedule import MANY_ROWS
from abqc.codegen.gpu.arch import SM_90A
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.builder import POINTER, kernel
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler import tune, tune_cpu, tune_gpu, tune_jobs
from abqc.compiler.cli import main
from abqc.compiler.cuda_driver import Cuda, Resolve
from abqc.compiler.tune_cpu import CpuJob, time_calls
from abqc.compiler.tune_device import GpuRunner
from abqc.costmodel import samples
from abqc.costmodel.analytic import AnalyticModel
from abqc.costmodel.interface import KernelFeatures, Sample
from abqc.costmodel.load import model_for, model_path, samples_path
from abqc.dialects.formats import parse_scheme
from abqc.errors import AbqcError, InputError
from abqc.runtime.ptx.driver import PtxDriver
from test_costmodel_gpu import rows
from test_costmodel_residual import matmuls


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def nothing_shipped(monkeypatch) -> None:
    """Whatever was fitted is compared with the analytic model, however busy the machine is."""
    monkeypatch.setattr("abqc.costmodel.shipped.CPUS", ())
    monkeypatch.setattr("abqc.costmodel.load.shipped_for", lambda cpu: None)
    monkeypatch.setattr(tune, "SPREAD_LIMIT", float("inf"))


def quiet(step: str, done: int = 0, total: int = 1) -> None:
    """Progress that nobody looks at."""


# --- CPU


def test_cpu_is_measured_fitted_and_found(capsys, monkeypatch, nothing_shipped):
    sizes = ((128, 128), (128, 256))  # held out in turns
    formats = parse_scheme("w4"), parse_scheme("a8")
    of_sizes = [CpuJob(MatmulSpec(n, k, *formats), isas.PLAIN) for n, k in sizes]
    monkeypatch.setattr(tune_cpu, "jobs", lambda: of_sizes)
    monkeypatch.setattr(tune_cpu, "ROWS", (1, 8))
    monkeypatch.setattr(tune_cpu, "COLD_BYTES", 1 << 20)
    monkeypatch.setattr(tune_cpu, "SECONDS", 0.001)
    slow_machine = lambda calls: [3 * seconds for seconds in time_calls(calls)]  # noqa: E731
    monkeypatch.setattr(tune_cpu, "time_calls", slow_machine)
    assert main(["tune", "--report"]) == 0
    output = capsys.readouterr().out
    assert "fitted rank" in output and "analytic x residual" in output
    assert model_for("cpu").residual is not None
    measured = samples.read(samples_path("cpu"))
    assert len(measured) >= 12 and all(s.seconds > 0 and s.device and s.date for s in measured)
    assert {s.features.working_set > 0 for s in measured} == {True, False}
    for sample in measured:
        assert model_for("cpu").predict(sample.features) < 30 * sample.seconds

    # The same from a file; nothing is measured.
    assert main(["tune", "--samples", str(samples_path("cpu"))]) == 0
    assert len(samples.read(samples_path("cpu"))) == len(measured)


def test_schedules_that_are_measured_differ_and_some_are_promising():
    spec = MatmulSpec(512, 512, parse_scheme("w4"), parse_scheme("a8"))
    strategies = CpuTarget(cost_model=AnalyticModel()).strategies
    strategy = next(strategy for strategy in strategies if strategy.name == "int8")
    jobs = [CpuJob(spec, isas.AVX512, draw) for draw in range(1 + tune_cpu.DRAWS)]
    drawn = [job.schedules(strategy)[-1].schedule.on(isas.AVX512) for job in jobs]
    assert len(set(drawn)) == len(drawn)
    every = strategy.schedules(spec, MANY_ROWS, isas.AVX512)
    promising = drawn[1 : 1 + tune_cpu.PROMISING]
    assert drawn[0] == every[0] and len({(s.tile_m, s.tile_n) for s in promising}) > 1


def test_cold_samples_read_what_none_has_read_before(monkeypatch):
    monkeypatch.setattr(tune_cpu, "COLD_BYTES", 4 << 20)
    monkeypatch.setattr(tune_cpu, "time_calls", partial(time_calls, seconds=60.0))
    spec = MatmulSpec(128, 128, parse_scheme("w8"), parse_scheme("a8"))
    strategies = CpuTarget(cost_model=AnalyticModel()).strategies
    strategy = next(strategy for strategy in strategies if strategy.name == "int8")
    matmul = tune_cpu.MeasuredMatmul(strategy, CpuJob(spec, isas.PLAIN))
    read: list[int] = []

    def prepare(name: str, grid: int, arguments: list) -> Callable[[], None]:
        weight = arguments[1]
        return lambda: read.append(id(weight)) if name != matmul.pack.name else None

    monkeypatch.setattr(matmul.jit, "prepare", prepare)
    assert matmul.sample(1, cold=True).repetitions == matmul.sample(4, cold=True).repetitions == 50
    assert len(set(read)) == len(read) == 102
    matmul.sample(1, cold=False)
    assert len(set(read[102:])) == 1


@pytest.mark.parametrize("text", ["{}", '{"format": "abqc-cost-model-1"}', "\x00"])
def test_an_unreadable_model_is_passed_over_and_kept(monkeypatch, nothing_shipped, text):
    monkeypatch.setattr(tune_cpu, "ROWS", (1, 4))
    monkeypatch.setattr(tune_cpu, "COLD_BYTES", 1 << 20)
    path = model_path("cpu")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert CpuTarget().cost_model.residual is None
    assert f"not used: {path} is no cost model" in CpuTarget().cost_model_warning
    found = [Sample(f, 3 * AnalyticModel().predict(f), "box", "", "2026-11-24") for f in matmuls()]
    assert tune.fit_and_save("cpu", found).path == path
    assert CpuTarget().cost_model.residual is not None and not CpuTarget().cost_model_warning
    assert path.with_suffix(".unreadable.json").read_text() == text


def test_a_compile_says_that_the_tuned_model_is_not_used(tmp_path: Path, capsys):
    model_path("cpu").parent.mkdir(parents=True)
    model_path("cpu").write_text("{}")
    model = onnx_models.save(onnx_models.mlp(), tmp_path)
    output = tmp_path / "model.so"
    assert main(["compile", str(model), "-o", str(output), "--cpu", "native"]) == 0
    assert "the tuned cost model is not used" in capsys.readouterr().err


class Clock:
    """A runner whose samples spread as much as it is told."""

    device = tune.Device("clock")

    def __init__(self, spread: float, calls: int = 1000) -> None:
        self.spread, self.calls = spread, calls

    def measure(self, job: CpuJob) -> list[Sample]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        f = matmuls()[self.calls % len(matmuls())]
        return [Sample(f, AnalyticModel().predict(f), spread=self.spread)]


def test_a_busy_machine_is_not_learned_from(monkeypatch, capsys):
    monkeypatch.setattr(tune_cpu, "CpuRunner", lambda: Clock(0.6))
    assert main(["tune", "--limit", "9"]) == 1
    message = capsys.readouterr().err
    assert "too busy: 9 of 9 measurements spread by more than 25%, 60% in the middle" in message
    assert not samples_path("cpu").exists() and not model_path("cpu").exists()


def test_an_interrupt_keeps_what_was_measured(monkeypatch, capsys):
    monkeypatch.setattr(tune_cpu, "CpuRunner", lambda: Clock(0.1, calls=4))
    assert main(["tune"]) == 130
    assert f"kept in {samples_path('cpu')}, the cost model stays" in capsys.readouterr().err
    assert len(samples.read(samples_path("cpu"))) == 4 and not model_path("cpu").exists()


def test_damaged_lines_of_the_cache_are_left_out(monkeypatch, capsys, nothing_shipped):
    samples_path("cpu").parent.mkdir(parents=True)
    samples_path("cpu").write_text('{"format": "abqc-sam')
    monkeypatch.setattr(tune_cpu, "CpuRunner", lambda: Clock(0.1))
    assert main(["tune", "--limit", "5"]) == 0
    assert "1 lines are left out: line 1 of" in capsys.readouterr().err


def test_what_is_worse_than_the_present_model_is_not_installed(nothing_shipped, capsys):
    found = [Sample(f, AnalyticModel().predict(f), "box", "", "2026-11-24") for f in matmuls()]
    tuned = tune.fit_and_save("cpu", found)
    assert tuned.path is None and not model_path("cpu").exists()
    assert "nothing is installed: analytic only predicts with an error of 0.0%" in tuned.text


def test_budget_ends_measuring():
    class Slow:
        device = tune.Device("clock")
        calls = 0

        def measure(self, job: int):
            self.calls += 1
            return [samples.Sample(rows(1, 64, 64, 4), 1e-6)]

    runner = Slow()
    assert len(list(tune.measure(runner, range(100), tune.Budget(60, jobs=7), quiet))) == 7
    assert len(list(tune.measure(runner, range(100), tune.Budget(0), quiet))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpu", "--build-only", "x"], "built when they are measured"),
        (["--target", "sm_90a", "--samples", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--target", "sm_42", "--build-only", "x"], "no GPU target 'sm_42'"),
        (["--target", "sm_90a", "--jobs", "missing"], "holds no jobs for sm_90a"),
    ],
)
def test_wrong_use_is_explained(arguments, message, capsys):
    assert main(["tune", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_samples_of_another_target_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="none of the 1 samples is of target 'cpu'"):
        tune.fit_and_save("cpu", [samples.Sample(rows(1, 64, 64, 4), 1e-6)])


# --- Building for a GPU


def copy_kernel(name: str, pointers: int) -> Kernel:
    """A kernel with the arguments of a matmul; block 0 copies a word to its last buffer."""

    def emit(module, arch) -> None:
        with kernel(module, arch, name, [POINTER] * pointers + ["i32", "i32"], threads=64) as (
            b,
            block,
            *arguments,
        ):
            n = arguments[-1]
            with b.when(block * 64 + b.thread < n):
                b.store(b.load(arguments[0], "f32", 0), arguments[pointers - 1], 0)

    return Kernel(name, (1, 8), emit)


class CopyStrategy:
    """Two schedules, one of which splits K."""

    name = "copy"

    def features(self, spec: MatmulSpec, schedule: Schedule, m: int) -> KernelFeatures:
        return replace(
            rows(m, spec.n, spec.k, 4, arch="", split=schedule.split),
            strategy="copy",
            schedule=schedule.name,
        )

    def reduce_kernel(self, spec: MatmulSpec, schedule: Schedule) -> Kernel | None:
        return copy_kernel("copy_reduce", 5) if schedule.split > 1 else None


def copy_candidates(spec: MatmulSpec):
    schedules = [Schedule("rows", 8, 8, 512, split=split) for split in (1, 4)]
    return [(CopyStrategy(), s, copy_kernel(f"copy_{s.name}", 4)) for s in schedules]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder of jobs for matmuls of 1 to 8 rows."""
    spec = MatmulSpec(64, 4096, None, None)
    chosen = tune_gpu.select(copy_candidates, [spec], SM_90A, limit=100)
    folder = tmp_path / "jobs"
    folder.mkdir()
    tune_gpu.build(chosen, SM_90A, folder, quiet)
    return folder


def test_jobs_are_built_without_a_gpu(built: Path):
    jobs = tune_jobs.read(built, "sm_90a")
    assert {job.features.m for job in jobs} <= {1, 4, 8}
    split = next(job for job in jobs if job.features.split == 4)
    assert split.grid == split.features.m * 8 * 4 and split.reduce_grid == split.features.m * 8
    assert split.reduce is not None and split.reduce.name == "copy_reduce"
    for job in jobs:
        assert job.features.arch == "sm_90a" and job.kernel.threads == 64
        assert job.kernel.image.exists()
        if find_tool("ptxas"):
            assert job.kernel.image.suffix == ".cubin" and job.features.registers > 0


def test_foreign_jobs_are_refused(built: Path):
    with pytest.raises(InputError, match="for sm_90a"):
        tune_jobs.read(built, "sm_80")
    data = json.loads((built / tune_jobs.FILE).read_text())
    data["jobs"][0]["features"]["colour"] = "red"
    (built / tune_jobs.FILE).write_text(json.dumps(data))
    with pytest.raises(InputError, match="colour"):
        tune_jobs.read(built, "sm_90a")


def test_hopeless_candidates_are_not_built():
    def candidates(spec: MatmulSpec):
        class Hopeless(CopyStrategy):
            def features(self, spec, schedule, m):
                return replace(super().features(spec, schedule, m), f32_ops=1e15)

        return [*copy_candidates(spec), (Hopeless(), Schedule("rows", 8, 8, 512), None)]

    chosen = tune_gpu.select(candidates, [MatmulSpec(64, 4096, None, None)], SM_90A, limit=100)
    assert chosen and all(c.kernel is not None for c in chosen)


# --- Measuring on a GPU


@dataclass
class FakeLaunch:
    name: str
    grid: int
    threads: int
    arguments: list[int]


@dataclass
class FakeDriver:
    """The driver API over host memory. Kernels do nothing; a launch takes a microsecond."""

    capability: tuple[int, int] = (9, 0)
    failing: str = ""
    launches: list[FakeLaunch] = field(default_factory=list)
    memory: dict[int, ctypes.Array] = field(default_factory=dict)
    functions: dict[str, object] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)

    def resolve(self, name: str) -> int | None:
        method = getattr(self, name, None)
        if name == self.failing:
            method = self.fail
        if method is None:
            method = self.succeed
        if name not in self.functions:
            slots = 12
            prototype = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * slots)
            self.functions[name] = prototype(lambda *a: method(*(v or 0 for v in a)) or 0)
        return ctypes.cast(self.functions[name], ctypes.c_void_p).value

    def runner(self) -> GpuRunner:
        return GpuRunner.for_target("sm_90a", self.resolve)

    def fail(self, *_: int) -> int:
        return 719

    def succeed(self, *_: int) -> int:
        return 0

    def cuGetErrorName(self, status: int, text: int, *_: int) -> None:
        self.message = ctypes.create_string_buffer(b"CUDA_ERROR_LAUNCH_FAILED")
        ctypes.c_void_p.from_address(text).value = ctypes.addressof(self.message)

    def cuDeviceGetName(self, text: int, *_: int) -> None:
        ctypes.memmove(text, b"Fake H200\0", 10)

    def cuDriverGetVersion(self, value: int, *_: int) -> None:
        ctypes.c_int.from_address(value).value = 13000

    def cuDeviceGetAttribute(self, value: int, number: int, *_: int) -> None:
        known = {75: self.capability[0], 76: self.capability[1], 38: 1 << 20}
        ctypes.c_int.from_address(value).value = known[number & 0xFFFFFFFF]

    def cuMemAlloc_v2(self, pointer: int, nbytes: int, *_: int) -> None:
        buffer = (ctypes.c_char * nbytes)()
        self.memory[ctypes.addressof(buffer)] = buffer
        ctypes.c_uint64.from_address(pointer).value = ctypes.addressof(buffer)

    def cuMemFree_v2(self, pointer: int, *_: int) -> None:
        del self.memory[pointer]

    def cuMemcpyHtoD_v2(self, to: int, data: int, nbytes: int, *_: int) -> None:
        assert any(a <= to and to + nbytes <= a + len(b) for a, b in self.memory.items())
        ctypes.memmove(to, data, nbytes)

    def cuModuleGetFunction(self, function: int, module: int, name: int, *_: int) -> None:
        self.kernels.append(ctypes.string_at(name).decode())
        ctypes.c_void_p.from_address(function).value = len(self.kernels)

    def cuLaunchKernel(self, function: int, grid: int, *rest: int) -> None:
        name = self.kernels[function - 1]
        count = 7 if "reduce" in name else 6
        slots = (ctypes.c_void_p * count).from_address(rest[7])
        arguments = [ctypes.c_uint64.from_address(slot).value for slot in slots]
        self.launches.append(FakeLaunch(name, grid & 0xFFFFFFFF, rest[2] & 0xFFFFFFFF, arguments))

    def cuEventElapsedTime(self, value: int, *_: int) -> None:
        ctypes.c_float.from_address(value).value = len(self.launches) * 1e-3


def test_jobs_are_measured_cold(built: Path):
    driver = FakeDriver()
    with driver.runner() as runner:
        assert runner.device == tune.Device("Fake H200", "13.0")
        job = next(j for j in tune_jobs.read(built, "sm_90a") if j.features.split == 4)
        (sample,) = runner.measure(job)
        buffers = dict(driver.memory)
    # Weights of all launches together exceed the L2 of 1 MiB twice; each launch is two here.
    copies = len(driver.launches) // 2
    assert copies * job.features.weight_bytes > 2 << 20
    assert sample.seconds == pytest.approx(2e-6, rel=1e-3)
    first, second = driver.launches[:2]
    assert (first.name, first.grid, first.threads) == (job.kernel.name, job.grid, 64)
    assert (second.name, second.grid) == ("copy_reduce", job.reduce_grid)
    q, weight, bias, workspace, m, n = first.arguments
    assert second.arguments[:4] == [workspace, q, weight, bias]
    assert [m, n] == second.arguments[5:] == [job.features.m, job.features.n]
    assert {q, bias, workspace, second.arguments[4]} <= set(buffers)
    assert len(buffers[workspace]) >= job.features.workspace_bytes
    assert len({launch.arguments[1] for launch in driver.launches[::2]}) == copies
    assert not driver.memory


def test_real_candidates_run_within_their_buffers(tmp_path: Path, monkeypatch):
    """Kernels of few rows, tiles and splits, executed and checked by the PTX machine."""
    monkeypatch.setattr("abqc.codegen.gpu.assembly.compile.find_tool", lambda name: None)
    monkeypatch.setattr(tune_gpu, "ROWS", (1, 40))
    arch, candidates = tune_gpu.target_candidates("sm_80")
    spec = MatmulSpec(72, 512, parse_scheme("w4"), parse_scheme("a8"))
    able = tune_gpu.select(candidates, [spec], arch, limit=10_000)
    able.sort(key=lambda c: c.schedule.threads, reverse=True)  # the last of a kind is small
    kinds = {(c.schedule.kind, c.schedule.split > 1): c for c in able}
    assert {kind for kind, _ in kinds} == {"rows", "tile"} and ("tile", True) in kinds
    tune_gpu.build(list(kinds.values()), arch, tmp_path, quiet)
    resolve = machine_resolver(PtxDriver((8, 0), 1 << 26))
    with GpuRunner(Cuda(resolve), repetitions=1) as runner:
        for job in tune_jobs.read(tmp_path, "sm_80"):
            (sample,) = runner.measure(job)
            assert sample.seconds > 0


def test_blocks_that_share_tiles_have_slots_and_counters(tmp_path: Path, monkeypatch):
    """Stream-K in the PTX machine, launched several times: counters are 0 again."""
    monkeypatch.setattr("abqc.codegen.gpu.assembly.compile.find_tool", lambda name: None)
    spec, strategy = MatmulSpec(72, 200, parse_scheme("w4"), parse_scheme("a8")), Int8Matmul()
    shares = Schedule("wgmma", 16, 64, 64, 1, 4, 1, 3, 2, 3)
    features = replace(strategy.features(spec, shares, 20), arch="sm_90a")
    kernel = strategy.kernel(spec, shares)
    candidate = tune_gpu.Candidate(strategy, spec, shares, kernel, features)
    tune_gpu.build([candidate], SM_90A, tmp_path, quiet)
    (job,) = tune_jobs.read(tmp_path, "sm_90a")
    assert (job.grid, job.counters, job.reduce) == (3, 12, None)
    resolve = machine_resolver(PtxDriver((9, 0), 1 << 26))
    with GpuRunner(Cuda(resolve), repetitions=1) as runner:
        (sample,) = runner.measure(job)
    assert sample.seconds > 0


def machine_resolver(driver: PtxDriver) -> Resolve:
    """Its functions, and those that only make sense where time passes and caches exist."""

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    def elapsed(value: int, begin: int, end: int) -> int:
        ctypes.c_float.from_address(value).value = 1.0
        return 0

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    def attribute(value: int, number: int, device: int) -> int:
        ctypes.c_int.from_address(value).value = {75: 8, 76: 0, 38: 1 << 10}[number]
        return 0

    own = {"cuEventElapsedTime": elapsed, "cuDeviceGetAttribute": attribute}

    def resolve(name: str) -> int | None:  # keeps the driver, too
        if name in own:
            return ctypes.cast(own[name], ctypes.c_void_p).value
        return driver._address_of(name.encode())

    return resolve


def test_a_gpu_is_fitted_to_what_was_measured_elsewhere(tmp_path: Path, capsys):
    analytic = model_for("sm_80")
    found = [
        samples.Sample(f, 2 * analytic.predict(f), "NVIDIA A100-SXM4-80GB", "13.0", "2026-11-24")
        for m in (1, 4, 8)
        for n in (1024, 2048, 4096)
        for f in (rows(m, n, 4096, 4), rows(m, n, 4096, 4, split=4))
    ]
    samples.write(tmp_path / "a100.jsonl", found)
    arguments = ["tune", "--target", "sm_80", "--samples", str(tmp_path / "a100.jsonl")]
    assert main([*arguments, "--report"]) == 0
    output = capsys.readouterr().out
    assert "int8 rows" in output and "(18 samples, NVIDIA A100-SXM4-80GB, 2026-11-24)" in output
    tuned = model_for("sm_80")
    for sample in found:
        assert tuned.predict(sample.features) == pytest.approx(sample.seconds, rel=0.05)


def test_a_gpu_of_another_capability_is_refused():
    with pytest.raises(AbqcError, match=r"capability 8\.0.*sm_90a"):
        FakeDriver(capability=(8, 0)).runner()


@pytest.mark.parametrize("call", ["cuInit", "cuModuleLoadDataEx", "cuGraphLaunch", "cuMemAlloc_v2"])
def test_failing_calls_are_named(built: Path, call):
    jobs = tune_jobs.read(built, "sm_90a")
    fault = pytest.raises(AbqcError, match=rf"{call} failed: CUDA_ERROR_LAUNCH_FAILED \(719\)")
    with fault, FakeDriver(failing=call).runner() as runner:
        runner.measure(jobs[0])


def test_no_driver_is_explained(monkeypatch, capsys, built: Path):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert main(["tune", "--target", "sm_90a", "--jobs", str(built)]) == 1
    assert "no NVIDIA driver" in capsys.readouterr().err
