"""Scores on rows made by hand, where every figure can be worked out on paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from calibration import score
from calibration.baseline import best_constant, constant_mfu
from calibration.validate import Row


def row(ident: str, measured: float, predicted: float, *, key: str = "", model: str = "m", **group: str) -> Row:
    groups = {"model": model, "gpu": "H100", "n_gpus": "8", "seq_len": "4096", "arch": "moe", "class": "moe"} | group
    return Row(
        id=ident, status="ok", measure="tokens_per_s_gpu", measured=measured, predicted=predicted,
        low=0.9 * predicted, high=1.1 * predicted, error=predicted / measured - 1.0, scored=True, ranked=True,
        key=key or ident, group=groups,
    )  # fmt: skip


def test_errors_by_hand() -> None:
    cases = [row("a", 100.0, 110.0), row("b", 100.0, 80.0), row("c", 100.0, 100.0), row("d", 200.0, 140.0)]
    got = score.errors(cases)
    assert got["cases"] == 4
    assert got["mape"] == pytest.approx((0.1 + 0.2 + 0.0 + 0.3) / 4)
    assert got["median_ape"] == pytest.approx(0.15)
    assert got["bias"] == pytest.approx((0.1 - 0.2 + 0.0 - 0.3) / 4)
    assert got["p90_ape"] == pytest.approx(0.2 + 0.7 * 0.1)  # linear between the third and fourth of four
    assert got["coverage"] == pytest.approx(2 / 4)  # 99 to 121 holds 100; 72 to 88 and 126 to 154 do not


def test_a_case_is_the_median_of_its_rows() -> None:
    rows = [row("a", 90.0, 100.0, key="k"), row("b", 100.0, 100.0, key="k"), row("c", 400.0, 120.0, key="k")]
    rows.append(row("d", 10.0, 20.0))
    first, second = score.cases_of(rows)
    assert (first.measured, first.predicted, first.error) == (100.0, 100.0, 0.0)
    assert (first.low, first.high) == (pytest.approx(90.0), pytest.approx(110.0))
    assert second.error == pytest.approx(1.0)


def test_what_is_not_scored_counts_for_rank_alone() -> None:
    derived = replace(row("a", 100.0, 300.0), scored=False)
    doubted = replace(row("b", 100.0, 900.0), scored=False, ranked=False)
    unpredicted = Row(id="c", status="undetermined", scored=True)
    rows = [derived, doubted, unpredicted, row("d", 100.0, 100.0)]
    assert [c.id for c in score.cases_of(rows)] == ["d"]
    assert [c.id for c in score.cases_of(rows, ranked=True)] == ["a", "d"]
    assert score.summary(rows)["status"] == {"ok": 3, "undetermined": 1}


def test_tau_is_the_mean_over_groups_of_three_or_more() -> None:
    ordered = [row(f"a{i}", m, p) for i, (m, p) in enumerate(((1.0, 5.0), (2.0, 6.0), (3.0, 9.0)))]
    one_swap = [row(f"b{i}", m, p, n_gpus="16") for i, (m, p) in enumerate(((1.0, 6.0), (2.0, 5.0), (3.0, 9.0)))]
    pair = [row(f"c{i}", m, -m, n_gpus="32") for i, m in enumerate((1.0, 2.0))]
    got = score.rank_agreement([*ordered, *one_swap, *pair])
    assert got["groups"] == 2
    assert got["mean_tau"] == pytest.approx((1.0 + 1.0 / 3.0) / 2)  # two of three pairs agree: (2 - 1) / 3


def test_a_group_that_predictions_do_not_order_counts_zero() -> None:
    tied = [row(f"a{i}", float(i), 7.0) for i in range(1, 4)]
    ordered = [row(f"b{i}", float(i), float(i), n_gpus="16") for i in range(1, 4)]
    assert score.rank_agreement([*tied, *ordered]) == {"groups": 2, "mean_tau": 0.5}


def test_runs_that_nothing_tells_apart_are_one_case_at_their_median() -> None:
    same = [row(f"a{i}", float(i), 7.0) for i in (1, 2, 6)]
    other = row("b", 3.0, 9.0)
    elsewhere = row("c", 4.0, 7.0, n_gpus="16")
    found = {c.id: c.measured for c in score.told_apart([*same, other, elsewhere])}
    assert found == {"a1": 2.0, "b": 3.0, "c": 4.0}


def test_mean_over_models_weighs_models_alike() -> None:
    cases = [row(f"a{i}", 100.0, 100.0) for i in range(9)] + [row("b", 100.0, 150.0, model="n")]
    assert score.errors(cases)["mape"] == pytest.approx(0.05)
    assert score.mean_over(cases, "model") == pytest.approx(0.25)


def test_classes_of_the_summary() -> None:
    big = row("a", 100.0, 110.0, arch="dense", **{"class": "dense"})
    small = row("b", 100.0, 130.0, arch="dense", **{"class": "dense below 1B"})
    got = score.summary([big, small, row("c", 100.0, 100.0)])
    assert got["dense"]["mape"] == pytest.approx(0.2)
    assert got["dense_1b"]["mape"] == pytest.approx(0.1)
    assert got["moe"]["mape"] == 0.0


def fits(measured: float, predicted: float) -> Row:
    return Row(id="x", status="ok", measure="fits", measured=measured, predicted=predicted, scored=True)


def test_balanced_accuracy_does_not_follow_the_larger_class() -> None:
    always_yes = [fits(1.0, 1.0)] * 9 + [fits(0.0, 1.0)]
    assert score.balanced_accuracy(always_yes)["balanced_accuracy"] == 0.5
    one_wrong = [fits(1.0, 1.0)] * 3 + [fits(1.0, 0.0)] + [fits(0.0, 0.0)] * 2
    got = score.balanced_accuracy(one_wrong)
    assert (got["fits"], got["oom"], got["balanced_accuracy"]) == (4, 2, (0.75 + 1.0) / 2)


def test_one_outcome_alone_has_no_balanced_accuracy() -> None:
    for rows, missing in (([fits(1.0, 1.0)] * 3, "OOM row"), ([fits(0.0, 0.0)], "row that fits")):
        got = score.balanced_accuracy(rows)
        assert got["balanced_accuracy"] is None
        assert got["note"] == f"no {missing} is scored: nothing to balance"


def test_best_constant_has_the_smallest_error() -> None:
    ratios = [0.5, 0.9, 1.3, 2.0, 2.2]

    def mape(c: float) -> float:
        return sum(abs(c * a - 1.0) for a in ratios) / len(ratios)

    best = best_constant(ratios)
    assert mape(best) == pytest.approx(min(mape(i / 1000) for i in range(1, 3000)), rel=1e-3)


def test_constant_mfu_is_one_number_per_group() -> None:
    measured = {"a": (40.0, "bf16"), "b": (80.0, "bf16"), "c": (30.0, "fp8")}
    cases = [row(name, value, 1.0, precision=kind) for name, (value, kind) in measured.items()]
    ideal = {"a": 100.0, "b": 200.0, "c": 200.0}
    got: dict[str, Any] = {c.id: c for c in constant_mfu(cases, ideal, ("gpu", "precision"))}
    assert [got[i].error for i in "abc"] == pytest.approx([0.0, 0.0, 0.0])
    assert (float(got["a"].reason), float(got["c"].reason)) == (0.4, 0.15)
    together = constant_mfu(cases, ideal, ("gpu",))
    assert {round(c.predicted / ideal[c.key], 9) for c in together if c.predicted} == {0.15}
    assert math.isclose(score.errors(together)["mape"], 2 * (1 - 0.15 * 2.5) / 3)  # 0.4 would give (0.4 / 0.15 - 1) / 3
