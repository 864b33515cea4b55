"""The page in a real browser: views open, knobs move figures, searches end and are cancelled, files go in and out."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dashboards.page import VIEWS, path_of

pytestmark = pytest.mark.xdist_group("browser")

SMALL = "model=Mixtral-8x7B&cluster=dgx-h100&gpus=16&global_batch=64&ep=8"

DRAWN = ".tiles, .problem, .js-plotly-plot, table.plain, .stMain .stButton, .stMain [data-testid=stCaptionContainer]"


def settled(tab: Any) -> None:
    """Wait until the server has drawn everything."""
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    tab.wait_for_function("document.querySelectorAll('[data-stale=true]').length === 0")


def opened(tab: Any, address: str) -> None:
    tab.goto(address)
    tab.locator(DRAWN).locator("visible=true").first.wait_for()
    settled(tab)


def sideways(tab: Any) -> int:
    """Pixels by which the page is wider than the window."""
    return int(tab.evaluate("document.documentElement.scrollWidth - innerWidth"))


def text_of_tiles(tab: Any) -> str:
    return str(tab.inner_text(".tiles"))


def choose(tab: Any, knob: str, value: str) -> None:
    """Turn a knob that is a list."""
    box = tab.locator('[data-testid="stSelectbox"]').filter(has=tab.get_by_text(knob, exact=True)).locator("input")
    box.click()
    box.fill(value)
    box.press("Enter")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens(server: str, tab: Any, view: str) -> None:
    opened(tab, f"{server}/{path_of(view)}?{SMALL}")
    body = tab.inner_text("body")
    assert "went wrong" not in body
    assert "Page not found" not in body
    assert "Traceback" not in body
    assert not tab.query_selector(".problem"), tab.inner_text(".problem")
    assert sideways(tab) <= 0
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('[data-testid=stPlotlyChart]')].filter(e => !e.querySelector('[aria-label]')"
        " && !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0, "a figure without words"


def test_a_knob_changes_tiles_figure_and_url(server: str, tab: Any) -> None:
    opened(tab, f"{server}/?{SMALL}")
    before = text_of_tiles(tab)
    choose(tab, "PP", "2")
    tab.wait_for_function("!location.search.includes('pp=1') && location.search.includes('pp=2')")
    settled(tab)
    assert text_of_tiles(tab) != before
    assert parse_qs(urlsplit(tab.url).query)["pp"] == ["2"]


def test_a_copied_url_restores_everything(server: str, tab: Any, browser: Any) -> None:
    base = "model%3DMixtral-8x7B%26cluster%3Ddgx-h100%26gpus%3D16%26global_batch%3D64%26ep%3D8%26pp%3D1"
    address = f"{server}/?{SMALL}&pp=2&routing=zipf%3A0.6&cluster.scale_out.bytes_per_s=1e11&base={base}"
    opened(tab, address)
    first = text_of_tiles(tab)
    assert "vs. baseline" in first
    other = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    opened(other, tab.url)
    assert text_of_tiles(other) == first
    other.context.close()


def test_a_broken_upload_shows_the_words_of_the_command_line(server: str, tab: Any, tmp_path: Any) -> None:
    from hwprofiles.errors import UserError, error_text
    from sim.families import load_model

    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "mixtral", "hidden_size": "many"}')
    with pytest.raises(UserError) as caught:
        load_model(str(broken))
    said = error_text(caught.value).split(":")[-1].strip()
    opened(tab, f"{server}/?{SMALL}")
    tab.get_by_text("Upload a model").click()
    tab.set_input_files("[data-testid=stPopoverBody] input[type=file]", str(broken))
    tab.wait_for_selector(".problem")
    assert re.sub(r"\s+", " ", said) in re.sub(r"\s+", " ", tab.inner_text(".problem"))


def test_an_address_cannot_name_a_file(server: str, tab: Any) -> None:
    opened(tab, f"{server}/?{SMALL}&model=%2Fetc%2Fpasswd&routing=counts.csv")
    said = tab.inner_text(".problem")
    assert "catalogue" in said
    assert "root:" not in tab.inner_text("body")


@pytest.mark.parametrize(
    "wrong", ["gpus=1000000000&global_batch=1000000000", "cluster.scale_out.bytes_per_s=[1,2]", "device.mem_bytes=nan"]
)
def test_a_wild_address_gets_words(server: str, tab: Any, wrong: str) -> None:
    opened(tab, f"{server}/?{SMALL.replace('gpus=16&global_batch=64&', '')}&{wrong}")
    tab.wait_for_selector(".problem")
    assert "went wrong" not in tab.inner_text("body")


def test_names_from_files_are_text(server: str, tab: Any, tmp_path: Any) -> None:
    """A name with markup in an uploaded file stays a name."""
    from pathlib import Path

    source = Path("examples/model.toml").read_text(encoding="utf-8")
    evil = re.sub(r'(?m)^name = ".*"', 'name = "<img src=x onerror=window.evil=1>"', source)
    assert evil != source
    file = tmp_path / "model.toml"
    file.write_text(evil)
    opened(tab, f"{server}/?{SMALL}")
    tab.get_by_text("Upload a model").click()
    tab.set_input_files("[data-testid=stPopoverBody] input[type=file]", str(file))
    tab.wait_for_function("location.search.includes('upload')")
    settled(tab)
    assert tab.evaluate("window.evil === undefined")
    assert tab.query_selector("img[src=x]") is None


def test_one_bad_value_is_told_once(server: str, tab: Any) -> None:
    opened(tab, f"{server}/?{SMALL}&cluster=nowhere")
    tab.wait_for_selector(".problem")
    settled(tab)
    assert tab.locator(".problem").count() == 1
    assert "nowhere" in tab.inner_text(".problem")


@pytest.mark.parametrize("view", ["timeline", "compare"])
def test_a_page_of_a_view_logs_nothing(server: str, tab: Any, view: str) -> None:
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("response", lambda answer: said.append(answer.url) if answer.status >= 400 else None)
    opened(tab, f"{server}/{view}?{SMALL}")
    assert said == []


def test_back_and_forward_lead_through_the_views(server: str, tab: Any) -> None:
    opened(tab, f"{server}/?{SMALL}")
    tab.get_by_role("link", name="Timeline").click()
    tab.get_by_text("Gantt chart of").wait_for()
    tab.go_back()
    tab.get_by_text("model FLOP utilisation").wait_for()
    tab.go_forward()
    tab.get_by_text("Gantt chart of").wait_for()
    assert "went wrong" not in tab.inner_text("body")
