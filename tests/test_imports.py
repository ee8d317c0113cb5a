"""Who may import whom: the table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import abqc
import pytest

ROOT = Path(abqc.__file__).parent
FOLDERS = ("dialects", "runtime", "costmodel", "passes", "codegen", "compiler")
BINDINGS = re.compile(r"dialects/(mlir|bindings/\w+)\.py")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NUMPY_ONLY = {"numpy", "abqc"} | sys.stdlib_module_names


def read_table() -> dict[str, set[str]]:
    """Folder -> what it may import of ours, besides itself and `errors`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("## Who may import whom")[1].split("\n## ")[0]
    table: dict[str, set[str]] = {}
    for folder, allowed in re.findall(r"^\| `(\w+)/` \| (.*) \|$", section, re.MULTILINE):
        table[folder] = (
            set(FOLDERS) if allowed == "all" else set(re.findall(r"`([\w.]+)`", allowed))
        )
    return table


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Absolute names of all that a module imports, wherever in it; `a.b` for `from a import b`."""
    package = ["abqc", *path.relative_to(ROOT).parts[:-1]]
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = [*base, *(node.module.split(".") if node.module else [])]
            names += (".".join([*source, alias.name]) for alias in node.names)
    return tuple(names)


def ours(path: Path) -> list[str]:
    """What a module imports of ours, without the package's name: `dialects.formats.Scheme`."""
    return [name.removeprefix("abqc.") for name in imports(path) if name.startswith("abqc.")]


def is_part_of(name: str, other: str) -> bool:
    return f"{name}.".startswith(f"{other}.")


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_table_names_every_folder() -> None:
    assert set(read_table()) == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_import_directions(folder: str) -> None:
    allowed = read_table()[folder] | {folder, "errors", "__version__"}
    wrong = [
        (module_id(path), name)
        for path in (ROOT / folder).rglob("*.py")
        for name in ours(path)
        if not any(is_part_of(name, part) for part in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize(("part", "other"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_kernels_for_cpus_and_gpus_are_apart(part: str, other: str) -> None:
    modules = list((ROOT / "codegen" / part).rglob("*.py"))
    wrong = [
        (module_id(path), name)
        for path in modules
        for name in ours(path)
        if is_part_of(name, f"codegen.{other}")
    ]
    assert modules and not wrong


def test_every_folder_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in MODULES}
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({"abqc", *(".".join(["abqc", *f.parts]) for f in folders)})


def test_nothing_imports_the_compiler() -> None:
    wrong = [
        module_id(path)
        for path in MODULES
        if path.relative_to(ROOT).parts[0] != "compiler"
        and any(is_part_of(name, "compiler") for name in ours(path))
    ]
    assert not wrong


def test_only_one_place_imports_the_bindings() -> None:
    users = [
        module_id(path)
        for path in MODULES
        if any(is_part_of(name, "torch_mlir") for name in imports(path))
    ]
    assert users and not [user for user in users if not BINDINGS.fullmatch(user)]


def test_errors_import_nothing() -> None:
    assert set(imports(ROOT / "errors.py")) <= {"__future__.annotations"}


@pytest.mark.parametrize("module", ["abqc.runtime", "abqc.runtime.model", "abqc.dialects.formats"])
def test_numpy_is_enough(module: str) -> None:
    """Loading it in a fresh interpreter brings in no package but numpy."""
    code = f"import {module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    foreign = {"torch_mlir", "onnx", "llvmlite", "lark", "onnxruntime"} & loaded
    assert not foreign


def test_only_numpy_is_named() -> None:
    # The PTX machine, which nothing else of the runtime imports, reads PTX with lark.
    runtime = [path for path in (ROOT / "runtime").rglob("*.py") if "ptx" not in path.parts]
    formats = [ROOT / "dialects" / "formats.py", ROOT / "dialects" / "group_scales.py"]
    wrong = [
        (module_id(path), name)
        for path in [*runtime, *formats]
        for name in imports(path)
        if name.split(".")[0] not in NUMPY_ONLY
    ]
    assert runtime and not wrong


def test_the_server_imports_nothing_that_most_compiles_do_without() -> None:
    code = "import abqc.compiler.worker, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rare = {
        "torch_mlir.dialects.linalg",  # interprets the definitions of all named operations
        "torch_mlir.dialects.llvm",
        "torch_mlir.dialects.nvvm",
        "onnx.reference",
        "lark",
    }
    assert not rare & set(done.stdout.split())
