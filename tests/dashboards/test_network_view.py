"""The network view: the drawing, its table, and gains of the links among those that are worked out behind the page."""

from __future__ import annotations

import pytest

from dashboards import jobs, work_knobs
from dashboards.state import Knobs
from dashboards.views.network import is_link
from hwprofiles import catalogue
from planner.elastic import rates_of
from tests.dashboards.viewing import SMALL, charts, texts, view


def test_links_are_told_from_other_rates() -> None:
    names = [name for name in rates_of(catalogue.cluster("h100-two-sites")) if is_link(name)]
    assert names == [
        "scale-up bandwidth",
        "scale-out bandwidth",
        "leaf bandwidth",
        "site bandwidth",
        "host link bandwidth",
    ]


def test_drawing_table_and_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {"case": Knobs.of(SMALL).case()}
    gains = work_knobs.gains(payload, lambda *_: None)
    monkeypatch.setitem(jobs._results, jobs.key_of("gains", payload), gains)
    app = view("network")
    drawing, bar, traffic = charts(app)
    assert drawing.startswith("Network of dgx-h100: 16 H100 in 2 nodes") and "Busiest in the step" in drawing
    assert bar.startswith("The same plan with one rate raised by 10%: most by scale-") and "FLOP" not in bar
    assert "forward dispatch" in traffic and "scale_out" in texts(app)
    app.toggle[0].set_value(True).run()
    assert not app.exception and len(charts(app)) == 4
