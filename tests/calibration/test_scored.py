"""The table of scores that ships says what the accuracy pages say, and finds what is near a prediction."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.accuracy_rows import value_text
from calibration.scored import COLUMNS, TABLE, ScoredRun, nearest_runs, read_scores, shipped_scores, write_scores
from calibration.spread import Situation, shipped_spread
from hwprofiles.errors import UserError
from sim.interval import Novelty, limits

ROOT = Path(__file__).resolve().parents[2]
OLD = Novelty(model=False, device=False, release=False, trainer=False)


def page_rows() -> dict[str, list[str]]:
    """Cells of docs/accuracy-rows.md by row."""
    lines = (ROOT / "docs" / "accuracy-rows.md").read_text(encoding="utf-8").splitlines()
    rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| ")]
    return {cells[0]: cells for cells in rows if cells[0] not in ("row", "---")}


def test_the_table_is_the_page_row_by_row() -> None:
    page, runs = page_rows(), shipped_scores()
    assert len(runs) == len({(r.file, r.row.id) for r in runs}) and {r.row.id.strip() for r in runs} == set(page)
    for run in runs:
        cells = page[run.row.id.strip()]
        assert cells[6] == run.row.plan and cells[10] == ("yes" if run.row.scored else "no")
        assert cells[7:9] == [value_text(run.row, run.row.measured), value_text(run.row, run.row.predicted)]


def test_intervals_are_those_of_the_shipped_file() -> None:
    seen = 0
    for run in shipped_scores():
        row = run.row
        if row.measure != "tokens_per_s_gpu" or row.predicted is None:
            continue
        low, high = limits(row.group["distance"], is_moe=row.group["arch"] == "moe")
        assert row.low == pytest.approx(row.predicted / high, rel=1e-4)
        assert row.high == pytest.approx(row.predicted / low, rel=1e-4)
        seen += 1
    assert seen > 200


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    runs = shipped_scores()
    table, source = write_scores(runs, tmp_path, date="2026-01-02")
    assert read_scores(table) == runs
    assert table.read_bytes() == (ROOT / "hwprofiles" / "fitted" / TABLE).read_bytes()
    assert 'date = "2026-01-02"' in source.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\n" + "x," * (len(COLUMNS) - 1) + "x\n"])
def test_damage_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / TABLE
    path.write_text(text, encoding="utf-8")
    if text:
        with pytest.raises(UserError, match="not a table of scored runs"):
            read_scores(path)
    with pytest.raises(UserError, match="cannot read"):
        read_scores(tmp_path / "missing.csv")


def a_run(runs: tuple[ScoredRun, ...]) -> tuple[ScoredRun, Situation]:
    found = next(r for r in runs if r.row.scored and r.row.group.get("class") == "moe" and r.run is not None)
    assert found.run is not None
    return found, found.run


def test_the_run_itself_is_nearest_then_its_setup() -> None:
    runs, spread = shipped_scores(), shipped_spread()
    found, target = a_run(runs)
    near = nearest_runs(runs, target, OLD, spread, count=6)
    assert near[0].scored.row.key == found.row.key and near[0].differs == ()
    assert [n.likeness for n in near] == sorted((n.likeness for n in near), reverse=True)
    assert 0.0 < near[-1].likeness <= near[0].likeness <= 1.0
    assert len({n.scored.row.key for n in near}) == 6


def test_what_differs_is_said_and_twice_as_far_is_less_alike() -> None:
    runs, spread = shipped_scores(), shipped_spread()
    _, target = a_run(runs)
    far = replace(target, seq_tokens=4 * target.seq_tokens, devices=2 * target.devices, precision="other")
    one, other = (nearest_runs(runs, t, OLD, spread, count=1)[0] for t in (target, far))
    assert other.likeness < one.likeness
    assert {"precision", "GPUs × 0.5", "sequence × 0.25"} <= set(other.differs)


def test_on_an_unknown_machine_the_same_model_comes_first() -> None:
    runs = shipped_scores()
    _, target = a_run(runs)
    strange = replace(target, device="none", release="none", trainer="none")
    new = Novelty(model=False, device=True, release=False, trainer=True)
    near = nearest_runs(runs, strange, new, shipped_spread(), count=3)
    assert near[0].likeness == 0.0
    assert near[0].scored.run is not None and near[0].scored.run.model == target.model


def test_the_accuracy_command_writes_these_rows() -> None:
    """A file scored anew, as `make accuracy` does it, gives the rows that ship."""
    from calibration import accuracy

    file = "calculon_megatron_a100_time.csv"
    got = [accuracy._predict((file, i, False)) for i in range(len(accuracy.cases(file)))]
    rows = [accuracy.with_interval(row, case) for (row, _, _), case in zip(got, accuracy.cases(file), strict=True)]
    made = accuracy.scored_runs(file, rows, [plan for _, _, plan in got])
    shipped = [run for run in shipped_scores() if run.file == file]
    assert [m.run for m in made] == [s.run for s in shipped] and len(made) == 8
    for one, other in zip(made, shipped, strict=True):
        assert (one.row.id, one.row.plan, one.row.key) == (other.row.id, other.row.plan, other.row.key)
        for name in ("measured", "predicted", "low", "high", "error"):
            assert getattr(one.row, name) == pytest.approx(getattr(other.row, name), rel=1e-6)
