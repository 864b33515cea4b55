"""Imports point one way: read from the sources with `ast`, so that nothing needs to run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("hwprofiles", "sim", "planner", "calibration", "dashboards", "planner.cli")

# Inside sim each part imports only parts that stand before it; the longest matching name counts.
# `build.repeats` and what follows it stand behind the engine: they turn a step profile or priced layers into tasks.
SIM_ORDER = (
    "model", "workload", "lengths", "routing", "plan", "columns", "mesh", "ops", "report", "families", "build",
    "cost", "engine", "build.repeats", "build.work", "build.builder", "build.programs", "build.tasks", "build.lanes",
    "build.alike", "build.groups",
    "build.detail", "interval", "scenario", "checks", "flop", "pipelines", "screen", "noise", "host", "account", "run",
    "mixed", "notes", "imbalance", "detail", "packs", "ramp",
)  # fmt: skip
HEAVY = ("torch", "pynvml")


def imported(path: Path, module: str) -> list[tuple[str, int, bool]]:
    """(dotted name, line, inside a function or TYPE_CHECKING) of every import of a file."""
    found: list[tuple[str, int, bool]] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            found.extend((f"{base}.{alias.name}", node.lineno, late) for alias in node.names)
        inner = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inner = True
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def room(name: str) -> str | None:
    if name == "planner.cli" or name.startswith("planner.cli."):
        return "planner.cli"
    head = name.partition(".")[0]
    return head if head in ROOMS else None


def place(root: Path, path: Path, line: int) -> str:
    return f"{path.relative_to(root)}:{line}"


def test_rooms_import_only_rooms_before_them(root: Path, modules: dict[str, Path]) -> None:
    wrong = []
    for module, path in modules.items():
        own = ROOMS.index(room(module) or "")
        for name, line, _ in imported(path, module):
            other = room(name)
            if other is not None and ROOMS.index(other) > own:
                wrong.append(f"{place(root, path, line)}: {room(module)} must not import {name}")
    assert not wrong, "\n".join(wrong)


def sim_place(name: str) -> int | None:
    """Where a module (or a name imported from one) stands in SIM_ORDER; None outside sim or for sim itself."""
    pieces = name.split(".")[1:] if name.startswith("sim.") else []
    for length in (2, 1):
        if len(pieces) >= length and ".".join(pieces[:length]) in SIM_ORDER:
            return SIM_ORDER.index(".".join(pieces[:length]))
    return None


def test_parts_of_sim_import_only_parts_before_them(root: Path, modules: dict[str, Path]) -> None:
    wrong = []
    for module, path in modules.items():
        own = sim_place(module)
        if own is None:
            assert not module.startswith("sim."), f"{module} has no place in SIM_ORDER"
            continue
        for name, line, _ in imported(path, module):
            other = sim_place(name)
            if other is not None and other > own:
                wrong.append(f"{place(root, path, line)}: {module} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_torch_is_imported_only_inside_functions_of_the_harness(root: Path, modules: dict[str, Path]) -> None:
    wrong = []
    for module, path in modules.items():
        for name, line, late in imported(path, module):
            if name.partition(".")[0] in HEAVY and not (late and module.startswith("calibration.harness")):
                wrong.append(f"{place(root, path, line)}: {name}")
    assert not wrong, "\n".join(wrong)


def test_no_room_imports_tests_or_benchmarks(root: Path, modules: dict[str, Path]) -> None:
    for module, path in modules.items():
        for name, line, _ in imported(path, module):
            assert name.partition(".")[0] not in {"tests", "benchmarks"}, place(root, path, line)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_help_imports_nothing_heavy(root: Path, arguments: list[str]) -> None:
    """`moecast --help` is instant because no numerical library is loaded for it."""
    code = (
        "import sys\n"
        f"sys.argv = ['moecast', *{arguments!r}]\n"
        "from planner.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'numpy', 'pandas', 'plotly', 'simpy', 'scipy', 'networkx', 'pulp', 'highspy', 'streamlit', 'torch'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_import_reader_sees_every_form(tmp_path: Path) -> None:
    """The reader above: relative, late, guarded and plain imports."""
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b, c\nfrom . import d\nfrom ..e import f\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import g\n"
        "def run():\n    import h\n"
    )
    names = {name: late for name, _, late in imported(path, "sim.build.x")}
    assert names == {
        "a.b": False, "c": False, "sim.build.d": False, "sim.e.f": False,
        "typing.TYPE_CHECKING": False, "g": True, "h": True,
    }  # fmt: skip
