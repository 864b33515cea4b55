"""Figures of uneven experts and of links say the numbers of the report, in pictures and in words."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.colors import sample_colorscale

from dashboards import figures_experts, figures_links
from dashboards.html_report import report_html
from dashboards.style import share_text
from sim.report import Imbalance, Report
from tests.dashboards.handmade import GIB, make_report


def uneven(load: list[list[float]], bytes_: list[list[float]], of: str = "rank", **changes: object) -> Report:
    """A report 25 % slower than with even experts."""
    report = make_report()
    step_s = report.step_s.value
    found = Imbalance(
        source="zipf:0.6", max_over_mean=1.5, fullest_over_mean=2.0, balanced_step_s=step_s / 1.25, cost_share=0.25,
        step_p10_s=0.99 * step_s, step_p50_s=step_s, step_p90_s=1.01 * step_s, step_p99_s=1.02 * step_s,
        peak_p50_bytes=13 * GIB, peak_p99_bytes=14 * GIB, oom_probability=0.034,
        rank_load=tuple(map(tuple, load)), traffic_of=of, traffic_bytes=tuple(map(tuple, bytes_)),
    )  # fmt: skip
    return replace(report, imbalance=replace(found, **changes))  # type: ignore[arg-type]


LOAD = [[0.5, 1.5], [1.25, 0.75], [1.0, 1.0]]
BYTES = [[2.0**20, 3 * 2.0**20], [2.0**20, 3 * 2.0**20]]


def linked(report: Report) -> Report:
    """Two links, three stages: one half used for the first half of the step, one full at its end."""
    trace = report.trace
    assert trace is not None
    end = trace.makespan_s
    rates = {(0, "leaf"): ((0.0, 5e9), (end / 2, 0.0)), (2, "leaf"): ((0.75 * end, 10e9), (end, 0.0)),
             (1, "scale_up"): ((0.0, 1e11), (end, 0.0))}  # fmt: skip
    return replace(report, trace=replace(trace, link_rates=rates, link_bytes_per_s={"leaf": 1e10, "scale_up": 4e11}))


def test_load_is_drawn_as_it_is_and_the_most_loaded_rank_is_marked() -> None:
    report = uneven(LOAD, BYTES)
    figure = figures_experts.rank_load(report)
    heat, mark = figure.data
    assert [list(row) for row in heat.z] == LOAD
    assert (mark.x, mark.y) == ((1,), (0,))
    low, high = heat.zmin, heat.zmax
    (middle,) = [at for at, colour in heat.colorscale if colour == figures_experts.MEAN]
    assert low + middle * (high - low) == pytest.approx(1.0)
    assert (low, high) == pytest.approx((0.5, 1.5))
    assert "1.50" in heat.colorbar.title.text and "layer 0, rank 1, 1.50" in figure.layout.title.text
    assert "rank 1 in layer 0; over all layers it is rank 1 with 1.08" in figures_experts.rank_load_words(report)


def test_the_scale_starts_at_the_data_and_colours_keep_their_distance() -> None:
    skewed = [[0.9, 1.0, 1.5, 0.6]]
    (heat, _) = figures_experts.rank_load(uneven(skewed, BYTES)).data
    assert (heat.zmin, heat.zmax) == pytest.approx((0.6, 1.5))
    least, _, most = (colour for _, colour in heat.colorscale)
    assert sample_colorscale([figures_experts.MEAN, figures_experts.LESS], [0.8])[0] == least, "0.4 below is 0.8 deep"
    assert sample_colorscale([figures_experts.MEAN, figures_experts.MORE], [1.0])[0] == most


@settings(max_examples=30)
@given(st.integers(1, 96), st.integers(2, 256), st.integers(0, 9))
def test_load_of_any_size_has_a_scale_that_holds_it(layers: int, ranks: int, seed: int) -> None:
    load = np.random.default_rng(seed).exponential(size=(layers, ranks))
    report = uneven((load / load.mean(axis=1, keepdims=True)).tolist(), BYTES)
    found = report.imbalance
    assert found is not None
    layer, rank, most = figures_experts.hottest(found)
    low, high = figures_experts.load_scale(found)
    assert found.rank_load[layer][rank] == most == max(map(max, found.rank_load))
    assert 0.0 <= low < 1.0 < high and low <= min(map(min, found.rank_load)) + 1e-9 and most <= high + 1e-9


@pytest.mark.parametrize(("layers", "ranks"), [(1, 2), (96, 256), (1, 256), (96, 2)])
def test_figures_fit_a_screen_and_their_labels_do_not_touch(layers: int, ranks: int) -> None:
    load = np.ones((layers, ranks))
    load[0, 0], load[0, 1] = 1.5, 0.5
    figure = figures_experts.rank_load(uneven(load.tolist(), BYTES))
    assert figure.layout.height <= 1000
    room = figure.layout.height - 140
    assert layers / figure.layout.yaxis.dtick * 12 <= max(room, 12)
    assert ranks / figure.layout.xaxis.dtick * 28 <= 1000


def test_traffic_shows_bytes_with_units_and_what_stays() -> None:
    report = uneven(LOAD, BYTES, of="node")
    figure = figures_links.traffic_matrix(report)
    stays, moves = (t for t in figure.data if isinstance(t, go.Heatmap))
    assert [list(row) for row in stays.z] == [[1.0, None], [None, 3.0]]
    assert [list(row) for row in moves.z] == [[None, 3.0], [1.0, None]]
    assert moves.colorbar.title.text == "MiB" and "stays on its node" in [t.name for t in figure.data]
    words = figures_links.traffic_words(report)
    assert "8.00 MiB between 2 nodes, of which 50.0 % stays" in words and "node 1 (6.00 MiB)" in words


@given(
    st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 1e12)), min_size=1, max_size=40, unique_by=lambda s: s[0]),
    st.integers(1, 60),
)
def test_slices_of_a_load_keep_its_bytes(steps: list[tuple[float, float]], bins: int) -> None:
    steps = [*sorted(steps), (10.5, 0.0)]
    whole = sum(rate * (end - at) for (at, rate), (end, _) in pairwise(steps))
    got = figures_links.binned(steps, 10.5, bins)
    assert sum(got) * 10.5 / bins == pytest.approx(whole, rel=1e-9, abs=1e-3)
    assert max(got) <= max(rate for _, rate in steps) * (1 + 1e-9)


def test_link_use_is_a_share_of_each_links_own_rate() -> None:
    figure = figures_links.link_use(linked(make_report()))
    leaf, up = figure.data
    assert list(leaf.y) == ["stage 0", "stage 2"] and list(up.y) == ["stage 1"]
    assert np.mean(leaf.z[0]) == pytest.approx(0.25, abs=1e-3) and np.mean(leaf.z[1]) == pytest.approx(0.25, abs=1e-3)
    assert leaf.z[0][0] == pytest.approx(0.5) and leaf.z[1][0] == 0.0 and max(leaf.z[1]) == pytest.approx(1.0)
    assert up.z[0][7] == pytest.approx(0.25)
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["leaf, 100 % = 10.0 GB/s", "scale_up, 100 % = 400 GB/s"]
    assert "Above 100 %" not in figures_links.link_use_words(linked(make_report()))


def test_cost_is_drawn_between_even_and_expected_and_said_in_words() -> None:
    report = uneven(LOAD, BYTES)
    figure = figures_experts.cost_of_imbalance(report)
    even, expected = next(t for t in figure.data if t.mode == "markers+text").x
    assert expected / even == pytest.approx(1.25)
    assert "+25.0 %" in figure.layout.title.text
    words = figures_experts.cost_words(report)
    assert "+25.0 %" in words and "3.4 %" in words and "zipf:0.6" in words
    # Quantiles closer than three digits are still told apart.
    assert figures_experts.apart((42.202, 42.204, 42.204)) == ["42.202 s", "42.204 s", "42.204 s"]
    assert figures_experts.apart((1.0, 2.0)) == ["1.00 s", "2.00 s"]


def test_probabilities_are_never_rounded_to_certainty() -> None:
    texts = [share_text(x) for x in (0.0, 1e-6, 0.034, 0.99999, 1.0)]
    assert texts == ["0.0 %", "below 0.1 %", "3.4 %", "above 99.9 %", "100.0 %"]


def test_page_has_the_sections_only_where_there_is_something_to_show() -> None:
    names = ("imbalance", "rank-load", "traffic", "link-use")
    plain = report_html(make_report())
    assert not any(f'id="figure-{name}"' in plain for name in names)
    assert "<h2>Uneven experts</h2>" not in plain and "cost of imbalance" not in plain
    page = unescape(report_html(linked(uneven(LOAD, BYTES)))).replace("\xa0", " ")
    for name in names:
        assert f'id="figure-{name}"' in page and f'<figcaption id="words-{name}">' in page
        assert f'aria-labelledby="words-{name}"' in page
    assert "<b>+25.0 %</b>" in page and '<div class="card bad"><span>chance of out-of-memory</span><b>3.4 %</b>' in page
    unknown = report_html(uneven([], []))
    assert 'id="figure-imbalance"' in unknown and 'id="figure-rank-load"' not in unknown
    assert 'id="figure-traffic"' not in unknown
