"""What becomes of each operator: `python -m abqc.compiler.onnx_import.operator_table` prints it.

`docs/operators.md` is that text, and a test holds it true.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from onnx import defs

from .refusals import REFUSALS
from .registry import RULES, load_rules

LOWERED, EXPANDED, REFUSED, ABSENT = "lowered", "expanded", "refused", "not supported"

_TITLES = {
    "": "ONNX",
    "ai.onnx.ml": "ai.onnx.ml",
    "ai.onnx.preview": "ai.onnx.preview",
    "ai.onnx.preview.training": "ai.onnx.preview.training",
    "com.microsoft": "com.microsoft (onnxruntime)",
}

# Operators that the steps around the rules take care of.
_ELSEWHERE = {
    ("", "Constant"): "folding.py",
    ("ai.onnx.ml", "ZipMap"): "taken off where it is the last node: zip_map.py",
}


@dataclass(frozen=True)
class Operator:
    """`state` is one of the words above, `note` says where its rule is, or why it is refused."""

    domain: str
    name: str
    state: str
    note: str = ""


def operators() -> list[Operator]:
    """Every operator that ONNX defines, and those of other domains that have a rule or a reason."""
    load_rules()
    schemas = {(schema.domain, schema.name): schema for schema in defs.get_all_schemas()}
    names = sorted({*schemas, *RULES, *REFUSALS})
    return [_operator(domain, name, schemas.get((domain, name))) for domain, name in names]


def _operator(domain: str, name: str, schema: defs.OpSchema | None) -> Operator:
    if (domain, name) in RULES:
        files = {entry.rule.__module__.rpartition(".")[2] for entry in RULES[domain, name]}
        return Operator(
            domain, name, LOWERED, ", ".join(f"ops/{file}.py" for file in sorted(files))
        )
    if (domain, name) in REFUSALS:
        return Operator(domain, name, REFUSED, REFUSALS[domain, name])
    if (domain, name) in _ELSEWHERE:
        return Operator(domain, name, LOWERED, _ELSEWHERE[domain, name])
    if schema is not None and (
        schema.function_opset_versions or schema.context_dependent_function_opset_versions
    ):
        return Operator(domain, name, EXPANDED, "by ONNX's own definition")
    return Operator(domain, name, ABSENT)


def text() -> str:
    """The page, in Markdown."""
    table = operators()
    counts = Counter((operator.domain, operator.state) for operator in table)
    lines = [
        "# Operators",
        "",
        "Made by `make operators` from the table of rules. *Lowered*: a rule of ours builds linalg",
        "and abq ops. *Expanded*: by the definition that ONNX gives in simpler operators. Rules",
        "serve every version of an operator, from opset 1 to the newest that the installed onnx",
        f"knows ({defs.onnx_opset_version()} when this was written). Single forms can still be",
        "refused: the error names the node and the reason.",
        "",
        "| domain | lowered | expanded | refused | not supported |",
        "| --- | --- | --- | --- | --- |",
    ]
    domains = list(dict.fromkeys(operator.domain for operator in table))
    for domain in domains:
        numbers = [str(counts[domain, state]) for state in (LOWERED, EXPANDED, REFUSED, ABSENT)]
        lines.append(f"| {_TITLES.get(domain, domain)} | {' | '.join(numbers)} |")
    for domain in domains:
        lines += ["", f"## {_TITLES.get(domain, domain)}", ""]
        lines += ["| operator | | |", "| --- | --- | --- |"]
        lines += [
            f"| {operator.name} | {operator.state} | {operator.note} |"
            for operator in table
            if operator.domain == domain
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(text(), end="")
