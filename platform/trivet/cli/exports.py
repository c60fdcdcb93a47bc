"""Exports: the names that a source file lets others use, as far as reading it can tell.

Python is parsed. JavaScript is only looked over: what cannot be told that way is left open, and
nobody is refused for it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NODE_SUFFIXES = (".mjs", ".js", ".cjs")


@dataclass(frozen=True, slots=True)
class Exports:
    """What a file exports. `is_all`: there is nothing else."""

    names: tuple[str, ...]
    is_all: bool = True


def exports_of(name: str, source: bytes) -> Exports:
    """Raises SyntaxError for Python that this interpreter does not understand."""
    if name.endswith(".py"):
        return _of_python(source, name)
    return _of_javascript(source.decode(errors="replace"))


# ---------------------------------------------------------------------------- Python


def _of_python(source: bytes, name: str) -> Exports:
    try:
        tree = ast.parse(source, name)
    except ValueError as error:  # a null byte, an encoding that is none
        raise SyntaxError(str(error)) from error
    names = [name for statement in _top_level(tree.body) for name in _bound(statement)]
    is_all = "*" not in names and "__getattr__" not in names
    public = (name for name in names if name != "*" and not name.startswith("_"))
    return Exports(tuple(dict.fromkeys(public)), is_all)


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of the module, those under its `if` and `try` included."""
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "handlers", "finalbody"):
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _top_level(getattr(statement, inner, ()))


def _bound(statement: ast.AST) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        if statement.value is not None:
            yield statement.target.id
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)


def functions_of(source: bytes) -> tuple[str, ...]:
    """Names of the public functions that a Python file defines."""
    tree = ast.parse(source)
    defined = (s.name for s in _top_level(tree.body) if isinstance(s, ast.FunctionDef))
    return tuple(dict.fromkeys(name for name in defined if not name.startswith("_")))


# ------------------------------------------------------------------------ JavaScript

_NOISE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`""", re.DOTALL
)
_NAME = r"[A-Za-z_$][\w$]*"
_DECLARED = re.compile(
    rf"\bexport\s+(?:(?:const|let|var|class)\s+|(?:async\s+)?function\s*\*?\s*)({_NAME})"
)
_DEFAULT = re.compile(r"\bexport\s+default\b")
_LISTED = re.compile(r"\bexport\s*\{([^}]*)\}")
_ASSIGNED = re.compile(rf"\b(?:module\s*\.\s*)?exports\s*\.\s*({_NAME})\s*=(?!=)")
_OBJECT = re.compile(r"\bmodule\s*\.\s*exports\s*=\s*\{")
_MEMBER = re.compile(rf"\s*(?:async\s+)?({_NAME})\s*(?:[,:(}}]|\Z)")
# Whatever gives exports in ways that a look does not follow.
_OPEN = re.compile(
    r"\bexport\s*\*|\bexport\s+(?:const|let|var)\s*[\[{]|\bmodule\s*\.\s*exports\s*=(?!=)|"
    r"\bexports\s*\[|\bObject\s*\.\s*(?:assign|definePropert)|\b__export\b|['\"`]"
)


def _of_javascript(source: str) -> Exports:
    text = _NOISE.sub(lambda match: " " if match[0].startswith("/") else "_", source)
    names = [*_DECLARED.findall(text), *_ASSIGNED.findall(text)]
    if _DEFAULT.search(text):
        names.append("default")
    for group in _LISTED.findall(text):
        names += [entry.split()[-1] for entry in group.split(",") if entry.split()]
    is_all = not _OPEN.search(_OBJECT.sub(" ", text))
    for match in _OBJECT.finditer(text):
        for member in _members(text[match.end() :]):
            found = _MEMBER.match(member)
            is_all = is_all and (found is not None or not member.strip())
            names += [found[1]] if found else []
    return Exports(tuple(dict.fromkeys(names)), is_all)


def _members(text: str) -> Iterator[str]:
    """The members of the object whose opening brace is just before `text`."""
    depth, begin = 0, 0
    for place, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif depth and character in ")]}":
            depth -= 1
        elif character in ",}" and not depth:
            yield text[begin:place]
            begin = place + 1
            if character == "}":
                return
