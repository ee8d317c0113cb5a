"""PTX text -> a module. The grammar is `ptx.lark`.

An instruction is one token of the module's grammar. Its operands are parsed by the grammar's rule
`operands`, once per *shape* (the text with registers, numbers and names replaced by one letter
each): a module of 10,000 instructions has a few dozen shapes, so the second and further ones cost
one look-up.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from .errors import PtxSyntaxError
from .module import PtxModule
from .syntax import (
    Address,
    Arguments,
    Float,
    Function,
    Instruction,
    Integer,
    Label,
    Not,
    Operand,
    Pair,
    Register,
    Scope,
    Sink,
    Statement,
    Symbol,
    Targets,
    TensorAddress,
    Variable,
    Vector,
)
from .types import TYPES

_DROPPED = re.compile(
    r"//[^\n]*|/\*.*?\*/|^[ \t]*\.(?:loc|file)\b[^\n]*|^[ \t]*\.section[^{]*\{[^}]*\}"
    r'|(?P<kept>"[^"\n]*")',
    re.DOTALL | re.MULTILINE,
)
_GUARD = re.compile(r"@\s*(!?)\s*([%$\w]+)\s+")
_ATOM = re.compile(
    r"%[A-Za-z_$][\w$]*(?:\.[a-z]+)?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}"
    r"|\d+\.\d*(?:[eE][+-]?\d+)?|0[xX][0-9a-fA-F]+U?|\d+U?|[A-Za-z_$][\w$]*"
)


def parse(text: str) -> PtxModule:
    """Reads a module; PtxSyntaxError (with the line) where the text is not PTX."""
    try:
        tree = _grammar().parse(_without_comments(text), start="module")
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None
    return _module(tree)


def _without_comments(text: str) -> str:
    """The text with as many lines, without what says nothing about execution."""
    return _DROPPED.sub(lambda match: match["kept"] or "\n" * match[0].count("\n"), text)


@cache
def _grammar() -> Lark:
    return Lark.open("ptx.lark", rel_to=__file__, parser="lalr", start=["module", "operands"])


def _syntax_error(text: str, error: UnexpectedInput) -> PtxSyntaxError:
    if isinstance(error, UnexpectedEOF) or (
        isinstance(error, UnexpectedToken) and error.token.type == "$END"
    ):
        return PtxSyntaxError("the text ends too early", text.count("\n") + 1)
    line = error.line
    words = text.splitlines()[line - 1].strip() if 0 < line <= text.count("\n") + 1 else ""
    if isinstance(error, UnexpectedToken):
        return PtxSyntaxError(f"unexpected {str(error.token).split(chr(10))[0]!r}", line, words)
    assert isinstance(error, UnexpectedCharacters)
    return PtxSyntaxError(f"unexpected {error.char!r}", line, words)


# ---- declarations


def _module(tree: Tree) -> PtxModule:
    version = (0, 0)
    target: tuple[str, ...] = ()
    variables: list[Variable] = []
    functions: list[Function] = []
    for item in _trees(tree):
        if item.data == "version":
            major, minor = str(item.children[0]).split(".")
            version = (int(major), int(minor))
        elif item.data == "target":
            target = tuple(map(str, item.children))
        elif item.data == "variable":
            variables.extend(_variables(item))
        elif item.data == "function":
            functions.append(_function(item))
    return PtxModule(version, target, tuple(variables), tuple(functions))


def _function(tree: Tree) -> Function:
    """`(returns) name (parameters)`: which of the two lists stands there, their order tells."""
    lists: dict[str, tuple[Variable, ...]] = {"returns": (), "parameters": ()}
    name, kind, line = "", "", 0
    body: Scope | None = None
    bounds: dict[str, tuple[int, ...]] = {}
    for child in tree.children:
        if isinstance(child, Token):
            if child.type == "KIND":
                kind, line = str(child), child.line or 0
            else:
                name = str(child)
        elif child is None or child.data == "linkage":
            continue
        elif child.data == "parameters":
            which = "parameters" if name else "returns"
            lists[which] = tuple(_parameter(item) for item in _trees(child))
        elif child.data == "bound" and isinstance(child.children[0], Token):
            word, *numbers = child.children
            bounds[str(word)[1:]] = tuple(_integer(number) for number in numbers if number)
        elif child.data == "scope":
            body = _scope(child)
    return Function(
        name, kind == ".entry", lists["parameters"], lists["returns"], body, line, bounds
    )


def _trees(tree: Tree) -> Iterator[Tree]:
    return (child for child in tree.children if isinstance(child, Tree))


def _parameter(tree: Tree) -> Variable:
    return _declared(tree.children, tree.children)


def _variables(tree: Tree) -> Iterator[Variable]:
    for child in _trees(tree):
        if child.data == "declarator":
            yield _declared(tree.children, child.children)


def _declared(prefix: list, declarator: list) -> Variable:
    """One variable: what stands before all names of a declaration, and what belongs to this one."""
    space, type_name, align, vector, external = "", "", 0, 1, False
    for item in prefix:
        if isinstance(item, Token) and item.type == "SPACE":
            space = str(item)[1:]
        elif isinstance(item, Token) and item.type == "TYPE":
            type_name = str(item)[1:]
        elif isinstance(item, Tree) and item.data == "align":
            align = _integer(item.children[0])
        elif isinstance(item, Tree) and item.data == "vector":
            vector = int(str(item.children[0])[2:])
        elif isinstance(item, Tree) and item.data == "linkage":
            external = external or bool(item.children)
    name = next(item for item in declarator if _is_token(item, "NAME", "REGISTER"))
    count = next((_integer(item) for item in declarator if _is_token(item, "INT")), None)
    shape = tuple(
        _integer(item.children[0]) if item.children[0] else 0
        for item in declarator
        if isinstance(item, Tree) and item.data == "extent"
    )
    initial = [
        value
        for item in declarator
        if isinstance(item, Tree) and item.data in ("number", "symbol", "initializers")
        for value in _initial(item)
    ]
    if type_name not in TYPES:
        raise PtxSyntaxError(f"variables of type .{type_name} are not supported", name.line)
    type = TYPES[type_name]
    if initial and shape and shape[0] == 0:
        shape = (len(initial), *shape[1:])
    return Variable(
        space, type, str(name), name.line, vector, count, shape, align, external, tuple(initial)
    )


def _is_token(item: object, *types: str) -> bool:
    return isinstance(item, Token) and item.type in types


def _initial(tree: Tree) -> Iterator[int | Float | Symbol]:
    if tree.data == "initializers":
        for child in _trees(tree):
            yield from _initial(child)
    elif tree.data == "symbol":
        name, sign, offset = tree.children
        value = _integer(offset) if offset else 0
        yield Symbol(str(name), -value if sign == "-" else value)
    else:
        word = tree.children[-1]
        negative = tree.children[0] == "-"
        if _is_token(word, "FLOAT"):
            yield _float(str(word))
        else:
            yield -_integer(str(word)) if negative else _integer(str(word))


# ---- bodies


def _scope(tree: Tree) -> Scope:
    items: list[Statement] = []
    for child in _trees(tree):
        if child.data == "variable":
            items.extend(_variables(child))
        elif child.data == "scope":
            items.append(_scope(child))
        elif child.data == "instruction":
            items.append(_instruction(str(child.children[0]), _line(child)))
        elif child.data == "label":
            items.append(Label(str(child.children[0]).rstrip(": \t\n"), _line(child)))
        elif child.data == "targets":
            name, *labels = map(str, child.children)
            items.append(Targets(name.rstrip(": \t\n"), tuple(labels)))
    return Scope(tuple(items))


def _line(tree: Tree) -> int:
    """The line of a tree's only token."""
    token = tree.children[0]
    assert isinstance(token, Token)
    return token.line or 0


def _instruction(text: str, line: int) -> Instruction:
    text = " ".join(text.split())
    guard: Register | Not | None = None
    rest = text[:-1]
    if match := _GUARD.match(rest):
        register = Register(match[2])
        guard = Not(register) if match[1] else register
        rest = rest[match.end() :]
    opcode, _, operands = rest.partition(" ")
    name, *modifiers = _opcode(opcode)
    return Instruction(name, tuple(modifiers), _operands(operands, line), guard, line, text)


@cache
def _opcode(text: str) -> tuple[str, ...]:
    return tuple(text.split("."))


# ---- operands


def _operands(text: str, line: int) -> tuple[Operand, ...]:
    atoms = _ATOM.findall(text)
    shape = _ATOM.sub(_kind, text).replace(" ", "")
    tree = _SHAPES.get(shape)
    if tree is None:
        try:
            tree = _grammar().parse(text, start="operands")
        except UnexpectedInput:
            raise PtxSyntaxError("the operands are not understood", line, text) from None
        _SHAPES[shape] = tree
    words = iter(atoms)
    return tuple(_BUILDERS[child.data](child, words) for child in _trees(tree))


_SHAPES: dict[str, Tree] = {}


def _kind(match: re.Match[str]) -> str:
    """One letter for what the grammar tells apart."""
    word = match[0]
    if word[0] == "%":
        return "r"
    if word[0] in "0123456789":
        return "f" if "." in word or word[:2].lower() in ("0f", "0d") else "i"
    return "_" if word == "_" else "n"


Words = Iterator[str]


def _leaf_register(tree: Tree, words: Words) -> Operand:
    return _register(next(words))


def _leaf_float(tree: Tree, words: Words) -> Operand:
    return _float(next(words))


def _leaf_sink(tree: Tree, words: Words) -> Operand:
    next(words)
    return Sink()


def _leaf_integer(tree: Tree, words: Words) -> Operand:
    return Integer(_signed(tree.children[0], words))


def _signed(tree: Tree | Token, words: Words) -> int:
    """An INT token, or a tree of a sign and one."""
    value = _integer(next(words))
    negative = isinstance(tree, Tree) and tree.children[0] == "-"
    return -value if negative else value


def _offset(tokens: Sequence[Token | Tree], words: Words) -> int:
    """`+ 4`, `- 4` or `+ -4`, the tokens after a base."""
    if not tokens:
        return 0
    value = _integer(next(words))
    return -value if any(token == "-" for token in tokens[:-1]) else value


def _leaf_symbol(tree: Tree, words: Words) -> Operand:
    name = next(words)
    return Symbol(name, _offset(tree.children[1:], words))


def _leaf_generic(tree: Tree, words: Words) -> Operand:
    """`generic(name)`: addresses of global variables are generic addresses as they are."""
    next(words)
    name = next(words)
    tokens = [token for token in tree.children[2:] if token is not None]
    return Symbol(name, _offset(tokens, words))


def _leaf_address(tree: Tree, words: Words) -> Operand:
    word = next(words)
    if _is_token(tree.children[0], "INT"):
        return Address(None, _integer(word))
    base = _register(word) if word[0] == "%" else Symbol(word)
    return Address(base, _offset(tree.children[1:], words))


def _leaf_tensor_address(tree: Tree, words: Words) -> Operand:
    word = next(words)
    base = _register(word) if word[0] == "%" else Symbol(word)
    (vector,) = _trees(tree)
    return TensorAddress(base, _elements(vector, words))


def _leaf_negated(tree: Tree, words: Words) -> Operand:
    return Not(_register(next(words)))


def _elements(tree: Tree, words: Words) -> tuple[Operand, ...]:
    return tuple(_BUILDERS[child.data](child, words) for child in _trees(tree))


_BUILDERS: dict[str, Callable[[Tree, Words], Operand]] = {
    "register": _leaf_register,
    "sink": _leaf_sink,
    "integer": _leaf_integer,
    "float": _leaf_float,
    "symbol": _leaf_symbol,
    "generic": _leaf_generic,
    "address": _leaf_address,
    "tensor_address": _leaf_tensor_address,
    "negated": _leaf_negated,
    "vector": lambda tree, words: Vector(_elements(tree, words)),
    "pair": lambda tree, words: Pair(*_elements(tree, words)),
    "arguments": lambda tree, words: Arguments(_elements(tree, words)),
}


@cache
def _register(name: str) -> Register:
    return Register(name)


@cache
def _integer(text: str) -> int:
    text = str(text).rstrip("U")
    return int(text, 0) if text[:2].lower() in ("0x", "0b") else int(text)


@cache
def _float(text: str) -> Float:
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        return Float(struct.unpack("<f", struct.pack("<I", bits))[0], bits, 32)
    if text[:2] in ("0d", "0D"):
        bits = int(text[2:], 16)
        return Float(struct.unpack("<d", struct.pack("<Q", bits))[0], bits, 64)
    value = float(text)
    return Float(value, struct.unpack("<Q", struct.pack("<d", value))[0], 64)
