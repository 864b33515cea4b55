"""`moecast scale` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import SMALL, moecast

PINNED = ("--tp", "1", "--pp", "1", "--recompute", "full", "--micro-batch", "1")


def test_curves_are_drawn_and_written(tmp_path: Path) -> None:
    page, said = tmp_path / "s.html", tmp_path / "s.json"
    done = moecast("scale", *SMALL, *PINNED, "--max-gpus", "64", "--report", str(page), "--json", str(said))
    assert done.code == 0, done.err
    assert "Strong scaling" in done.out and "Weak scaling" in done.out
    strong, weak = json.loads(said.read_text())["curves"]
    assert [p["devices"] for p in strong["points"]] == [32, 64]
    assert weak["points"][1]["global_batch_seqs"] == 128
    assert weak["points"][1]["efficiency"] > strong["points"][1]["efficiency"]
    assert "</html>" in page.read_text()
    alone = moecast("scale", *SMALL, *PINNED, "--max-gpus", "64", "--mode", "weak", "--json", "-")
    assert json.loads(alone.out)["curves"] == [weak]


def test_every_mistake_is_named_at_once() -> None:
    done = moecast("scale", *SMALL, "--mode", "fast", "--out", "x.json", "--top", "3")
    assert done.code == 2
    for piece in ("fast", "--out", "--top", "--max-gpus"):
        assert piece in done.err, piece
    assert "not above" in moecast("scale", *SMALL, "--max-gpus", "16").err
