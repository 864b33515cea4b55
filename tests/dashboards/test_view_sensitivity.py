"""The view Sensitivity: tornado, two knobs, a study's database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dashboards import work_knobs
from dashboards.answers import answer
from dashboards.knob_values import MOST, at_first, turns
from dashboards.state import Knobs
from dashboards.views import sensitivity
from hwprofiles.errors import UserError
from planner.study.store import OK, Row, writing
from tests.dashboards.page import Done, at_once, figures_of, page_of, query_of, text_of

__all__ = ["at_once"]

SMALL = {"model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64", "pp": "2", "ep": "4",
         "recompute": "moe_act"}  # fmt: skip


def quiet(*_: object) -> None:
    """Progress that nobody reads."""


def test_gains_bracket_the_step() -> None:
    """More of a rate never costs, less never gains; the rates of a machine are all there on both sides."""
    found = work_knobs.gains({"case": SMALL}, quiet)
    assert found["step_s"] == pytest.approx(answer(Knobs.of(SMALL)).report.step_s.value)
    more, less = ({g["what"]: g["gain"] for g in found[name]} for name in ("more", "less"))
    assert set(more) == set(less) >= {"FLOP/s", "memory bandwidth", "scale-up bandwidth", "scale-out bandwidth"}
    assert all(gain >= -1e-12 for gain in more.values()) and all(gain <= 1e-12 for gain in less.values())
    assert max(more, key=more.__getitem__) == "FLOP/s"


def test_a_larger_machine_is_compared_with_the_best_plan_now() -> None:
    dense = {"model": "llama2-7b", "cluster": "dgx-h100", "gpus": "8", "global_batch": "18", "tp": "8"}
    found = work_knobs.sizes({"case": dense}, quiet)
    assert found["step_s"] < answer(Knobs.of(dense)).report.step_s.value, "the layout of the knobs is not the best"
    assert [gain["what"] for gain in found["gains"]] == ["memory", "one more node"]
    assert found["gains"][0]["gain"] >= -1e-12


def test_cells_are_the_simulated_steps_and_say_what_is_not_possible() -> None:
    found = work_knobs.grid({"case": SMALL, "x": ["ep", ["4", "3"]], "y": ["recompute", ["none", "moe_act"]]}, quiet)
    cells = {(c["x"], c["y"]): c for c in found["cells"]}
    assert cells["4", "moe_act"]["step_s"] == pytest.approx(answer(Knobs.of(SMALL)).report.step_s.value)
    assert "out of memory" in cells["4", "none"]["reason"] and cells["4", "none"]["rate"] > 0
    assert "step_s" not in cells["3", "none"] and "expert" in cells["3", "none"]["reason"]


def test_a_map_is_bounded() -> None:
    with pytest.raises(UserError, match="at most"):
        work_knobs.grid({"case": SMALL, "x": ["ep", list(range(11))], "y": ["pp", list(range(11))]}, quiet)


def test_a_stopped_map_keeps_its_cells() -> None:
    calls = 0

    def stopping(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    found = work_knobs.grid({"case": SMALL, "x": ["ep", ["4", "2"]], "y": ["pp", ["2"]]}, stopping)
    assert len(found["cells"]) == 1


def test_knobs_stand_among_their_values() -> None:
    offered = turns(answer(Knobs.of({**SMALL, "cluster.scale_out.bytes_per_s": "2e10"})))
    for turn in offered.values():
        texts = [choice.text for choice in turn.choices]
        assert turn.now in texts and len(set(texts)) == len(texts), turn.key
        assert turn.now in at_first(turn) and len(at_first(turn)) <= MOST
    assert offered["cluster.scale_out.bytes_per_s"].now == "20.0 GB/s"
    assert {"tp", "pp", "ep", "gpus", "routing", "device.mem_bytes"} <= set(offered)


def test_the_view_draws_tornado_and_map(at_once: Done) -> None:
    page = page_of("sensitivity", {**SMALL, "map.x": "tp", "map.y": "cluster.scale_out.bytes_per_s"}).run()
    assert not page.exception
    assert [name for name, _ in at_once.asked] == ["gains"], "the tornado is drawn unasked"
    assert len(figures_of(page)) == 1 and "FLOP/s +" in text_of(page)
    page.multiselect(key="values-x-tp").set_value(["1", "2"])
    page.multiselect(key="values-y-cluster.scale_out.bytes_per_s").set_value(["50.0 GB/s", "100 GB/s"]).run()
    next(b for b in page.button if b.label == "Simulate 4 combinations").click().run()
    assert not page.exception and len(figures_of(page)) == 2
    assert "4 combinations of tensor parallel and scale-out bandwidth" in text_of(page)
    next(b for b in page.button if b.label.startswith("Open the fastest")).click().run()
    assert query_of(page, "cluster.scale_out.bytes_per_s") == ["100000000000.0"]
    assert query_of(page, "map.x") == ["tp"], "the knobs of the map stay in the URL"


def test_the_same_knob_twice_is_no_map(at_once: Done) -> None:
    page = page_of("sensitivity", {**SMALL, "map.x": "pp", "map.y": "pp"}).run()
    assert "two different knobs" in text_of(page)


def test_the_grid_shows_words_in_place_of_values() -> None:
    offered = turns(answer(Knobs.of(SMALL)))
    x, y = offered["ep"], offered["device.mem_bytes"]
    result: dict[str, Any] = {"cells": [{"x": "4", "y": str(y.choices[3].value), "step_s": 1.0, "rate": 2.0}]}
    grid = sensitivity.grid_of(result, x, y)
    assert grid.xs == ("4",) and grid.ys == (y.now,) and grid.here == ("4", y.now)
    assert grid.best is not None and grid.best.rate == 2.0


def test_a_study_is_uploaded_and_drawn(at_once: Done, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    with writing(file) as store:
        rows = [Row(digest=str(i), status=OK, result={"step_s": 1.0 + i, "label": f"<b>{i}"}) for i in range(3)]
        store.add(rows, {str(i): {"gpus": 8 * (i + 1)} for i in range(3)}, "program")
    page = page_of("sensitivity", SMALL).run()
    page.file_uploader(key="study-file").set_value(("study.db", file.read_bytes(), "application/octet-stream")).run()
    assert not page.exception and len(figures_of(page)) == 2
    assert "3 cases (3 ok)" in text_of(page) and "<b>" not in "".join(e.proto.body for e in page.get("html"))


def test_names_of_a_study_are_text(at_once: Done, tmp_path: Path) -> None:
    """A column may be named as a picture of another server; nothing of it reaches Markdown as markup."""
    file = tmp_path / "evil.db"
    with writing(file) as store:
        rows = [Row(digest=str(i), status="![x](http://a/b)", result={"![y](http://a/b)": 1.0 + i}) for i in range(2)]
        store.add(rows, {str(i): {"[z](http://a/b)": i} for i in range(2)}, "program")
    page = page_of("sensitivity", {**SMALL, "tp": "3"}).run()
    assert 'class="problem"' in text_of(page), "a scenario that breaks rules leaves the study alone"
    page.file_uploader(key="study-file").set_value(("evil.db", file.read_bytes(), "application/octet-stream")).run()
    assert not page.exception and len(figures_of(page)) == 1
    shown = [element.value for kind in ("markdown", "caption") for element in page.get(kind)]
    assert not any("](http" in text for text in shown)
    assert any("\\!\\[x\\]\\(http" in text for text in shown)


def test_what_is_no_study_is_refused_in_words(at_once: Done) -> None:
    page = page_of("sensitivity", SMALL).run()
    page.file_uploader(key="study-file").set_value(("odd.db", b"no database", "application/octet-stream")).run()
    assert not page.exception and "give the file that `moecast sweep --db` wrote" in text_of(page)


def test_the_values_of_a_map_stand_in_the_address(at_once: Done) -> None:
    page = page_of("sensitivity", {**SMALL, "map.x": "tp", "map.x.values": ["2", "1", "77"]}).run()
    boxes = {box.label: box for box in page.multiselect}
    assert boxes["Values of tensor parallel"].value == ["1", "2"], "in their order, and none that is not offered"
    boxes["Values of tensor parallel"].set_value(["2"]).run()
    assert query_of(page, "map.x.values") == ["2"]


def test_a_map_does_not_depend_on_where_its_two_knobs_stand() -> None:
    from dashboards.knob_values import payload

    asked = []
    for ep in ("4", "8"):
        knobs = Knobs.of({**SMALL, "ep": ep})
        offered = turns(answer(knobs))
        asked.append(payload(knobs, offered["ep"], offered["pp"], ["4", "8"], ["2"]))
    assert asked[0] == asked[1]
