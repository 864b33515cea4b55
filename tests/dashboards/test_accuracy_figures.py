"""Figures of accuracy show the scored cases, filter them, and say the numbers of the accuracy pages."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calibration.score import cases_of, errors
from calibration.scored import nearest_runs, shipped_scores
from calibration.spread import shipped_spread
from calibration.validate import Row
from dashboards import figures_accuracy as drawn
from sim.interval import Novelty


def row(ident: str, measured: float, predicted: float, **group: str) -> Row:
    return Row(
        id=ident, status="ok", measure="tokens_per_s_gpu", measured=measured, predicted=predicted,
        low=0.9 * predicted, high=1.2 * predicted, error=predicted / measured - 1.0, plan="TP1", scored=True, key=ident,
        group={"class": "moe", "model": "M", "gpu": "H100", "n_gpus": "8", "release": "r", **group},
    )  # fmt: skip


ROWS = [row("a", 100.0, 110.0), row("b", 200.0, 150.0, model="N"), row("c", 50.0, 50.0, **{"class": "dense"})]


def dots(figure: drawn.go.Figure) -> dict[str, list[tuple[float, float]]]:
    return {t.name: list(zip(t.x, t.y, strict=True)) for t in figure.data if t.mode == "markers" and t.customdata}


def test_parity_draws_each_case_once_with_its_interval() -> None:
    figure = drawn.parity(ROWS, near=("b",))
    assert dots(figure) == {"MoE (2)": [(100.0, 110.0), (200.0, 150.0)], "dense, 1B and more (1)": [(50.0, 50.0)]}
    moe = next(t for t in figure.data if t.name == "MoE (2)")
    assert list(moe.error_y.array) == pytest.approx([22.0, 30.0])
    assert list(moe.error_y.arrayminus) == pytest.approx([11.0, 15.0])
    (ring,) = [t for t in figure.data if t.marker.symbol == "circle-open"]
    assert (list(ring.x), list(ring.y)) == ([200.0], [150.0])
    low, high = (10.0**x for x in figure.layout.xaxis.range)
    assert low < 45 and high > 200 and tuple(figure.layout.yaxis.range) == tuple(figure.layout.xaxis.range)


def test_peaks_are_drawn_in_gib() -> None:
    peak = replace(ROWS[0], measure="peak_bytes", measured=2.0**30, predicted=2.0**31, low=2.0**30, high=2.0**32)
    figure = drawn.parity([peak], "peak_bytes")
    assert dots(figure) == {"MoE (1)": [(1.0, 2.0)]} and "GiB" in figure.layout.xaxis.title.text


def test_names_from_files_are_escaped() -> None:
    (text,) = drawn.parity([row("<b>", 1.0, 1.0, model="<script>")]).data[2].customdata
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize("draw", [drawn.parity, lambda cases: drawn.errors_by(cases, "model")])
def test_nothing_left_says_why(draw: object) -> None:
    assert "No published case" in draw([]).layout.annotations[0].text  # type: ignore[operator]
    assert "No published case" in drawn.parity_words([]) and "No published case" in drawn.errors_words([], "gpu")


def test_words_and_bars_are_the_scores() -> None:
    words = drawn.parity_words(ROWS)
    found = errors(ROWS)
    assert f"mean absolute error {found['mape']:.1%}" in words and f"bias {found['bias']:+.1%}" in words
    figure = drawn.errors_by(ROWS, "model")
    bar, ticks = figure.data
    assert dict(zip(bar.y, bar.x, strict=True)) == pytest.approx({"N (1)": 25.0, "M (2)": 5.0})
    assert sorted(ticks.x) == pytest.approx([-25.0, 0.0, 10.0])
    assert list(figure.layout.yaxis.categoryarray) == ["M (2)", "N (1)"]
    assert "least M with 5.0% over 2, most N with 25.0% over 1 cases" in drawn.errors_words(ROWS, "model")


def test_the_shipped_cases_are_those_of_the_accuracy_page() -> None:
    runs = shipped_scores()
    cases = drawn.scored_cases(runs)
    wanted = cases_of(r.row for r in runs if r.row.measure == "tokens_per_s_gpu")
    assert len(cases) == len(wanted) > 200
    assert errors(cases)["mape"] == pytest.approx(errors(wanted)["mape"])
    some = drawn.choices(runs)
    assert {"MoE", "dense, 1B and more"} <= {t.name.split(" (")[0] for t in drawn.parity(cases).data}
    for name, values in some.items():
        for value in values[:2]:
            kept = drawn.scored_cases(runs, **{name: [value]})
            assert kept and {c.group[name] for c in kept} == {value}
    both = drawn.scored_cases(runs, gpu=["H100"], trainer=["NeMo"])
    assert {(c.group["gpu"], c.group["trainer"]) for c in both} == {("H100", "NeMo")}


def test_labels_do_not_touch() -> None:
    cases = drawn.scored_cases(shipped_scores())
    for name in drawn.FILTERS:
        figure = drawn.errors_by(cases, name)
        assert (figure.layout.height - 150) / len(figure.layout.yaxis.categoryarray) >= 18
    ticks, labels = drawn.log_ticks(0.5, 40_000.0)
    assert labels == ["1", "10", "100", "1,000", "10,000"] and len(ticks) == 5
    assert drawn.log_ticks(90.0, 1000.0)[1] == ["100", "200", "500", "1,000"]


def test_nearest_runs_as_a_table() -> None:
    runs = shipped_scores()
    target = next(r.run for r in runs if r.row.scored and r.run is not None)
    old = Novelty(model=False, device=False, release=False, trainer=False)
    rows = drawn.near_rows(nearest_runs(runs, target, old, shipped_spread(), count=3))
    assert len(rows) == 3 and rows[0]["differs in"] == "nothing"
    assert all("tok/s" in str(r["measured"]) and math.isfinite(float(r["error %"])) for r in rows)
    groups = drawn.group_rows(ROWS, "model")
    assert [g["model"] for g in groups] == ["M", "N"] and groups[1]["bias %"] == -25.0
