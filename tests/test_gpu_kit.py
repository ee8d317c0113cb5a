"""The kit for a real GPU: built small, and run on the PTX machine's driver."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A
from abqc.codegen.gpu.assembly.compile import assemble, disassemble
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cuda import CudaTarget
from abqc.costmodel import samples
from abqc.dialects.formats import parse_scheme
from abqc.errors import AbqcError, InputError
from abqc.runtime.ptx import run_kernel
from abqc.runtime.ptx.counters import Counters
from gpu_kernels import compile_kernel
from kit_driver import KitDriver

sys.path.insert(0, str(Path(__file__).parent / "bench" / "gpu"))
import build
import run
from gpubuild.images import Images
from gpubuild.matmuls import Chosen, select
from gpubuild.memory_kernels import memory_kernels
from gpubuild.plan import AttentionPlan, Plan
from gpubuild.rate_kernels import mma_rates
from gpubuild.wgmma import wgmma_rates
from gpukit import (
    attention,
    attention_peers,
    bars,
    check,
    probes,
    rates,
    report,
    sanitizer,
    table,
    work,
)
from gpukit import kit as kits
from gpukit.device import KitDevice, matmul_launches
from gpukit.kit import ProbeSizes
from gpukit.operands import hashed
from gpukit.parts import PARTS, Part

SMALL_PROBES = ProbeSizes(1 << 14, turns=5, spins=3, clock_turns=7, wait_turns=3)
TINY = Plan(
    shapes=((256, 40),),
    rows=(1, 20),
    formats=("W4A16", "W4A8", "W2A2"),
    compared_shapes=((256, 40),),
    compared_rows=(20,),
    following=1,
    max_kernels=16,
    sampled=0,
    check_rows=140,
    wide_n=37,
    turns=1,
    copy_bytes=1 << 15,
    probe=SMALL_PROBES,
    wgmma=False,
    assembled=False,
    others=("W3A8", "W6A16", "W4A8-asym", "W4A16-bf16", "W4A8-rotated"),
    other_shape=(256, 40),
    operators=(),
    attention=AttentionPlan(4, 2, 16, keys=(40,), prompts=(20,), prompt_heads=(16,)),
    minilm=False,
    decoder_layers=0,
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> kits.Kit:
    folder = tmp_path_factory.mktemp("kit")
    build.build(TINY, "sm_90a", folder, lambda text: None)
    return kits.read(folder)


@pytest.fixture
def device(kit: kits.Kit, monkeypatch: pytest.MonkeyPatch) -> Iterator[KitDevice]:
    monkeypatch.setattr("gpukit.device.FEWEST", 1)
    monkeypatch.setattr("gpukit.device.MOST", 1)
    driver = KitDriver()
    with KitDevice(kit, driver.resolve) as opened:
        opened.machine = driver
        yield opened


def test_a_kit_is_complete_and_small(kit: kits.Kit):
    assert build.folder_bytes(kit.folder) < 2_000_000
    assert {case.strategy for case in kit.cases} >= {"dequantize", "int8", "planes"}
    checked = {name for case in kit.cases for name in case.launches.kernels}
    assert {name for job in kit.table for name in job.launches.kernels} <= checked
    boxes = {kernel.name for kernel in kit.kernels.values() if kernel.maps}
    assert any(name.replace("_boxes", "") in kit.kernels for name in boxes)
    assert not (kit.folder / "abqc" / "codegen").exists()


def test_a_kit_needs_numpy_alone(kit: kits.Kit):
    """No other module that is installed can be imported, abqc's own neither."""
    script = (
        "import sys, numpy; sys.path[:] = ['.'] + [p for p in sys.path if 'site-' not in p]\n"
        "import run, abqc; from gpukit import parts\n"
        "from abqc.runtime import model\n"
        "assert abqc.__file__.startswith(sys.argv[1]), abqc.__file__"
    )
    command = [sys.executable, "-c", script, str(kit.folder)]
    done = subprocess.run(command, cwd=kit.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_kernel_is_checked(kit: kits.Kit, device: KitDevice):
    for number in range(len(kit.cases)):
        assert check.measure(device, number)["wrong"] == ""


def test_wrong_results_are_found(kit: kits.Kit, device: KitDevice, tmp_path: Path, monkeypatch):
    case = kit.cases[0]
    with np.load(kit.folder / "cases" / case.file) as data:
        arrays = dict(data)
    arrays["y"][0, 1] += 10
    (tmp_path / "cases").mkdir()
    np.savez(tmp_path / "cases" / case.file, **arrays)
    (tmp_path / "kernels").symlink_to(kit.folder / "kernels")
    spoilt = kits.Kit(**{**vars(kit), "folder": tmp_path})
    monkeypatch.setattr(device, "kit", spoilt)
    text = check.measure(device, 0)["wrong"]
    assert text.startswith("1 of ") and "the first at [0, 1]" in text
    assert report.failures({"check": [{"name": "x", "wrong": text}]}) == [f"check: x: {text}"]


def test_the_table_is_measured(kit: kits.Kit, device: KitDevice, tmp_path: Path):
    device.machine.part = "table"  # graphs are not executed: only times count
    numbers = [i for i, job in enumerate(kit.table) if job.rank == 0 and job.features["m"] == 1]
    records = {
        "table": [
            {"item": i, "name": table.names(kit)[i], **table.measure(device, i)} for i in numbers
        ],
        "rates": [{"name": rates.names(kit)[0], **rates.measure(device, 0)}],
    }
    for r in records["table"]:
        assert r["matmul_seconds"] > 0 and r["total_seconds"] >= r["matmul_seconds"]
        assert bars.bandwidth_share(records, r) > 0
    machine = {"device": "PTX machine", "driver": "13.0", "date": "2026-11-24", "command": "x"}
    report.write(kit, machine, records, tmp_path)
    assert len(samples.read(tmp_path / "samples.jsonl")) == len(numbers)
    text = (tmp_path / "results.md").read_text()
    assert "## Matmuls" in text and "not measured" in text
    verdicts = {
        bar["verdict"] for bar in json.loads((tmp_path / "results.json").read_text())["bars"]
    }
    assert verdicts == {"not measured"}  # none of the shapes of the bars


def test_copies_and_rates(kit: kits.Kit, device: KitDevice):
    for number, name in enumerate(rates.names(kit)):
        record = rates.measure(device, number)
        assert record.get("values_agree", True), name
        assert record.get("bytes_per_second", 0) or record["operations_per_second"] > 0


def test_attention_is_measured(kit: kits.Kit, device: KitDevice):
    device.machine.part = "table"  # graphs are not executed: only times count
    records = [{"name": name} for name in attention.names(kit)]
    for number, record in enumerate(records):
        record |= attention.measure(device, number)
        assert record["wrong"] == "", record["name"]
        assert record["cache_bytes_per_second"] > 0 and record["operations_per_second"] > 0
    assert {r["format"] for r in records} == {"f32", "f16", "kv8", "kv4"}
    assert len(report._attention({"attention": records})) == 2 + len(records)
    assert len(attention_peers.names(kit)) == 2


def test_probes(kit: kits.Kit, device: KitDevice):
    names = probes.names(kit)
    records = [{"name": name} | probes.measure(device, i) for i, name in enumerate(names)]
    assert [r["unit"] for r in records] == ["Hz", "s", "s", "B/s", "s", "s"]
    assert all(r["cycles"] > 0 for r in records if "latency" in r["name"])
    assert len(report._probes(records)) == 2 + len(records)


@pytest.mark.parametrize("arch", [SM_80, SM_90A])
def test_rates_count_their_operations(arch):
    forms = set()
    for kernel, job in mma_rates(arch, turns=2):
        counters, out = Counters(), np.zeros(256, np.int32)
        ptx = compile_kernel(arch, kernel)
        run_kernel(ptx.text, kernel.name, 1, 256, [out, job.turns, 3], counters=counters)
        (work,) = counters.counts().tensor.values()
        assert work.operations == job.operations * job.turns, job.name
        forms.add(job.name.removeprefix("mma.sync "))
    assert forms >= {"b1.m16n8k256", "s8.m16n8k32", "f16.m16n8k16", "bf16.m16n8k16"}


def test_operands_are_made_alike_on_both_sides():
    fill = next(k for k in memory_kernels() if k.name == "fill_bytes")
    ptx = compile_kernel(SM_90A, fill)
    out = np.zeros(2048, np.uint32)
    (words,) = run_kernel(ptx.text, fill.name, 2, 256, [out, 0])[:1]
    np.testing.assert_array_equal(words.view(np.uint32), hashed(np.arange(2048)))


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize(
    ("family", "mnemonic"), [("b1", "BGMMA"), ("s8", "IGMMA"), ("f16", "HGMMA")]
)
def test_wgmma_becomes_one_instruction(family, mnemonic):
    for text, job in wgmma_rates(64):
        if job.family != family or job.shape[1] not in (8, 256):
            continue
        code = assemble(text, SM_90A)
        used = code.resources[job.kernel]
        assert not used.spill_stores and not used.spill_loads
        if find_tool("nvdisasm"):
            listing = disassemble(code.cubin)[job.kernel]
            found = [line for line in listing if mnemonic in line]
            assert len(found) == job.instructions // 2, job.name
            assert not any("CALL" in line for line in listing)


def test_parts_go_on_after_a_failure(kit: kits.Kit, tmp_path: Path):
    def measure(context: kits.Kit, number: int) -> dict:
        if number == 1:
            raise AbqcError("cuLaunchKernel failed")
        return {"wrong": ""}

    part = Part(lambda kit: ["a", "b", "c"], measure, on_device=False)
    assert work.work(kit, "check", 0, 2, tmp_path, part) == work.FAULT
    assert work.work(kit, "check", 2, 3, tmp_path, part) == 0
    records = work.read(tmp_path / "check.jsonl")
    assert [r["name"] for r in records] == ["a", "b", "c"]
    assert report.failures({"check": records}) == ["check: b: cuLaunchKernel failed"]


QUICK = {"start_seconds": 5.0, "item_seconds": 1.0}


def ignore(name: str, records: list[dict], total: int) -> None:
    pass


def scripted(path: Path, script: str) -> work.Command:
    """Workers that run this, their records going to `path`."""
    head = (
        "import json, sys, time\n"
        "begin, end = map(int, sys.argv[2:])\n"
        "def put(item, **more):\n"
        "    with open(sys.argv[1], 'a') as file:\n"
        "        print(json.dumps({'item': item, 'name': str(item), **more}), file=file)\n"
    )
    return lambda name, begin, end: [
        *(sys.executable, "-c", head + script),
        *(str(path), str(begin), str(end)),
    ]


def test_two_items_without_an_answer_end_a_part(kit: kits.Kit, tmp_path: Path):
    command = scripted(tmp_path / "check.jsonl", "if not begin: put(0), put(1)\ntime.sleep(60)")
    records = work.supervise(kit, "check", tmp_path, command, ignore, **QUICK)
    assert len(records) == len(kit.cases)
    errors = [r.get("error") for r in records]
    assert errors[:2] == [None, None] and errors[2].startswith("no answer in 1 seconds")
    assert errors[3].startswith("no answer in 5 seconds")
    assert set(errors[4:]) == {f"not tried: {errors[3]}"}
    lines = report.failures({"check": records})
    assert len(lines) == 3 and f"{len(errors) - 4} items not tried" in lines[2]


def test_a_silent_item_between_others_is_left_out(kit: kits.Kit, tmp_path: Path):
    script = "for i in range(begin, end):\n    if i in (1, 3): time.sleep(60)\n    put(i)"
    command = scripted(tmp_path / "check.jsonl", script)
    records = work.supervise(kit, "check", tmp_path, command, ignore, end=5, **QUICK)
    assert ["error" in r for r in records] == [False, True, False, True, False]


def test_workers_that_always_end_at_once_are_given_up(kit: kits.Kit, tmp_path: Path):
    command = scripted(tmp_path / "check.jsonl", "sys.exit(5)")
    records = work.supervise(kit, "check", tmp_path, command, ignore, **QUICK)
    assert len(records) == len(kit.cases)
    tried = [r for r in records if r["error"] == "the process ended with status 5"]
    assert len(tried) == work.HOPELESS


def test_an_error_of_a_model_ends_its_worker(kit: kits.Kit, tmp_path: Path):
    """Nobody knows whether its context is still alive."""

    def measure(context: kits.Kit, number: int) -> dict:
        if number == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {}

    part = Part(lambda kit: ["a", "b", "c"], measure, on_device=False)
    assert work.work(kit, "models", 0, 3, tmp_path, part) == work.FAULT
    records = work.read(tmp_path / "models.jsonl")
    assert [r["name"] for r in records] == ["a", "b"]
    assert records[1]["error"].startswith("RuntimeError: CUDA error")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import os; os._exit(9)", "ended with status 9"),
        ("import os; os._exit(work.FAULT)", "ended with status 3"),
        ("pass", "ended before it was done"),
        ("import time; time.sleep(60)", "no answer"),
    ],
)
def test_workers_that_die_or_hang_are_replaced(kit: kits.Kit, tmp_path: Path, script, why):
    """The first item's worker fails; the next one does the rest."""
    rest = (
        "import json,sys\n"
        "for i in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    print(json.dumps({'item': i, 'name': str(i)}), file=open(sys.argv[3], 'a'))"
    )

    script = script.replace("work.FAULT", str(work.FAULT))

    def command(name: str, begin: int, end: int) -> list[str]:
        path = str(tmp_path / "check.jsonl")
        return [sys.executable, "-c", rest if begin else script, str(begin), str(end), path]

    def supervise(end: int) -> list[dict]:
        return work.supervise(kit, "check", tmp_path, command, ignore, end=end, **QUICK)

    assert len(supervise(2)) == 2
    records = supervise(len(kit.cases))  # goes on where it stopped
    assert [r["item"] for r in records] == list(range(len(kit.cases)))
    assert why in records[0]["error"] and not any("error" in r for r in records[1:])


def test_what_has_no_time_is_left_out_and_said(kit: kits.Kit, tmp_path: Path):
    """The worker does one item, then none until the deadline."""
    script = (
        "import json, sys, time\n"
        "with open(sys.argv[1], 'a') as file:\n"
        "    print(json.dumps({'item': 0, 'name': 'x', 'kernels': ['k']}), file=file)\n"
        "time.sleep(60)"
    )
    path = tmp_path / "check.jsonl"
    seen: list[int] = []

    def command(name: str, begin: int, end: int) -> list[str]:
        return [sys.executable, "-c", script, str(path)]

    def progress(name: str, records: list[dict], total: int) -> None:
        seen.append(len(records))

    deadline = time.monotonic() + 1.5
    records = work.supervise(kit, "check", tmp_path, command, progress, deadline=deadline)
    assert len(records) == 1 and seen[-1] == 1
    assert report.unreached(kit, {"check": records}) == [f"{len(kit.cases) - 1} items of check"]
    machine = {"device": "PTX machine"}
    text = report.summary(kit, machine, {"check": records})
    assert "not reached: " in text and "None in what ran." in text


def test_a_run_does_every_item_once(kit: kits.Kit, tmp_path: Path, monkeypatch, capsys):
    """The lines of the table come in two turns; results are complete, what is printed is short."""
    script = (
        "import json, sys\n"
        "begin, end = map(int, sys.argv[2:])\n"
        "with open(sys.argv[1], 'a') as file:\n"
        "    for i in range(begin, end):\n"
        "        gpu = {'device': 'x', 'driver': 'y'} if 'machine' in sys.argv[1] else {}\n"
        "        error = {} if gpu else {'error': 'no GPU'}\n"
        "        print(json.dumps({'item': i, 'name': str(i), **gpu, **error}), file=file)"
    )

    def worker_command(path: Path, kit: Path, results: Path) -> work.Command:
        return lambda name, begin, end: [
            *(sys.executable, "-c", script),
            *(str(results / f"{name}.jsonl"), str(begin), str(end)),
        ]

    monkeypatch.setattr(work, "worker_command", worker_command)
    first = {"check": 1, "table": 2, "baselines": 1}
    monkeypatch.setattr(bars, "first_items", lambda kit: first)
    every = list(run.CHOICES)
    steps = run._steps(kit, every)
    assert [name for name, _ in steps] == [
        *("rates", "probes", "check", "table", "baselines", "operators"),
        *("attention", "attention-peers", "models", "launches"),
        *("check", "table", "baselines", "peers", "sanitizer"),
    ]
    assert run._run(kit, every, tmp_path, time.monotonic() + 60) == 1
    records = json.loads((tmp_path / "results.json").read_text())["records"]
    assert set(records) == set(PARTS) - {run.MACHINE}
    for name, part in ((name, PARTS[name]) for name in records):
        assert [r["item"] for r in records[name]] == list(range(len(part.names(kit))))
    assert len(list(tmp_path.iterdir())) <= 16
    assert len(capsys.readouterr().out) < 12_000


def test_bars_come_first():
    target = CudaTarget.named("sm_90a")
    assert target is not None
    shapes = ((256, 40), *(shape for shape, _ in (bars.FASTER,)))
    plan = Plan(**{**vars(TINY), "shapes": shapes, "formats": ("W4A8", "W2A8"), "rows": (1, 8)})
    lines = [(c.format, c.spec.k, c.features.m) for c in select(plan, target)]
    wanted = ("W2A8", 8192, 1)
    count = lines.count(wanted)
    assert 0 < count < len(lines) and lines[:count] == [wanted] * count
    f = {"k": 256, "n": 40, "m": bars.MANY_ROWS}
    assert bars.needs(f, "W4A4") and not bars.needs(f | {"m": 8}, "W4A4")


def test_without_a_gpu_it_says_so(kit: kits.Kit, tmp_path: Path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    command = [sys.executable, "run.py", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=kit.folder, capture_output=True, text=True)
    assert done.returncode == 1 and "no NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_gpu_is_refused(kit: kits.Kit):
    driver = KitDriver((8, 0))
    with pytest.raises(AbqcError, match=r"has compute capability 8\.0"):
        KitDevice(kit, driver.resolve)


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
def test_a_driver_that_reads_no_cubin_gets_ptx(kit: kits.Kit, tmp_path: Path):
    images = Images(SM_90A, tmp_path, True, lambda text: None)
    (copy, fill, _) = memory_kernels()
    images.add(fill), images.add(copy)
    first = len(zlib.compress(compile_kernel(SM_90A, fill).text.encode() + b"\0", 9))
    kernels = images.with_ptx(first)
    assert [kernels[k.name].ptx for k in (fill, copy)] == [True, False]
    mixed = kits.Kit(**{**vars(kit), "folder": tmp_path, "kernels": kernels})
    with KitDevice(mixed, KitDriver().resolve) as device:  # a machine that reads PTX alone
        device.buffer("x", 100, "fill_bytes")
        assert device.from_ptx == {"fill_bytes"}
        with pytest.raises(AbqcError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
            device.launch_of("copy_16", 1)


SANITIZER = """\
#!/bin/sh
echo "========= COMPUTE-SANITIZER"
echo "========= Invalid __global__ read of size 4 bytes"
[ "$2" = racecheck ] && exit 9
exit 0
"""


def test_a_sample_goes_through_compute_sanitizer(kit: kits.Kit, tmp_path: Path, monkeypatch):
    names = sanitizer.names(kit)
    strategies = {case.strategy for _, case in sanitizer.sample(kit)}
    assert len(strategies) > 2 and len(names) <= 3 * 2 * len(strategies)
    monkeypatch.setattr(sanitizer, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitizer.measure(kit, 0) == {"missing": "compute-sanitizer is not installed"}
    program = tmp_path / sanitizer.PROGRAM
    program.write_text(SANITIZER)
    program.chmod(0o755)
    each = len(names) // 3
    assert sanitizer.measure(kit, 0)["wrong"] == ""
    found = sanitizer.measure(kit, each)["wrong"]
    assert found == "status 9: Invalid __global__ read of size 4 bytes"


def test_what_cannot_be_built(tmp_path: Path):
    with pytest.raises(InputError, match="one GPU target"):
        build.build(TINY, "sm_80,sm_90a", tmp_path, lambda text: None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        build.build(TINY, "sm_90a", tmp_path, lambda text: None)
    with pytest.raises(InputError, match="is no kit"):
        kits.read(tmp_path)


def test_blocks_that_share_tiles_get_slots_and_counters():
    spec = MatmulSpec(72, 256, parse_scheme("w4"), parse_scheme("a8"))
    shares, strategy = Schedule("wgmma", 16, 64, 64, 1, 4, 1, 3, 2, 3), Int8Matmul()
    features = strategy.features(spec, shares, 20)
    chosen = Chosen("W4A8", spec, strategy, shares, features, 1.0)
    launches, sizes = chosen.launches(20, 72), {}

    def buffer(name: str, nbytes: int, fill: str | None = None) -> str:
        sizes[name] = nbytes, fill
        return name

    recorder = SimpleNamespace(buffer=buffer, launch_of=lambda *arguments: arguments)
    (launch,) = matmul_launches(recorder, launches, 20, 72, "q", "w", "bias", "y")
    name = chosen.kernel.name
    assert launch == (name, 3, "q", "w", "bias", "y", 20, 72, "workspace", 0, "counters")
    slots = 3 * 4 * 16 * 64  # bytes, of three blocks
    assert sizes == {"workspace": (slots, None), "counters": (4 * 3 * 4, "zeros")}


def test_bars_are_judged():
    row = {"k": 8192, "n": 28672, "m": 1, "format": "W4A16", "strategy": "dequantize"}
    row |= {"weight_bytes_per_second": 3e12, "total_seconds": 1e-5}
    square = row | {"n": 8192, "format": "W2A8", "strategy": "int8"}
    many = row | {"m": 4096, "operations_per_second": {"f16": 2e14}}
    slow = many | {"n": 4096, "operations_per_second": {"f16": 1e14}}
    records = {
        "rates": [
            {"name": rates.COPY_KERNEL, "bytes_per_second": 4e12},
            {"name": "mma.sync f16.m16n8k16", "operations_per_second": 4e14},
        ],
        "table": [row, row | {"weight_bytes_per_second": 2e12}, square, many, slow],
        "baselines": [{"kind": "f16", "m": 1, "n": 8192, "k": 8192, "seconds": 3e-5}],
    }
    verdicts = {bar.what: (bar.measured, bar.verdict) for bar in bars.judge(records)}
    streaming = "M=1 (8192,28672) {}: weight bytes/s over copied bandwidth"
    faster = "M=1 (8192,8192) {}: times faster than cuBLAS f16, packing counted"
    assert verdicts[streaming.format("W4A16")] == (0.75, "met")
    assert verdicts[streaming.format("W1A8")] == (None, "not measured")
    assert verdicts[faster.format("W2A8")] == (pytest.approx(3.0), "not met")
    many_rows = "M=4096 dequantize W4A16: operations/s over the instruction's rate"
    assert verdicts[many_rows] == (0.25, "not met")  # of the worst shape


@pytest.mark.parametrize("family", ["b1", "s8", "f16"])
def test_wgmma_values_are_looked_at(family):
    """Accumulators where the PTX ISA puts them agree with numpy; with one wrong they do not."""
    job = next(j for _, j in wgmma_rates(64) if j.family == family and j.shape[1] == 16)
    n = job.shape[1]
    product = rates.wgmma_product(job, seed=5) * (job.instructions // 2)
    thread, register = np.divmod(np.arange(256 * n // 2), n // 2)
    lane = thread % 32
    row = thread // 32 % 4 * 16 + lane // 4 + register // 2 % 2 * 8
    column = register // 4 * 8 + lane % 4 * 2 + register % 2
    values = product[row, column].astype(np.float32 if family == "f16" else np.int32)

    class Stub:
        kit = SimpleNamespace(kernels={job.kernel: SimpleNamespace(threads=256)})

        def buffer(self, name: str, nbytes: int) -> int:
            return 0

        launch_of = run = lambda self, *arguments: None

        def read(self, address: int, nbytes: int) -> np.ndarray:
            assert nbytes == values.nbytes
            return values.view(np.uint8)

    assert rates.agrees(Stub(), job)
    values[7] += 1000
    assert not rates.agrees(Stub(), job)
