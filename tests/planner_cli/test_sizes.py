"""Counts of devices as lists and ranges, and other node types, within a budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from planner.question.sizes import read_counts
from tests.planner_cli.running import moecast

QUESTION = ("--model", "Qwen3-30B-A3B", "--cluster", "dgx-h100", "--global-batch", "96", "--ep", "8", "--tp", "1",
            "--pp", "1", "--micro-batch", "1", "--recompute", "moe_act,layernorm")  # fmt: skip


def test_counts_are_read() -> None:
    assert read_counts("64,32, 32") == (32, 64)
    assert read_counts("64..512:64") == tuple(range(64, 513, 64))
    assert read_counts("8..30:8,48") == (8, 16, 24, 48)
    assert read_counts(None) == ()
    for bad in ("8..4:1", "8..16:0", "a,8", "8..16", "1..100000:1"):
        with pytest.raises(UserError, match="--gpus"):
            read_counts(bad)


def test_the_best_of_types_and_sizes_within_the_budget_is_chosen() -> None:
    asked = ("plan", *QUESTION, "--gpus", "32,48", "--node-types", "dgx-a100-80g", "--tokens", "10B", "--json", "-")
    data = json.loads(moecast(*asked, "--objective", "time-to-train").out)
    tried = [(count["cluster"], count["devices"]) for count in data["counts"]]
    assert tried == [(name, n) for name in ("dgx-h100", "dgx-a100-80g") for n in (32, 48)]
    times = {t: c["best"]["time_s"] for t, c in zip(tried, data["counts"], strict=True)}
    prices = {t: c["best"]["usd"] for t, c in zip(tried, data["counts"], strict=True)}
    best = min(times, key=lambda t: times[t])
    assert (data["inputs"]["cluster"], data["inputs"]["devices"]) == best
    assert data["plans"][0]["training"]["time_s"]["value"] == times[best]
    within = sorted(prices.values())[1] * 1.001
    kept = json.loads(moecast(*asked, "--objective", "time-to-train", "--budget", str(within)).out)
    chosen = (kept["inputs"]["cluster"], kept["inputs"]["devices"])
    assert chosen == min((t for t in prices if prices[t] <= within), key=lambda t: times[t])
    assert {point["cluster"] for point in data["pareto"]} <= {"dgx-h100", "dgx-a100-80g"}


def test_every_type_has_its_own_price(tmp_path: Path) -> None:
    """The dearer type is left for the other when its price rises; the file is read again with those prices."""
    asked = ("plan", *QUESTION, "--gpus", "32", "--node-types", "dgx-a100-80g", "--tokens", "10B", "--objective",
             "cost")  # fmt: skip
    out = tmp_path / "plan.json"
    chosen = {}
    for dear, price in (("dgx-h100", "dgx-h100=90,a100=1.8"), ("dgx-a100-80g", "H100=3.6 USD/h,dgx-a100-80g=90")):
        done = moecast(*asked, "--price", price, "--out", str(out), "--json", "-")
        assert done.code == 0, done.err
        data = json.loads(done.out)
        chosen[dear] = data["inputs"]["cluster"]
        for count in data["counts"]:
            of_h100 = count["cluster"] == "dgx-h100"
            per_hour = {"dgx-h100": (90.0, 1.8), "dgx-a100-80g": (3.6, 90.0)}[dear][not of_h100]
            best = count["best"]
            assert best["usd"] == pytest.approx(best["time_s"] * 32 * per_hour / 3600.0)
    assert chosen == {"dgx-h100": "dgx-a100-80g", "dgx-a100-80g": "dgx-h100"}
    assert data["goal"]["price_usd_per_s"] == {"h100": pytest.approx(1e-3), "dgx-a100-80g": pytest.approx(0.025)}
    told = moecast("explain", str(out))
    assert told.code == 0 and "what was read is not" not in told.out + told.err


def test_what_does_not_go_together_is_named() -> None:
    done = moecast("plan", *QUESTION, "--gpus", "32,48", "--max-gpus", "64", "--node-types", "dgx-h200", "--price",
                   "dgx-h100=0,h200")  # fmt: skip
    assert done.code == 2 and "leave --max-gpus out" in done.err
    assert "above zero" in done.err and "write NAME=PRICE" in done.err
    one = moecast("plan", *QUESTION, "--gpus", "32", "--node-types", "dgx-h200", "--price", "2 USD/h")
    assert one.code == 2 and "dgx-h100=2.5,dgx-h200=2.0" in one.err
    other = moecast("plan", *QUESTION, "--gpus", "32", "--price", "b200=2")
    assert other.code == 2 and "'b200' is not tried here" in other.err and "dgx-h100" in other.err
    odd = moecast("plan", *QUESTION, "--gpus", "32,36")
    assert odd.code == 2 and "36 is not a whole number of nodes" in odd.err
    twice = moecast("plan", *QUESTION, "--gpus", "32", "--node-types", "eos,none-such")
    assert twice.code == 2 and "tried already" in twice.err and "none-such" in twice.err


def test_a_scaling_curve_takes_a_range() -> None:
    done = moecast("scale", *QUESTION, "--gpus", "32..48:16", "--mode", "strong", "--json", "-")
    assert done.code == 0, done.err
    assert [p["devices"] for p in json.loads(done.out)["curves"][0]["points"]] == [32, 48]
