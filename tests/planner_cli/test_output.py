"""What reaches terminals and pipes: nothing is said where nobody reads on, and long work says where it is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.cli import output

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
