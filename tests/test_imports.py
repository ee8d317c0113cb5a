"""Who may import whom: the table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
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


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all that a module imports, wherever in it; `a.b` for `from a import b`."""
    package = ["abqc", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*source, alias.name]) for alias in node.names)


def ours(path: Path) -> Iterator[str]:
    """What a module imports of ours, without the package's name: `dialects.formats.Scheme`."""
    for name in imports(path):
        if name.startswith("abqc."):
            yield name.removeprefix("abqc.")


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_module = pytest.mark.parametrize("path", MODULES, ids=module_id)


def test_the_table_names_every_folder() -> None:
    assert set(read_table()) == set(FOLDERS)


@each_module
def test_import_directions(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = read_table()[folder] | {folder, "errors", "__version__"}
    for name in ours(path):
        assert any(name == prefix or name.startswith(prefix + ".") for prefix in allowed), name


@each_module
def test_kernels_for_cpus_and_gpus_are_apart(path: Path) -> None:
    folder, part = path.relative_to(ROOT).parts[:2]
    if folder == "codegen" and part in ("cpu", "gpu"):
        other = "codegen.gpu" if part == "cpu" else "codegen.cpu"
        assert not [name for name in ours(path) if f"{name}.".startswith(f"{other}.")]


def test_every_folder_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in MODULES}
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({"abqc", *(".".join(["abqc", *f.parts]) for f in folders)})


@each_module
def test_nothing_imports_the_compiler(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "compiler":
        assert not [name for name in ours(path) if name.split(".")[0] == "compiler"]


@each_module
def test_only_one_place_imports_the_bindings(path: Path) -> None:
    if not BINDINGS.fullmatch(module_id(path)):
        assert not [name for name in imports(path) if name.split(".")[0] == "torch_mlir"]


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


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in MODULES
        # The PTX machine, which nothing else of the runtime imports, reads PTX with lark.
        if path.relative_to(ROOT).parts[0] == "runtime" and "ptx" not in path.parts
    ]
    + [ROOT / "dialects" / "formats.py", ROOT / "dialects" / "group_scales.py"],
    ids=module_id,
)
def test_only_numpy_is_named(path: Path) -> None:
    allowed = NUMPY_ONLY | ({"lark"} if path.parent.name == "ptx" else set())
    assert {name.split(".")[0] for name in imports(path)} <= allowed


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
