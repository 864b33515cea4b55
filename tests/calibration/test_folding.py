"""Attention and experts on one mesh, and folded: what arXiv 2504.14960 measured. No row here is fitted."""

from __future__ import annotations

import pytest

from calibration.case import Case
from calibration.cells import coupled_etp
from calibration.published_files import published
from calibration.runs import read_cases
from calibration.validate import Row, predict, with_measured

AIM = {"gt0402": 0.05, "gt0412": 0.25, "pf08": 0.05, "pf10": 0.05}  # of the ratio folded / not folded
PAIRS = {"gt0402": "pf01", "gt0412": "pf07", "pf08": "pf09", "pf10": "pf11"}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    wanted = {*PAIRS, *PAIRS.values()}
    found = [*read_cases(published("training_runs.csv")), *read_cases(published("parallel_folding.csv"))]
    cases = [c for c in found if isinstance(c, Case) and c.id in wanted]
    return {c.id: with_measured(predict(c)[0], c) for c in cases}


@pytest.mark.parametrize("unfolded", PAIRS)
def test_what_folding_gains(rows: dict[str, Row], unfolded: str) -> None:
    """The ratio of both speeds, as measured and as predicted."""
    before, after = rows[unfolded], rows[PAIRS[unfolded]]
    assert before.measured and after.measured and before.predicted and after.predicted
    assert after.predicted / before.predicted == pytest.approx(after.measured / before.measured, abs=AIM[unfolded])
    assert abs(before.error or 0.0) < 0.15 and abs(after.error or 0.0) < 0.15


def test_mappings_that_were_run_are_predicted_to_fit(rows: dict[str, Row]) -> None:
    assert all("exceeds the device" not in row.reason for row in rows.values())


def test_one_mesh_cuts_experts_as_attention() -> None:
    """ETP is TP for the methods that do not fold; a row that folds, or names no method of that paper, says nothing."""
    run = {"tp": "4", "ep": "8", "framework_version": "TP + EP + DP; PyTorch 2.5.0"}
    assert coupled_etp(run) == 4
    assert coupled_etp({**run, "framework_version": "MCore"}) == 4
    assert coupled_etp({**run, "framework_version": "MCore with folding; PyTorch"}) is None
    assert coupled_etp({**run, "framework_version": "dev/main 2025-2026"}) is None
    assert coupled_etp({**run, "ep": "1"}) is None
    assert coupled_etp({}) is None
