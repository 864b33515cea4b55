"""Timeline, Experts, Network and Accuracy in a real browser: files come out and go in, wide and dark pages hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from planner.placement.placefile import placement_from
from tests.dashboards.browser.test_pages import SMALL, opened, settled, sideways

pytestmark = pytest.mark.xdist_group("browser")

UNEVEN = f"{SMALL}&routing=zipf%3A0.6"
LOADS = "layer,expert,count\n" + "".join(f"{i},{e},{100 + 30 * (e % 5)}\n" for i in (0, 1) for e in range(16))


def saved(tab: Any, label: str) -> bytes:
    """What a download button hands out."""
    with tab.expect_download() as found:
        tab.get_by_role("button", name=label).click()
    return Path(found.value.path()).read_bytes()


def test_the_trace_comes_out_compressed(server: str, tab: Any) -> None:
    opened(tab, f"{server}/timeline?{UNEVEN}&pp=2")
    tab.get_by_text("single layers").click()
    tab.wait_for_function("location.search.includes('detail=layers')")
    tab.wait_for_selector("text=The run of single layers ends")
    settled(tab)
    trace = json.loads(gzip.decompress(saved(tab, "Perfetto trace")))
    assert trace["moecast"]["run"] == "layers" and len(trace["traceEvents"]) > 1_000


def test_both_panels_zoom_as_one(server: str, tab: Any) -> None:
    opened(tab, f"{server}/timeline?{UNEVEN}&pp=2")
    drag = tab.locator(".js-plotly-plot .nsewdrag").first
    drag.wait_for()
    box = drag.bounding_box()
    y = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 0.4 * box["width"], y)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    tab.mouse.up()
    both = (
        "(() => { const l = document.querySelector('.js-plotly-plot')._fullLayout;"
        " return [l.xaxis.range, l.xaxis2.range] })()"
    )
    tab.wait_for_function(f"{both}[0][0] > 0")
    one, other = tab.evaluate(both)
    assert one == pytest.approx(other)


def test_counts_go_in_and_a_placement_comes_out(server: str, tab: Any, tmp_path: Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text(LOADS, encoding="utf-8")
    opened(tab, f"{server}/experts?{UNEVEN}&place-gpus=8&place-gpus_per_node=4")
    tab.get_by_text("Files: counts").click()
    tab.locator(".stMain input[type=file]").first.set_input_files(str(file))
    tab.wait_for_function("location.search.includes('place-loads=upload')")
    tab.wait_for_selector("text=16 experts in 2 MoE layers on 8 GPUs of 2 nodes")
    tab.get_by_role("button", name="Place", exact=True).click()
    tab.wait_for_selector("text=Certificate")
    settled(tab)
    placement, layers = placement_from(json.loads(saved(tab, "placement.json")), where="download")
    assert placement.experts.shape == (2, 8, 2) and layers == (0, 1)
    assert sideways(tab) <= 0


@pytest.mark.parametrize("view", ["timeline", "experts", "network", "accuracy"])
def test_wide_and_dark_pages_hold_and_ask_nobody_else(server: str, browser: Any, view: str) -> None:
    context = browser.new_context(viewport={"width": 1920, "height": 1000}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        opened(page, f"{server}/{view}?{UNEVEN}")
        page.wait_for_selector(".js-plotly-plot")
        assert sideways(page) <= 0
        ink, ground = page.evaluate(
            "[getComputedStyle(document.querySelector('.js-plotly-plot .xtick text, .js-plotly-plot .ytick text,"
            " .js-plotly-plot text')).fill, getComputedStyle(document.querySelector('[data-testid=stApp]'))"
            ".backgroundColor]"
        )
        light, dark = (sum(map(int, c.split("(")[1].rstrip(")").split(",")[:3])) / 765 for c in (ink, ground))
        assert light - dark > 0.5, (ink, ground)
        assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
    finally:
        context.close()
