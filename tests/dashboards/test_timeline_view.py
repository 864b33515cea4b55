"""The timeline view: passes or single layers, and the trace of what is shown."""

from __future__ import annotations

import gzip
import json

from dashboards import figures_gantt
from dashboards.answers import layers_report, timeline_report
from dashboards.state import Knobs
from dashboards.trace_export import trace_json
from dashboards.views import timeline
from tests.dashboards.viewing import SMALL, charts, texts, view


def test_passes_are_shown_with_their_words() -> None:
    app = view("timeline")
    (words,) = charts(app)
    report = timeline_report(Knobs.of(SMALL))
    assert report.trace is not None and "2 lanes" in words and "Memory below" in words
    assert f"{len(report.trace.spans):,} tasks" in texts(app)


def test_single_layers_follow_the_url_and_their_ranks_the_choice() -> None:
    app = view("timeline", detail="layers")
    hottest, both = (layers_report(Knobs.of(SMALL), lanes).trace for lanes in ("hottest", "median"))
    assert hottest is not None and both is not None and len(both.lanes) == 2 * len(hottest.lanes)
    assert "2 lanes" in charts(app)[0]
    app.get("button_group")[1].set_value("median").run()
    assert "4 lanes" in charts(app)[0] and not app.exception


def test_single_layers_open_from_near_with_more_to_pan_to() -> None:
    report = layers_report(Knobs.of(SMALL), "hottest")
    assert report.trace is not None
    figure = figures_gantt.step_view(report)
    low, high = (x / 1e3 if "(ms)" in figure.layout.xaxis2.title.text else x for x in figure.layout.xaxis2.range)
    near = [s for s in report.trace.spans if low <= s.start_s < high]
    assert figures_gantt.NEAR - 10 <= len(near) <= figures_gantt.NEAR + 10
    assert sum(len(t.x) for t in figure.data if t.type == "bar") > 2 * len(near)
    assert tuple(figure.layout.xaxis.range) == tuple(figure.layout.xaxis2.range)


def test_the_download_is_the_trace_compressed() -> None:
    report = timeline_report(Knobs.of(SMALL))
    packed = timeline.packed(report)
    assert packed == timeline.packed(report)
    assert gzip.decompress(packed).decode() == trace_json(report) and json.loads(gzip.decompress(packed))


def test_a_plan_that_is_none_says_so_in_the_words_of_the_command_line() -> None:
    app = view("timeline", ep="7")
    assert not charts(app) and "ep" in texts(app) and "role" in texts(app)


def test_a_plan_that_does_not_fit_is_told_with_its_timeline() -> None:
    app = view("timeline", seq_len="32768", **{"device.mem_bytes": "3e10"})
    assert charts(app) and "This plan does not fit" in texts(app)
