"""`moecast share`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import moecast

JOBS = """
[share]
objective = "throughput"
budget_usd = 300_000
deadline_s = "40 day"
[share.pools]
h100 = 256
a100 = 128

[[jobs]]
name = "base"
pool = "h100"
weight = 2.0
rows = [
  { label = "TP1 EP8", devices = 128, time_s = "24 day", usd = 160_000 },
  { label = "TP1 EP16", devices = 256, time_s = "13 day", usd = 180_000 },
]

[[jobs]]
name = "ablation"
rows = [
  { devices = 64, time_s = "20 day", usd = 60_000, pool = "h100" },
  { devices = 128, time_s = "25 day", usd = 70_000, pool = "a100" },
]
"""


def test_jobs_share_and_the_answer_is_proved(tmp_path: Path) -> None:
    file, out = tmp_path / "jobs.toml", tmp_path / "out.json"
    file.write_text(JOBS)
    done = moecast("share", str(file), "--json", str(out))
    assert done.code == 0, done.err
    assert "256 of 256 devices of h100" in done.out and "optimal" in done.out
    data = json.loads(out.read_text())
    assert [job["row"]["devices"] for job in data["jobs"]] == [256, 128] and data["gap"] <= 1e-9
    cheap = moecast("share", str(file), "--objective", "cost", "--json", "-")
    assert json.loads(cheap.out)["value"] == 220_000 and json.loads(cheap.out)["devices"] == {"h100": 192}


def test_bad_input_and_no_choice_have_their_codes(tmp_path: Path) -> None:
    file = tmp_path / "jobs.toml"
    file.write_text(JOBS.replace("300_000", "100_000"))
    done = moecast("share", str(file))
    assert done.code == 3 and "USD at least" in done.err
    assert moecast("share", str(file), "--objective", "fun").code == 2
    assert moecast("share", str(tmp_path / "none.toml")).code == 2
