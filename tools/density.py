#!/usr/bin/env python3
"""How densely the code is written: ``python tools/density.py`` prints figures for each folder.

It fails where one line holds more than a reader takes in at once: a walrus inside a comprehension
or a call, a comprehension of two levels, or more than 30 comprehension clauses per 1,000 lines.
(Long lines and lambdas that capture a loop variable are found by ruff: E501 and B023.)
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"package": "projects", "tests": "tests", "rest": ""}  # the first that fits
MAX_CLAUSES = 30  # for and async for in comprehensions, per 1,000 lines

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Figures:
    lines: int = 0
    comments: int = 0  # lines
    clauses: int = 0
    functions: int = 0
    function_lines: int = 0

    @property
    def clauses_per_1000(self) -> float:
        return 1000 * self.clauses / max(self.lines, 1)


def walk(
    node: ast.AST, ancestors: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """Every node with its ancestors inside the same statement, the closest one last."""
    yield node, list(ancestors)
    inside = () if isinstance(node, ast.stmt) else (*ancestors, node)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, inside)


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line number and description of each expression that should be written out."""
    for node, ancestors in walk(tree):
        in_comprehension = any(isinstance(ancestor, COMPREHENSIONS) for ancestor in ancestors)
        in_call = any(isinstance(ancestor, ast.Call) for ancestor in ancestors)
        if isinstance(node, ast.NamedExpr) and (in_comprehension or in_call):
            yield node.lineno, "walrus inside a comprehension or a call"
        if isinstance(node, COMPREHENSIONS) and (in_comprehension or len(node.generators) > 1):
            yield node.lineno, "comprehension of two levels"


def measure(source: str, tree: ast.AST, figures: Figures) -> None:
    """Add what one file holds."""
    lines = source.splitlines()
    figures.lines += len(lines)
    figures.comments += sum(line.lstrip().startswith("#") for line in lines)
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            figures.clauses += len(node.generators)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            figures.functions += 1
            figures.function_lines += node.end_lineno - node.lineno + 1


def main() -> int:
    tracked = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    table = {folder: Figures() for folder in FOLDERS}
    failed = False
    for name in tracked:
        source = (ROOT / name).read_text(encoding="utf-8")
        tree = ast.parse(source)
        folder = next(folder for folder, start in FOLDERS.items() if name.startswith(start))
        measure(source, tree, table[folder])
        for line, fault in faults(tree):
            failed = True
            print(f"{name}:{line}: {fault}; write the loop")

    print("           lines  comprehension clauses  comment lines  lines per function")
    print("                        per 1,000 lines       per cent")
    for folder, figures in table.items():
        comments = 100 * figures.comments / max(figures.lines, 1)
        length = figures.function_lines / max(figures.functions, 1)
        clauses = figures.clauses_per_1000
        print(f"{folder:9} {figures.lines:7,} {clauses:16.1f} {comments:19.1f} {length:16.1f}")
        if clauses > MAX_CLAUSES:
            failed = True
            print(f"{folder}: more than {MAX_CLAUSES} comprehension clauses per 1,000 lines")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
