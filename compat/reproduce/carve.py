"""Text of functions of ours, cut out of their files with all that they need, for scripts that import none of it.

In: names in modules under `compat/worker`. Out: Python source, in an order in which it runs. Read as text: the parent
imports no torch. What stands in a script is so the very arithmetic that the check used.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

WORKER = Path(__file__).parent.parent / "worker"
_OWN = "compat.worker"

DROPPED = frozenset({"ENTROPY", "CLOCK"})
"""Meters of the harness: statements that only call one of them are left out."""


@dataclass(frozen=True)
class _Module:
    """One file: its definitions by name, and what its imports bind."""

    name: str
    lines: tuple[str, ...]
    definitions: dict[str, ast.stmt]
    imports: dict[str, str]
    """Name -> the statement that binds it."""
    own: dict[str, tuple[str, str]]
    """Name -> (module of ours, name there, or "" for the module itself)."""

    def text(self, node: ast.stmt) -> str:
        """The source of a definition without documentation, meters and the names of our modules."""
        first = min((d.lineno for d in getattr(node, "decorator_list", [])), default=node.lineno)
        skipped = {n for part in ast.walk(node) for n in _left_out(part)}
        kept = [self.lines[n - 1] for n in range(first, (node.end_lineno or first) + 1) if n not in skipped]
        text = "\n".join(kept)
        for alias, (_, name) in self.own.items():
            if not name:
                text = re.sub(rf"\b{alias}\.(?=\w)", "", text)
        return text


def _left_out(node: ast.AST) -> range:
    """Lines of a statement that a script does without."""
    if not isinstance(node, ast.Expr):
        return range(0)
    value = node.value
    documentation = isinstance(value, ast.Constant) and isinstance(value.value, str)
    target = value.func if isinstance(value, ast.Call) else None
    meter = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in DROPPED
    return range(node.lineno, (node.end_lineno or node.lineno) + 1) if documentation or meter else range(0)


@cache
def _module(name: str) -> _Module:
    source = (WORKER / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, str] = {}
    own: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            definitions[node.target.id] = node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_OWN):
            inside = (node.module or "").removeprefix(_OWN).lstrip(".")
            own |= {a.asname or a.name: (inside, a.name) if inside else (a.name, "") for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports |= {a.asname or a.name: f"from {node.module} import {_as(a)}" for a in node.names}
        elif isinstance(node, ast.Import):
            imports |= {(a.asname or a.name).split(".")[0]: f"import {_as(a)}" for a in node.names}
    return _Module(name, tuple(source.splitlines()), definitions, imports, own)


def _as(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


@dataclass
class _Carver:
    imports: set[str] = field(default_factory=set)
    pieces: dict[str, str] = field(default_factory=dict)
    """Name -> its text, what it needs before it."""
    origins: dict[str, str] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    """Names of constants that need nothing of ours: they may stand first."""

    def need(self, module_name: str, name: str) -> None:
        module = _module(module_name)
        if name in module.own:
            self.need(*module.own[name])
            return
        if name in module.imports:
            if module.imports[name].split()[1].split(".")[0] == "compat":
                raise ValueError(f"{name}, which {module_name} imports, is no part of compat.worker")
            self.imports.add(module.imports[name])
            return
        if name not in module.definitions:
            return
        if self.origins.setdefault(name, module_name) != module_name:
            raise ValueError(f"{name} is defined in both {self.origins[name]} and {module_name}")
        if name in self.pieces:
            return
        self.pieces[name] = ""  # a function that needs itself
        node = module.definitions[name]
        needed = _needed(module, node)
        for wanted_module, wanted in needed:
            self.need(wanted_module, wanted)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and not any(n in self.pieces for _, n in needed):
            self.free.add(name)
        text = module.text(node)
        del self.pieces[name]  # behind what it needs
        self.pieces[name] = text


def _needed(module: _Module, node: ast.stmt) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    skipped = {n for part in ast.walk(node) for n in _left_out(part)}
    for part in ast.walk(node):
        if getattr(part, "lineno", 0) in skipped:
            continue
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in module.own:
            inside, name = module.own[part.value.id]
            if not name:
                found.append((inside, part.attr))
        elif isinstance(part, ast.Name) and module.own.get(part.id, ("", "x"))[1]:
            found.append((module.name, part.id))
    return found


@cache
def carved(*wanted: tuple[str, str]) -> tuple[list[str], str]:
    """(import statements, definitions) for (module, name) pairs, e.g. ("metrics", "Yardstick").

    Raises ValueError when two modules define one name differently, or where a name comes from another part of compat,
    KeyError for a name that does not exist.
    """
    carver = _Carver()
    for module, name in wanted:
        if name not in _module(module).definitions:
            raise KeyError(f"compat/worker/{module}.py defines no {name}")
        carver.need(module, name)
    texts = {n: re.sub(r"\n\s*\n+(?=[ \t])", "\n", text.rstrip()) for n, text in carver.pieces.items() if text}
    constants = "\n".join(text for name, text in texts.items() if name in carver.free)
    parts = [constants, *(text for name, text in texts.items() if name not in carver.free)]
    return sorted(carver.imports), "\n\n\n".join(part for part in parts if part)
