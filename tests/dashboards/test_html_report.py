"""The page stands alone: nothing is fetched, and it says what the report says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from plotly.offline import get_plotlyjs

from dashboards.html_report import report_html
from sim.report import OutOfMemory, Report
from tests.dashboards.handmade import GIB, make_report


class Loads(HTMLParser):
    """Collects everything a browser would fetch, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        self.loads += [f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


def read(report: Report) -> tuple[str, Loads]:
    page = report_html(report)
    parser = Loads()
    parser.feed(page)
    return page, parser


def test_page_loads_nothing(report: Report) -> None:
    page, parser = read(report)
    assert parser.loads == []
    own = page.replace(get_plotlyjs(), "")
    assert len(own) < len(page)
    assert not re.search(r"https?://|url\(|@import|\bimport\(", own)
    assert '"showSendToCloud": false' in own


def test_page_shows_the_four_figures_and_the_numbers(report: Report) -> None:
    page, parser = read(report)
    for name in ("time", "timeline", "memory-time", "memory-tags"):
        assert f'id="figure-{name}"' in page
    assert f"{report.step_s.value * 1e3:.0f} ms" in parser.text
    assert "41.0%" in parser.text
    assert "TP2 PP4 EP8 DP4 MB1" in parser.text
    assert "extrapolated: attention <8192> beyond the table" in parser.text
    assert "interpolated: expert GEMM" in parser.text


def test_page_is_the_same_byte_for_byte(report: Report) -> None:
    assert report_html(report) == report_html(make_report())


def test_out_of_memory_is_said_first() -> None:
    short = OutOfMemory(lane=2, tag="activations", need_bytes=96 * GIB, have_bytes=80 * GIB)
    _, parser = read(make_report(out_of_memory=short))
    assert "does not fit" in parser.text
    assert "Stage 2 needs 96.0 GiB and has 80.0 GiB" in parser.text
    assert parser.text.index("does not fit") < parser.text.index("step time")
