"""What reaches terminals and pipes: nothing is said where nobody reads on, and long work says where it is."""

from __future__ import annotations

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dashboards.plan_rows import search_line
from planner.cli import output
from planner.cli.tables_space import print_variants
from planner.wide_answer import BEYOND_BEST, NOT_TO_THE_END

RUN = [sys.executable, "-c", "from planner.cli import main; main()"]


@pytest.mark.parametrize("json", [True, False], ids=["json", "tables"])
def test_a_reader_that_goes_ends_the_command_without_a_word(json: bool, tmp_path: Path) -> None:
    loads, saved = tmp_path / "loads.csv", tmp_path / "placement.json"
    loads.write_text("layer,expert,count\n" + "".join(f"0,{e},{7 + e}\n" for e in range(8)), encoding="utf-8")
    asked = ["place", "--loads", str(loads), "--gpus", "4", "--out", str(saved), *(["--json", "-"] if json else [])]
    with subprocess.Popen([*RUN, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == output.UNREAD
    assert "Traceback" not in said and "roken" not in said
    assert saved.read_text(encoding="utf-8").endswith("}\n")


def test_long_work_says_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal as lines, from which times of a log can be read; short work says nothing."""
    monkeypatch.setattr(output, "LINE_S", 0.05)
    with output.progress("reading") as bar:
        bar.update("spending moves", 34, 1200)
        time.sleep(0.2)
    assert "spending moves: 34 of 1,200\n" in capsys.readouterr().err
    monkeypatch.setattr(output, "LINE_S", 20.0)
    with output.progress("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_what_a_search_did_not_judge_is_not_told_to_be_illegal() -> None:
    counts = {"raw": 1000, "legal": 30, "fits": 20, "simulated": 4, "certificate": "best exact"}
    assert search_line(counts).startswith("1,000 candidates, 30 legal, 20 fit")
    cut = counts | {"rejected": {BEYOND_BEST: 900}, "stopped": "bound"}
    words = "1,000 candidates, 900 of them ruled out by bounds without being judged; of the rest 30 legal, 20 fit"
    assert search_line(cut).startswith(words)
    assert "or left when the search stopped" in search_line(cut | {"stopped": "limit"})


def test_values_that_a_search_did_not_get_to_are_told_apart() -> None:
    whys = {"switch a": "", "switch b": BEYOND_BEST, "switch c": NOT_TO_THE_END}
    lines = [
        {"label": label, "why": why, "plan": None if why else "TP1", "step_s": None if why else 1.0, "bound_s": 0.9}
        for label, why in whys.items()
    ]
    screen = Console(file=StringIO(), width=120)
    print_variants(screen, [{"rank": 1, "step_s": {"value": 1.0}}], lines)
    assert isinstance(screen.file, StringIO)
    beaten, unknown = screen.file.getvalue().split("No faster plan with")[1].split("Not searched to the end")
    assert "switch: b" in beaten and "switch: c" in unknown and "switch: c" not in beaten
