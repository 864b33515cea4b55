"""Regret on sweeps made by hand: which groups count, what is chosen, what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibration.accuracy_groups import regret_section
from calibration.regret import SWEPT_BY, mean_regret, sweeps
from calibration.validate import Row

SAME = {"model": "m", "gpu": "H100", "n_gpus": "64", "seq_len": "4096", "global_batch": "256", "precision": "bf16",
        "release": "r"}  # fmt: skip


def row(plan: str, measured: float, predicted: float, *, fits: bool = True, ident: str = "", **group: str) -> Row:
    return Row(
        id=ident or plan, status="ok", measure="tokens_per_s_gpu", measured=measured, predicted=predicted, plan=plan,
        error=predicted / measured - 1.0, scored=True, ranked=True, key=ident or plan, group=SAME | group,
        reason="" if fits else "predicted peak 90.0 GiB exceeds the device",
    )  # fmt: skip


SWEEP = [row("TP1", 100.0, 90.0), row("TP2", 80.0, 120.0), row("TP4", 60.0, 50.0)]


def test_regret_is_what_the_choice_gives_away() -> None:
    (found,) = sweeps(SWEEP)
    assert (found.best.plan, found.chosen.plan) == ("TP1", "TP2")
    assert found.regret == pytest.approx(0.2)
    assert found.blind == pytest.approx(1.0 - 80.0 / 100.0)


def test_a_mapping_that_is_predicted_not_to_fit_is_not_chosen() -> None:
    short = row("TP2", 80.0, 120.0, fits=False)
    (found,) = sweeps([SWEEP[0], short, SWEEP[2]])
    assert found.chosen.plan == "TP1" and found.regret == 0.0
    (none,) = sweeps([replace(r, reason=short.reason) for r in SWEEP])
    assert none.chosen.plan == "TP2"  # none fits: by time alone


def test_equal_predictions_count_as_the_slowest() -> None:
    (found,) = sweeps([replace(r, predicted=70.0) for r in SWEEP])
    assert found.chosen.plan == "TP4" and found.regret == pytest.approx(0.4)


@pytest.mark.parametrize("key", SWEPT_BY)
def test_what_differs_is_another_question(key: str) -> None:
    other = replace(SWEEP[2], group=SAME | {key: "other"})
    assert sweeps([*SWEEP[:2], other]) == []


def test_three_mappings_are_needed_and_runs_of_one_mapping_are_one() -> None:
    again = row("TP1", 110.0, 94.0, ident="TP1 again")
    assert sweeps([*SWEEP[:2], again]) == []
    (found,) = sweeps([*SWEEP, again])
    assert len(found.mappings) == 3
    assert found.best.ids == ("TP1", "TP1 again")
    assert (found.best.measured, found.best.predicted) == (105.0, 92.0)


def test_memory_rows_and_rows_without_a_figure_are_no_mappings() -> None:
    assert sweeps([*SWEEP[:2], replace(SWEEP[2], measure="peak_bytes")]) == []
    assert sweeps([*SWEEP[:2], replace(SWEEP[2], measured=None)]) == []


def test_the_section_prints_every_group_and_the_mean() -> None:
    second = [replace(r, group=SAME | {"model": "n"}, predicted=r.measured) for r in SWEEP]
    found = sweeps([*SWEEP, *second])
    assert mean_regret(found) == pytest.approx(0.1)
    text = "\n".join(regret_section([*SWEEP, *second]))
    assert "Mean regret 10.0 % over 2 groups (blind 20.0 %)" in text and "in 1 of them" in text
    assert text.count("TP1 (100)") == 3  # best of both, chosen of the second
    assert "No published sweep" in "\n".join(regret_section(SWEEP[:2]))
