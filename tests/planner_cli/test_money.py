"""Time, money and energy on the command line."""

from __future__ import annotations

import json

import pytest

from hwprofiles.errors import UserError
from planner.question.money import amount
from tests.planner_cli.running import SMALL, moecast


def test_run_costs_and_pareto_are_in_the_answer() -> None:
    done = moecast("plan", *SMALL, "--ep", "8", "--tp", "1", "--max-gpus", "64", "--tokens", "100B", "--objective",
                   "cost", "--price", "3.6 USD/h", "--mtbf", "none", "--json", "-")  # fmt: skip
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["goal"]["objective"] == "cost" and data["goal"]["price_usd_per_s"] == pytest.approx(1e-3)
    assert [count["devices"] for count in data["counts"]] == [32, 64]
    best = data["plans"][0]
    assert best["training"]["usd"]["value"] == pytest.approx(
        best["training"]["time_s"]["value"] * data["inputs"]["devices"] * 1e-3
    )
    assert best["training"]["goodput"] == 1.0
    assert best["training"]["usd"]["value"] == min(count["best"]["usd"] for count in data["counts"])
    assert len(data["pareto"]) > 1
    assert data["inputs"]["options"]["goal"] == data["goal"]


def test_table_shows_counts_run_and_assumptions() -> None:
    done = moecast("plan", *SMALL, "--ep", "8", "--tp", "1", "--tokens", "100B")
    assert done.code == 0, done.err
    for piece in ("To train", "goodput", "energy (modelled)", "Assumed for the run", "Pareto"):
        assert piece in done.out, piece


def test_every_mistake_is_named_at_once() -> None:
    done = moecast("plan", *SMALL, "--objective", "fun", "--deadline", "soon", "--mtbf", "0 s", "--slow-factor", "0.5")
    assert done.code == 2
    for piece in ("fun", "--deadline", "--mtbf", "--slow-factor", "--tokens"):
        assert piece in done.err, piece
    nothing = moecast("plan", *SMALL, "--ep", "8", "--tp", "1", "--tokens", "100B", "--budget", "1")
    assert nothing.code == 3 and "cheapest" in nothing.err


def test_amounts() -> None:
    assert amount("2.5M", "--budget") == 2.5e6
    assert amount("1_000", "--tokens") == 1000.0
    for bad in ("", "x", "-1", "1Q", "0"):
        with pytest.raises(UserError):
            amount(bad, "--tokens")
