"""Which operators the zoo's models use, in which forms.

    python tests/zoo/operators.py [GLOB ...] [--output FILE.md]

Reads the models in the cache; control flow's bodies and functions are counted too.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx
from onnx import AttributeProto, helper
from zoo.entry import chosen
from zoo.make import path_of
from zoo.table import ENTRIES

# Longer attribute values are shown as their length.
SHOWN = 6


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                yield from nodes_of(graph.node)


def form_of(node: onnx.NodeProto) -> str:
    """The attributes and which inputs are given, as in `axis=-1; inputs 11-1`."""
    if node.op_type == "Constant":
        return ", ".join(a.name for a in node.attribute)
    parts = []
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        parts.append(f"{attribute.name}={_short(attribute)}")
    given = "".join("1" if name else "-" for name in node.input)
    return f"{' '.join(parts)}; inputs {given} outputs {len(node.output)}".lstrip("; ")


def _short(attribute: AttributeProto) -> str:
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return "body"
    if attribute.type == AttributeProto.TENSOR:
        return f"tensor{list(attribute.t.dims)}"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "__len__") and len(value) > SHOWN:
        return f"[{len(value)} values]"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")


def report(models: Iterable[tuple[str, Path]]) -> str:
    """Markdown: operator, how many models and nodes, opsets, its commonest forms."""
    nodes: Counter[str] = Counter()
    users: dict[str, set[str]] = defaultdict(set)
    opsets: dict[str, set[int]] = defaultdict(set)
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    total = 0
    for name, path in models:
        model = onnx.load(path, load_external_data=False)
        versions = {o.domain: o.version for o in model.opset_import}
        total += 1
        function_nodes = [node for function in model.functions for node in function.node]
        for node in nodes_of([*model.graph.node, *function_nodes]):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            nodes[operator] += 1
            users[operator].add(name)
            opsets[operator].add(versions.get(node.domain, 1))
            forms[operator][form_of(node)] += 1
    lines = [f"# Operators of {total} models", "", "| operator | models | nodes | opsets | forms |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for operator in sorted(users, key=lambda o: (-len(users[o]), o)):
        common = [f"`{f or 'plain'}` x{n}" for f, n in forms[operator].most_common(8)]
        more = len(forms[operator]) - len(common)
        cells = [
            operator,
            str(len(users[operator])),
            str(nodes[operator]),
            ",".join(map(str, sorted(opsets[operator]))),
            "<br>".join(common).replace("|", "/") + (f"<br>and {more} more" if more > 0 else ""),
        ]
        if len(users[operator]) <= 3:
            cells[0] += f" ({', '.join(sorted(users[operator]))})"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="GLOB")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = [(e.name, path_of(e)) for e in chosen(ENTRIES, arguments.patterns)]
    text = report((name, path) for name, path in found if path is not None)
    if arguments.output is None:
        print(text)
        return
    partial = arguments.output.with_name(arguments.output.name + ".part")
    partial.write_text(text)
    partial.replace(arguments.output)


if __name__ == "__main__":
    main()
