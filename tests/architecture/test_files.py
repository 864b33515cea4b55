"""Rules of the house that can be read from the files: size, docstrings, sources, what must not be written down."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

MAX_LINES = 400
SOURCE_KINDS = {"measured", "datasheet", "published", "documentation", "user", "assumed", "fitted"}
SOURCE_KEYS = {"kind", "title", "where", "date", "licence"}

# In pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": re.compile("/w" + "ork/|/ro" + "ot/|/ho" + r"me/[a-z]"),
    "a package host": re.compile(
        r"(index[-_]url|regi" + r"stry|find-links) *[= ] *[\"']?(https?|file)://|/sim" + r"ple/"
    ),
    "a name of a development tool": re.compile("sub" + "agent|before-" + "stop|" + r"\.lib" + "rary/", re.IGNORECASE),
}


def relative(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def test_python_files_are_short(root: Path, files: list[Path]) -> None:
    sizes = {relative(root, p): len(p.read_text(encoding="utf-8").splitlines()) for p in files if p.suffix == ".py"}
    assert sizes, "no Python file found"
    long = {name: lines for name, lines in sizes.items() if lines > MAX_LINES}
    assert not long, f"split these (limit {MAX_LINES} lines): {long}"


def test_every_module_would_be_committed(root: Path, modules: dict[str, Path]) -> None:
    """A rule in .gitignore must not swallow a package (a bare `build/` swallows sim/build)."""
    rooms = sorted({path.relative_to(root).parts[0] for path in modules.values()})
    there = {p for name in rooms for p in (root / name).rglob("*.py")}
    assert there == set(modules.values())


def test_every_module_says_what_it_is(root: Path, modules: dict[str, Path]) -> None:
    silent = [relative(root, p) for p in modules.values() if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent, f"modules without a docstring: {silent}"


def test_library_functions_do_not_print(root: Path, modules: dict[str, Path]) -> None:
    """Output belongs to planner/cli; elsewhere `print` stands only in what `python -m` runs.

    That is the block under `if __name__ == "__main__"`, and the `main` that such a block calls.
    """
    wrong = []
    for module, path in modules.items():
        if module.startswith("planner.cli") or path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
        runs = {"main"} if any("main(" in ast.unparse(block) for block in blocks) else set()
        tree.body = [
            n for n in tree.body if n not in blocks and not (isinstance(n, ast.FunctionDef) and n.name in runs)
        ]
        wrong += [
            f"{relative(root, path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    assert not wrong, f"print in library code: {wrong}"


def test_no_global_random_state(root: Path, modules: dict[str, Path]) -> None:
    pattern = re.compile(r"\b(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence)\w+|\brandom\.seed\(")
    wrong = [relative(root, p) for p in modules.values() if pattern.search(p.read_text(encoding="utf-8"))]
    assert not wrong, f"global random state: {wrong}"


def missing_source(table: object, where: str) -> list[str]:
    """What a [source] table lacks; empty when it is complete."""
    if not isinstance(table, dict):
        return [f"{where}: no [source]"]
    problems = [f"{where}: source.{key} is missing" for key in sorted(SOURCE_KEYS - table.keys())]
    problems += [f"{where}: source.{key} is empty" for key in sorted(SOURCE_KEYS & table.keys()) if not table[key]]
    if table.get("kind") not in SOURCE_KINDS:
        problems.append(f"{where}: source.kind {table.get('kind')!r} is not one of {sorted(SOURCE_KINDS)}")
    return problems


def has_numbers(value: object) -> bool:
    """Whether a table holds any figure; texts alone need no source."""
    if isinstance(value, dict):
        return any(has_numbers(v) for v in value.values())
    if isinstance(value, list):
        return any(has_numbers(v) for v in value)
    if isinstance(value, str):
        return bool(re.match(r"[0-9.]+ *[A-Za-z%/]+$", value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def sources_of(data: dict[str, object], where: str) -> list[str]:
    """A file carries one [source], or one in each of its tables; [defaults] is laid under the tables."""
    if "source" in data:
        return missing_source(data["source"], where)
    defaults = data.get("defaults", {})
    below = defaults.get("source", {}) if isinstance(defaults, dict) else {}
    tables = {key: value for key, value in data.items() if isinstance(value, dict | list) and key != "defaults"}
    if any(has_numbers(value) for key, value in data.items() if key not in tables and key != "defaults"):
        return [f"{where}: no [source]"]
    problems = []
    for key, value in tables.items():
        for i, row in enumerate(value if isinstance(value, list) else [value]):
            at = f"{where} [{key}]" + (f" #{i}" if isinstance(value, list) else "")
            if not has_numbers(row):
                continue
            own = row.get("source", {}) if isinstance(row, dict) else {}
            problems += missing_source({**below, **own} or None, at)
    return problems


def test_every_data_table_names_its_source(root: Path, files: list[Path]) -> None:
    rooms = ("hwprofiles/", "sim/", "planner/", "calibration/")
    tables = [p for p in files if p.suffix == ".toml" and relative(root, p).startswith(rooms)]
    assert tables, "no data table found"
    problems = [
        line for p in tables for line in sources_of(tomllib.loads(p.read_text(encoding="utf-8")), relative(root, p))
    ]
    assert not problems, "\n".join(problems)


def test_every_csv_has_a_source_beside_it(root: Path, files: list[Path]) -> None:
    """Measured and published tables: a TOML with the source of the file stands in the same folder."""
    rooms = ("hwprofiles/", "sim/", "calibration/")
    tables = [p for p in files if ".csv" in p.suffixes and relative(root, p).startswith(rooms)]
    lonely = [relative(root, p) for p in tables if not any(q.suffix == ".toml" for q in p.parent.iterdir())]
    assert not lonely, f"no TOML with a [source] beside: {lonely}"


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_nothing_private_is_written_down(what: str, root: Path, files: list[Path]) -> None:
    pattern = FORBIDDEN[what]
    found = []
    for path in files:
        if path.suffix in {".png", ".gz", ".csv"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{relative(root, path)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_lock_files_hold_exact_pins_only(root: Path) -> None:
    pin = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][A-Za-z0-9.]*$")
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-calibrate.lock", "requirements-dask.lock"):
        lines = [x for x in (root / name).read_text().splitlines() if x and not x.startswith("#")]
        assert lines, name
        assert [x for x in lines if not pin.match(x)] == [], name


def test_checks_above_can_fail() -> None:
    good = dict.fromkeys(SOURCE_KEYS, "x") | {"kind": "measured"}
    assert sources_of({"source": good}, "a") == []
    assert sources_of({"m": {"source": good}}, "a") == []
    assert sources_of({"m": {"hidden_dim": 1}}, "a") == ["a [m]: no [source]"]
    assert sources_of({"rate": "400 Gb/s"}, "a") == ["a: no [source]"]
    assert sources_of({"unsupported": [{"name": "M-2", "reason": "3 of 4 layers"}]}, "a") == []
    assert sources_of({"defaults": {"source": good}, "m": [{"hidden_dim": 1}]}, "a") == []
    assert sources_of({"source": good | {"kind": "rumour"}}, "a") != []
    assert sources_of({"source": {k: v for k, v in good.items() if k != "date"}}, "a") == ["a: source.date is missing"]
    assert FORBIDDEN["a path of one machine"].search("see /w" + "ork/x")
    assert FORBIDDEN["a package host"].search("index-" + "url = https://example.org")
