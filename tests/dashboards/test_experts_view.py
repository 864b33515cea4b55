"""The experts view: what is asked is read as the command line reads it, placed behind the page, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboards import jobs, uploads, work_place
from dashboards.answers import answer
from dashboards.state import Knobs
from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.placefile import placement_from, placement_json
from planner.placement.read import read_instance
from tests.dashboards.viewing import SMALL, charts, texts, view

# Tokens of two experts each, always the same two: counts of a pair are those of its experts.
HELD = {(i, e): 100 + 37 * ((e * 7 + i) % 11) for i in range(2) for e in range(0, 16, 2)}
LOADS = "layer,expert,count\n" + "".join(f"{i},{e + d},{n}\n" for (i, e), n in HELD.items() for d in (0, 1))
PAIRS = "layer,expert_a,expert_b,count\n" + "".join(f"{i},{e},{e + 1},{n}\n" for (i, e), n in HELD.items())
ASKED = {"gpus": "8", "gpus_per_node": "4"}


def nothing(*_: object) -> None:
    return None


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    out = {"loads": tmp_path / "loads.csv", "coactivation": tmp_path / "pairs.csv"}
    for path, text in zip(out.values(), (LOADS, PAIRS), strict=True):
        path.write_text(text, encoding="utf-8")
    return {name: str(path) for name, path in out.items()}


def test_files_are_placed_as_by_the_command_line(files: dict[str, str]) -> None:
    data = work_place.place({"case": Knobs.of(SMALL).case(), "files": files, "options": ASKED}, nothing)
    instance = read_instance(
        files["loads"], coactivation=files["coactivation"], gpus=8, gpus_per_node=4, slots_per_gpu=2
    )
    wanted = placement_json(place_experts(instance))
    assert json.loads(json.dumps(data | {"timing": 0})) == json.loads(json.dumps(wanted | {"timing": 0}))


def test_the_scenarios_routing_is_placed_without_files() -> None:
    asked = work_place.asked_placement({"case": Knobs.of(SMALL).case()})
    assert (asked.instance.gpus, asked.instance.num_experts, asked.top_k) == (8, 8, 2)
    assert asked.instance.num_nodes == 1 and asked.machine is None


def test_all_mistakes_are_said_at_once() -> None:
    bad = {"gpus": "many", "seed": "-1", "max_moves": "3", "traffic": "sideways"}
    with pytest.raises(UserError) as caught:
        work_place.asked_placement({"case": Knobs.of(SMALL).case(), "options": bad})
    text = str(caught.value)
    for words in ("--gpus 'many' is not a whole number", "--seed -1 is out of range", "--max-moves needs --previous",
                  "sideways"):  # fmt: skip
        assert words in text


def test_seconds_are_of_the_scenarios_cluster() -> None:
    asked = work_place.asked_placement({"case": Knobs.of(SMALL).case(), "options": {"seconds": "yes"}})
    assert asked.machine is not None and asked.machine.cluster.num_devices == 8
    data = work_place.place({"case": Knobs.of(SMALL).case(), "options": {"seconds": "yes"}}, nothing)
    assert data["certificate"]["time"]["after_s"] > 0.0


def test_the_view_shows_the_question_then_the_answer(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {n: uploads.add("counts", f"{n}.csv", Path(p).read_bytes()) for n, p in files.items()}
    query = {f"place-{n}": t for n, t in tokens.items()} | {f"place-{n}": t for n, t in ASKED.items()}
    app = view("experts", **query)
    assert "16 experts in 2 MoE layers on 8 GPUs of 2 nodes, 2 slots each" in texts(app)
    assert "with coactivation" in texts(app) and any(b.label == "Place" for b in app.button)
    paths = {n: str(uploads.path(t)) for n, t in tokens.items()}
    payload = {"case": Knobs.of(SMALL).case(), "files": paths,
               "options": {**ASKED, "traffic": "dispatch", "split": "even", "objective": "load"}}  # fmt: skip
    data = work_place.place(payload, nothing)
    monkeypatch.setitem(jobs._results, jobs.key_of("place", payload), data)
    app.run()
    assert not app.exception
    drawn = charts(app)
    assert any(w.startswith("Load of 8 GPUs over the mean in 2 MoE layers") for w in drawn)
    assert any("token-choices between 2 nodes" in w for w in drawn)
    assert any("Distinct nodes that the 2 experts of a token" in w for w in drawn)
    page = texts(app)
    assert "no slot is left for replicas" in page
    assert "Certificate" in page and "this answer" in page and "no placement is below" in page
    assert placement_from(data, where="x")[0].experts.shape == (2, 8, 2)


def test_even_experts_say_what_to_do() -> None:
    app = view("experts", routing="balanced")
    assert "Experts are even in this scenario" in texts(app)
    assert "every placement is alike: choose a routing law" in texts(app) and not charts(app)
    assert not any(b.label == "Place" for b in app.button)
    with pytest.raises(UserError, match="the routing is balanced, so every placement is alike; give a popularity"):
        work_place.asked_placement({"case": Knobs.of({**SMALL, "routing": "balanced"}).case()})


def test_bad_files_are_told_in_the_words_of_the_command_line() -> None:
    token = uploads.add("counts", "loads.csv", b"layer,expert,count\n0,0,5\n0,0,6\n0,2,x\n")
    app = view("experts", **{"place-loads": token, "place-gpus": "2"})
    page = texts(app)
    assert "row 4: count" in page and not any(b.label == "Place" for b in app.button)


def test_a_placement_goes_into_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    query = {"model": "Qwen3-30B-A3B", "pp": "1"}
    knobs = Knobs.of({**SMALL, **query})
    payload = {"case": knobs.case(), "files": {},
               "options": {"traffic": "dispatch", "split": "even", "objective": "load"}}  # fmt: skip
    data = work_place.place(payload, nothing)
    monkeypatch.setitem(jobs._results, jobs.key_of("place", payload), data)
    app = view("experts", **query)
    next(b for b in app.button if b.label == "Use in the scenario").click().run()
    assert not app.exception
    token = app.query_params["placement"]
    before, after = (answer(k).report for k in (knobs, knobs.with_({"placement": str(token)})))
    assert before.imbalance is not None and after.imbalance is not None
    assert after.imbalance.max_over_mean == pytest.approx(data["certificate"]["max_over_mean"], rel=0.02)
    assert after.step_s.value < before.step_s.value
