"""The accuracy view: published cases with filters, what is near the scenario, and what its prediction rests on."""

from __future__ import annotations

import re

from calibration.scored import shipped_scores
from dashboards import figures_accuracy
from dashboards.views import accuracy
from sim.interval import BOTH, DISTANCES, VENDOR
from tests.dashboards.viewing import charts, texts, view


def counted(words: str) -> int:
    found = re.search(r"of (\d+) published cases", words)
    assert found is not None, words
    return int(found[1])


def test_every_class_of_distance_is_said() -> None:
    assert set(accuracy.DISTANCES) == {*DISTANCES, BOTH, VENDOR}


def test_what_is_like_no_measured_run_is_not_called_calibrated() -> None:
    assert accuracy.verdict_of("same", 0.11)[0] == "calibrated in parts"
    assert accuracy.verdict_of("same", 0.9)[0] == "calibrated"
    assert accuracy.verdict_of("new device", 0.11) == accuracy.DISTANCES["new device"]
    page = texts(view("accuracy"))
    assert "calibrated in parts" in page and "no measured run is much like this one" in page


def test_cases_filters_and_neighbours() -> None:
    app = view("accuracy")
    parity, errors = charts(app)
    every = figures_accuracy.scored_cases(shipped_scores())
    assert counted(parity) == len(every) and errors.startswith("Mean absolute error by model")
    page = texts(app)
    assert "this prediction is" in page and "likeness" in page and "most alike measured run" in page
    gpu = next(m for m in app.multiselect if m.label == "GPU")
    gpu.set_value(["A100"]).run()
    assert not app.exception
    wanted = figures_accuracy.scored_cases(shipped_scores(), gpu=["A100"])
    assert 0 < counted(charts(app)[0]) == len(wanted) < len(every)
    assert app.query_params["seen-gpu"] == "A100"


def test_the_url_says_measure_filters_and_grouping() -> None:
    app = view("accuracy", measure="peak_bytes", grouped="gpu")
    parity, errors = charts(app)
    assert "peak memory" in parity and "by GPU" in errors
    app = view("accuracy", **{"seen-trainer": "NeMo", "measure": "no such"})
    assert counted(charts(app)[0]) == len(figures_accuracy.scored_cases(shipped_scores(), trainer=["NeMo"]))


def test_an_impossible_scenario_leaves_the_published_cases() -> None:
    app = view("accuracy", ep="7")
    assert "role" in texts(app) and len(charts(app)) == 2


def test_the_cases_as_a_file_hold_what_is_shown() -> None:
    text = accuracy._csv([{"run": "a", "error %": 1.5}, {"run": "b,c", "error %": None}])
    assert text == 'run,error %\na,1.5\n"b,c",\n'
