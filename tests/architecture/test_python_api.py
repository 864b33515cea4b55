"""The examples of the Python API page run and print what the page says; its names are public."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import planner
import sim
from planner.frames import PLAN_COLUMNS


def test_the_examples_run(root: Path) -> None:
    text = (root / "docs/reference/python-api.md").read_text(encoding="utf-8")
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    example = parser.get_doctest(text, {}, "python-api.md", "docs/reference/python-api.md", 0)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert len(example.examples) > 25
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_the_page_names_every_column_and_only_public_names(root: Path) -> None:
    text = (root / "docs/reference/python-api.md").read_text(encoding="utf-8")
    assert not [name for name in PLAN_COLUMNS[9:] if f"`{name}`" not in text]
    for module in (planner, sim):
        used = re.findall(rf"^>>> from {module.__name__} import (.*)$", text, re.MULTILINE)
        names = {name.strip() for line in used for name in line.split(",")}
        assert names and names <= set(module.__all__)
        assert all(getattr(module, name) is not None for name in module.__all__)
