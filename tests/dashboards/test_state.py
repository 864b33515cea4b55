"""Knobs: a URL and back, a study file and back, and nothing in them that reads a file."""

from __future__ import annotations

import tomllib
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import uploads
from dashboards.state import MAX_KEYS, MAX_VALUE, START, Knobs, knobs_of_study, known, study_text
from hwprofiles.errors import UserError
from planner.question.case import OPTIONS, question_of

KEYS = st.sampled_from([*OPTIONS, "cluster.scale_out.bytes_per_s", "device.mem_bytes", "plan.stages"])


@given(st.dictionaries(KEYS, st.text(min_size=1, max_size=60).filter(lambda t: t.strip() == t)))
def test_a_url_gives_the_knobs_back(values: dict[str, str]) -> None:
    knobs = Knobs.of(values)
    assert knobs.values == values
    assert Knobs.of_query(knobs.query()) == knobs


@given(st.text(max_size=300))
def test_any_text_is_a_url_of_known_keys_only(text: str) -> None:
    knobs = Knobs.of_query(text)
    assert len(knobs.pairs) <= MAX_KEYS
    assert all(known(key) and 0 < len(value) <= MAX_VALUE for key, value in knobs.pairs)


def test_unknown_keys_and_endless_values_are_left_out() -> None:
    knobs = Knobs.of({"model": "x" * (MAX_VALUE + 1), "__class__": "1", "out": "/tmp/a", "tp": " 2 ", "json": "-"})
    assert knobs.values == {"tp": "2"}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model", "examples/model.toml"),
        ("model", "/etc/passwd"),
        ("cluster", "examples/cluster.toml"),
        ("software", "../profile.toml"),
        ("routing", "counts.csv"),
        ("routing", "zipf:/../counts.csv"),
        ("routing", "like:../../x"),
        ("placement", "placement.json"),
        ("lengths", "lengths.txt"),
        ("host_map", "map.csv"),
        ("nodes", "nodes.csv"),
        ("model", "upload:00000000000000000000:config.json"),
    ],
)
def test_no_value_reads_a_path(key: str, text: str) -> None:
    with pytest.raises(UserError, match=r"catalogue|names a file|upload it again"):
        Knobs.of({**START, key: text}).case()


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [("nodes", "1e99", "whole number"), ("nodes", "four", "no list of nodes"), ("routing", "even", "balanced, uniform"),
     ("lengths", "1024", "fixed:")],
)  # fmt: skip
def test_a_text_that_is_no_file_is_not_called_one(key: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Knobs.of({**START, key: text}).case()
    assert "names a file" not in str(caught.value)


def test_what_an_address_leaves_out_is_what_the_side_shows() -> None:
    knobs = Knobs.of_query("model=Qwen3-235B-A22B&gpus=256").completed()
    assert knobs.values == {"model": "Qwen3-235B-A22B", "gpus": "256", "cluster": START["cluster"]}
    assert question_of(knobs.case()).cluster.num_devices == 256
    assert Knobs.of({"cluster": "dgx-b200"}).completed().values == {"model": START["model"], "cluster": "dgx-b200"}


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Knobs.of({"model": "a/b.json", "cluster": "c.toml", "nodes": "n.csv"}).case()
    assert len(caught.value.problems) == 3


def test_the_start_is_a_question_that_can_be_answered() -> None:
    question = question_of(Knobs.of(START).case())
    assert question.model.is_moe
    assert question.cluster.num_devices == 64


def test_fields_of_records_are_values() -> None:
    case = Knobs.of({**START, "cluster.scale_out.bytes_per_s": "1e11", "plan.zero_stage": "2"}).case()
    assert case["cluster.scale_out.bytes_per_s"] == 1e11
    assert case["plan.zero_stage"] == 2
    assert question_of(case).cluster.scale_out.bytes_per_s == 1e11


def test_a_saved_scenario_is_a_study_that_reads_back() -> None:
    knobs = Knobs.of({**START, "device.mem_bytes": "9e10", "recompute": "moe_act,layernorm"})
    text = study_text(knobs)
    assert tomllib.loads(text)["base"]["model"] == START["model"]
    back = knobs_of_study(text.encode())
    assert back.with_({"device.mem_bytes": None}) == knobs.with_({"device.mem_bytes": None})
    assert float(back.get("device.mem_bytes")) == 9e10


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = [", b"[study]\nverb = 3\n", b"[grid]\nmodel = []\n"])
def test_a_broken_scenario_is_refused_with_words(data: bytes) -> None:
    with pytest.raises(UserError):
        knobs_of_study(data)


def test_the_query_is_plain() -> None:
    knobs = Knobs.of({"model": "a&b=c", "tp": "2"})
    assert dict(parse_qsl(knobs.query())) == knobs.values


def test_errors_name_uploads_and_no_folder_of_the_server() -> None:
    from hwprofiles.errors import error_text
    from sim.families import load_model

    token = uploads.add("model", "broken.json", b"{")
    with pytest.raises(UserError) as caught:
        load_model(str(uploads.path(token)))
    said = uploads.without_folders(error_text(caught.value))
    assert "broken.json" in said and "/" not in said.split(":")[1]
    config = uploads.add("model", "config.json", b"{}")
    assert uploads.path(config).parent.name == "uploaded-model"


def test_knobs_set_and_left_out() -> None:
    knobs = Knobs.of({"tp": "2", "cluster": "dgx-h100", "cluster.scale_up.bytes_per_s": "1"})
    assert knobs.with_({"tp": None, "pp": "4"}).values == {
        "cluster": "dgx-h100", "cluster.scale_up.bytes_per_s": "1", "pp": "4",
    }  # fmt: skip
    assert knobs.without("tp").get("tp") == ""
    assert "64" in Knobs.of(START).label()


def test_uploads_are_named_by_what_they_hold() -> None:
    token = uploads.add("model", "../../etc/<b>config.json", b'{"a": 1}')
    assert uploads.is_token(token)
    assert uploads.path(token).read_bytes() == b'{"a": 1}'
    assert uploads.shown(token) == "b-config.json"
    assert token == uploads.add("model", "../../etc/<b>config.json", b'{"a": 1}')
    assert token != uploads.add("model", "../../etc/<b>config.json", b'{"a": 2}')


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("a.exe", b"x", "ending"), ("a.json", b"", "empty"), ("a.json", b"x" * (uploads.MAX_FILE_BYTES + 1), "MiB")],
)
def test_uploads_that_are_refused(name: str, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        uploads.add("model", name, data)


@pytest.mark.parametrize("name", ["", "...", "/", "a/..", "\x00", "é" * 300, "-rf", ".hidden"])
def test_safe_names_have_no_folder_and_do_not_hide(name: str) -> None:
    safe = uploads.safe_name(name)
    assert safe
    assert safe[0] not in ".-"
    assert "/" not in safe
    assert len(safe) <= 60


def test_old_uploads_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    first = uploads.add("model", "first.json", b"1" * 80)
    second = uploads.add("model", "second.json", b"2" * 80)
    assert uploads.path(second).is_file()
    with pytest.raises(UserError, match="upload it again"):
        uploads.path(first)


def test_the_schedule_at_the_side_is_the_one_that_runs() -> None:
    from dashboards.knobs import usual_schedule, usual_vpp
    from planner.question.case import scenario_of_case

    small = {**START, "pp": "2", "target": "layout"}
    for more in ({}, {"vpp": "2"}, {"schedule": "zb-v"}, {"schedule": "gpipe"}):
        knobs = Knobs.of({**small, **more})
        case = knobs.case()
        plan = scenario_of_case(case, question_of(case)).plan
        assert (knobs.get("schedule") or usual_schedule(knobs)) == plan.schedule
        assert (knobs.get("vpp") or usual_vpp(knobs)) == str(plan.vpp)
