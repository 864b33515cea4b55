"""The benchmark page is what its generator writes from the figures that are kept."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest


def test_the_page_is_written_from_the_results(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))
    page = importlib.import_module("benchmarks.page")
    results = json.loads((root / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert set(results["figures"]) == {*page.SCRIPTS, *page.BY_HAND}
    written = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert written == page.page(results), "run python -m benchmarks.page --show"
    sys.modules.pop("benchmarks.page", None)


def test_figures_are_said_in_units_to_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root))
    figure = importlib.import_module("benchmarks.figures").Figure
    said = [
        figure(what="w", value=value, unit=unit).text
        for value, unit in ((0.02, "s"), (2e-7, "s"), (1.5, "s"), (0.125, "share"), (2.0**31, "bytes"), (2e-14, ""))
    ]
    assert said == ["20 ms", "0.2 us", "1.5 s", "12.5 %", "2.00 GiB", "2e-14"]
    assert figure(what="w", value=123_456.7, unit="/s").text == "123,457 /s"
    assert figure(what="w", value="0, 0").text == "0, 0"
