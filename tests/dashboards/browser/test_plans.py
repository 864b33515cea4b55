"""Plan, Sensitivity and Compare in a real browser: a point is clicked, a search is stopped, files go in and out."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from planner.study.store import OK, Row, writing

pytestmark = pytest.mark.xdist_group("browser")

DENSE = "model=llama2-7b&cluster=dgx-h100&gpus=8&global_batch=16"
LARGE = "model=DeepSeek-V3&cluster=dgx-h100&gpus=1024&global_batch=4096"


def settled(tab: Any) -> None:
    """Wait until the server has drawn everything."""
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    tab.wait_for_function("document.querySelectorAll('[data-stale=true]').length === 0")


def query(tab: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(tab.url).query)


def searched(tab: Any, address: str) -> None:
    """The page after its search."""
    tab.goto(address)
    tab.get_by_role("button", name="Search", exact=False).first.click()
    tab.get_by_text("What the plans trade").wait_for()
    tab.locator(".js-plotly-plot").nth(2).wait_for()
    settled(tab)


def saved(tab: Any, name: str) -> tuple[str, bytes]:
    """(file name, content) of what a button hands out."""
    with tab.expect_download() as found:
        tab.get_by_role("button", name=name).first.click()
    return str(found.value.suggested_filename), Path(found.value.path()).read_bytes()


def test_a_clicked_point_opens_its_plan_and_files_come_out(server: str, tab: Any) -> None:
    searched(tab, f"{server}/plan?{DENSE}&tp=8")
    # The last trace rings the answer, the one before is the Pareto front, the fastest first.
    leanest = tab.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").nth(-2).locator(".points path").last
    leanest.scroll_into_view_if_needed()
    tab.wait_for_timeout(500)
    box = leanest.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.locator(".hoverlayer .hovertext").first.wait_for()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_function(
        "new URLSearchParams(location.search).get('tp') !== '8' || location.search.includes('recompute')"
    )
    settled(tab)
    assert "question has changed" not in tab.inner_text("body")
    name, data = saved(tab, "Plan file")
    assert name == "plan.json" and json.loads(data)["search"]["certificate"] in ("exact", "best exact")
    name, data = saved(tab, "Download (3 files)")
    assert name.startswith("megatron-lm") and "megatron-lm/launch.sh" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    name, data = saved(tab, "HTML report")
    assert name == "report.html" and data.startswith(b"<!DOCTYPE html>")


def test_a_search_is_stopped(server: str, tab: Any) -> None:
    tab.goto(f"{server}/plan?{LARGE}&goal.max_gpus=4096")
    tab.get_by_role("button", name="Search", exact=False).first.click()
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Cancel").wait_for(state="detached")
    settled(tab)
    body = tab.inner_text("body")
    assert "Stopped before there was a result" in body or "may exist" in body
    assert "went wrong" not in body


def test_scenarios_and_a_plan_file_side_by_side(server: str, tab: Any, tmp_path: Path) -> None:
    searched(tab, f"{server}/plan?{DENSE}")
    file = tmp_path / "plan.json"
    file.write_bytes(saved(tab, "Plan file")[1])
    tab.goto(f"{server}/compare?{DENSE}&tp=2")
    tab.get_by_role("button", name="Add this scenario").click()
    tab.wait_for_function("new URLSearchParams(location.search).getAll('s').length === 1")
    tab.get_by_role("button", name="Add a plan file").click()
    tab.set_input_files("[data-testid=stPopoverBody] input[type=file]", str(file))
    tab.get_by_role("button", name="Add it").click()
    tab.wait_for_function("new URLSearchParams(location.search).getAll('p').length === 1")
    tab.keyboard.press("Escape")
    tab.get_by_text("B · plan.json").first.wait_for()
    settled(tab)
    assert "★" in tab.inner_text("body") and tab.locator(".js-plotly-plot").count() == 4
    tab.get_by_role("button", name="Remove", exact=True).first.click()
    tab.wait_for_function("new URLSearchParams(location.search).getAll('s').length === 0")
    assert len(query(tab)["p"]) == 1


def test_a_study_is_drawn_and_a_map_simulated(server: str, tab: Any, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with writing(file) as store:
        rows = [Row(digest=str(i), status=OK, result={"step_s": 1.0 + i, "label": "TP1"}) for i in range(3)]
        store.add(rows, {str(i): {"gpus": 8 * (i + 1)} for i in range(3)}, "program")
    tab.goto(f"{server}/sensitivity?{DENSE}&map.x=tp&map.y=micro_batch")
    tab.get_by_text("Tokens per second with more of each rate").wait_for()
    tab.get_by_role("button", name="Simulate ").click()
    tab.get_by_text("combinations of tensor parallel and micro-batch").wait_for()
    tab.set_input_files("[data-testid=stFileUploader] input[type=file] >> nth=-1", str(file))
    tab.get_by_text("3 cases (3 ok)").wait_for()
    settled(tab)
    assert tab.locator(".js-plotly-plot").count() == 3 and not tab.query_selector(".problem")
