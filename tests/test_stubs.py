"""The stubs of the native modules name what the modules have, with the parameter names callers can use.

``mypy.stubtest`` does not see parameter names of pybind11 functions, so they are read from the docstring signatures.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import cascadia_fast

PACKAGE = Path(cascadia_fast.__file__).parent
NATIVE = ["_core", "monitor"]
Signatures = dict[str, list[list[str]]]


def split_parameters(text: str) -> list[str]:
    """Split what stands between a signature's parentheses at its top-level commas; defaults may hold anything."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{<":
            depth += 1
        elif char in ")]}" or (char == ">" and text[i - 1] != "-"):
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def names_of(parameters: list[str]) -> list[str]:
    names = [re.split(r"[:=]", part, maxsplit=1)[0].strip() for part in parameters]
    return [name for name in names if name not in ("/", "*") and name.lstrip("*") not in ("self", "cls")]


def distinct(signatures: list[list[str]]) -> list[list[str]]:
    """Sorted, each once: overloads that differ in types alone may be written as one, on either side."""
    return [list(names) for names in sorted({tuple(names) for names in signatures})]


def docstring_signatures(name: str, docstring: str) -> list[list[str]]:
    """Parameter names of each signature in a docstring; several when the function is overloaded."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\(", docstring, re.MULTILINE):
        depth, end = 1, match.end()
        while end < len(docstring) and depth:
            depth += {"(": 1, ")": -1}.get(docstring[end], 0)
            end += 1
        found.append(names_of(split_parameters(docstring[match.end() : end - 1])))
    # "Overloaded function." repeats the name as name(*args, **kwargs) before the real signatures.
    return [names for names in found if names != ["*args", "**kwargs"]] or found


def native_signatures(module: types.ModuleType) -> Iterator[tuple[str, list[list[str]]]]:
    def of(qualified: str, member: object) -> Iterator[tuple[str, list[list[str]]]]:
        name = qualified.rsplit(".", 1)[-1]
        signatures = docstring_signatures(name, inspect.getdoc(member) or "")
        if not signatures:
            signatures = [names_of([str(p) for p in inspect.signature(member).parameters.values()])]  # type: ignore[arg-type]
        yield qualified, distinct(signatures)

    for name, member in vars(module).items():
        if name.startswith("_") or isinstance(member, types.ModuleType):
            continue
        if getattr(member, "__module__", module.__name__) != module.__name__:
            continue
        if not isinstance(member, type):
            if callable(member):
                yield from of(name, member)
            continue
        for attribute, function in ((name, getattr(held, "__func__", held)) for name, held in vars(member).items()):
            has_init = attribute == "__init__" and bool(docstring_signatures("__init__", function.__doc__ or ""))
            if callable(function) and (has_init or not attribute.startswith("_")):
                for qualified, signatures in of(f"{name}.{attribute}", function):
                    # A class that takes many numbers by name lists them.
                    listed = signatures == [["**kwargs"]] and attribute == "__init__"
                    yield qualified, [list(member.names)] if listed else signatures


def stub_signatures(path: Path) -> Signatures:
    found: Signatures = {}

    def add(prefix: str, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                add(f"{node.name}.", node.body)
            elif isinstance(node, ast.FunctionDef):
                if any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list):
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
                found.setdefault(prefix + node.name, []).append(names)

    add("", ast.parse(path.read_text(encoding="utf-8")).body)
    return {name: distinct(signatures) for name, signatures in found.items()}


def stub_attributes(path: Path) -> dict[str, set[str]]:
    """Names each class of a stub has, methods and attributes alike."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            functions = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            annotated = {
                n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
            found[node.name] = functions | annotated
    return found


def test_docstring_reader_handles_defaults_brackets_and_overloads() -> None:
    docstring = """f(*args, **kwargs)
Overloaded function.

1. f(self: m.A, x: typing.Annotated[typing.Any, "f8"], y: tuple[int, int] = (1, 2), *, k: str = ', )') -> int

2. f(self: m.A, g: collections.abc.Callable[[int], None] = <function h at 0x7f>, last: bool = True) -> None
"""
    assert docstring_signatures("f", docstring) == [["x", "y", "k"], ["g", "last"]]


@pytest.mark.parametrize("name", NATIVE)
def test_parameter_names_in_the_stub_are_those_of_the_module(name: str) -> None:
    module = importlib.import_module(f"cascadia_fast.{name}")
    native = dict(native_signatures(module))
    stub = stub_signatures(PACKAGE / f"{name}.pyi")
    stub = {key: value for key, value in stub.items() if key in native or not key.rsplit(".", 1)[-1].startswith("_")}
    assert native.keys() == stub.keys()
    assert {key: (stub[key], native[key]) for key in native if stub[key] != native[key]} == {}


@pytest.mark.parametrize("name", NATIVE)
def test_the_stub_has_every_public_attribute_of_every_class(name: str) -> None:
    module = importlib.import_module(f"cascadia_fast.{name}")
    stub = stub_attributes(PACKAGE / f"{name}.pyi")
    native = {
        key: {attribute for attribute in vars(member) if not attribute.startswith("_")}
        for key, member in vars(module).items()
        if isinstance(member, type) and member.__module__ == module.__name__ and not key.startswith("_")
    }
    assert native.keys() <= stub.keys()
    for key, attributes in native.items():
        assert attributes == {attribute for attribute in stub[key] if not attribute.startswith("_")}, key
