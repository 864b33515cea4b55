"""Many visitors at once and hostile addresses, without a browser: nobody sees another's scenario, a defect, a path."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, quote, urlencode

import pytest

from benchmarks.thin_visitor import Visitor
from dashboards.page import VIEWS, path_of

pytestmark = pytest.mark.xdist_group("browser")

SMALL = {"model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64", "ep": "8"}
EVIL = (
    "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "$\\frac{1}{0}$", "\U0001f600" * 50, "A" * 10_240,
    "../../etc/passwd", "{{7*7}}", "__import__('os').system('id')", "\x00", "%00", "nan", "inf", "-1", "1e999",
    "[[1]]", '{"a":{}}', "true", "null", "'", "", "0", "99999999999999999999",
)  # fmt: skip
KEYS = (
    "model", "cluster", "gpus", "seq_len", "precision", "tp", "pp", "vpp", "schedule", "recompute", "routing",
    "placement", "software", "optimizer", "lengths", "rank_order", "seed", "cluster.scale_out.bytes_per_s",
    "device.mem_bytes", "plan.stages", "plan.fsdp_shard", "plan.nothing", "model.hidden", "base", "s", "p",
    "goal.tokens", "goal.objective", "keep", "map.x", "map.x.values", "axes", "detail", "lanes", "measure", "grouped",
    "place-gpus", "place-loads", "place-seed", "host_map", "nodes", "unknown",
)  # fmt: skip


def turned(address: str, number: int) -> tuple[str, str, list[str]]:
    """(address, words, errors) of a visitor who opens views and turns a knob of a scenario of her own."""
    with Visitor(address, urlencode({**SMALL, "global_batch": str(64 * (number + 1))}), dark=number % 2 == 1) as one:
        one.open()
        one.open(path_of(VIEWS[number % len(VIEWS)]))
        one.open()
        one.turn("Precision", "fp8")
        return one.query, one.texts(), one.errors


def test_visitors_at_once_see_what_each_sees_alone(server: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: turned(server, number), range(8)))
    assert [error for *_, errors in together for error in errors] == []
    for number, (query, words, _) in enumerate(together):
        asked = dict(parse_qsl(query))
        assert asked["global_batch"] == str(64 * (number + 1)) and asked["precision"] == "fp8"
        assert 'class="tiles"' in words
    assert len({words for _, words, _ in together}) == 8
    assert turned(server, 3)[1] == together[3][1]


def test_two_tabs_hold_two_scenarios(server: str) -> None:
    with Visitor(server, urlencode(SMALL)) as one, Visitor(server, urlencode({**SMALL, "routing": "zipf:1.0"})) as two:
        one.open()
        two.open()
        before = one.texts()
        two.turn("Precision", "fp8")
        one.open()
        assert one.texts() == before and "precision" not in one.query and "fp8" in two.query


@pytest.mark.parametrize("seed", range(3))
def test_a_hostile_address_gets_words(server: str, seed: int) -> None:
    draw = random.Random(seed)
    with Visitor(server) as one:
        for key, text in draw.sample([(k, t) for k in KEYS for t in EVIL], 25):
            view = path_of(draw.choice([v for v in VIEWS if v != "sensitivity"]))  # which would start jobs
            one.open(view, urlencode({**SMALL, key: text}))
            said = one.texts()
            assert one.errors == [], (view, key, text)
            assert "Traceback" not in said and "site-packages" not in said and "/tmp/" not in said
            assert "<img src=x" not in said.replace("&lt;", ""), (view, key)


def test_an_endless_address_is_cut(server: str) -> None:
    with Visitor(server) as one:
        one.open("", urlencode(SMALL) + "".join(f"&tp={i}" for i in range(1000)))
        one.open("", urlencode({**SMALL, "base": "x" * 100_000}))
        one.open("compare", "&".join("s=" + quote(urlencode(SMALL)) for _ in range(500)))
        one.open("", urlencode(SMALL) + "&" + "z" * 100_000)
        assert one.errors == [] and 'class="tiles"' in one.texts()


def test_a_job_is_cancelled_and_asked_again(server: str) -> None:
    asked = {**SMALL, "gpus": "64", "global_batch": "512", "pp": "2"}
    with Visitor(server, urlencode(asked)) as one:
        one.open("plan")
        one.press("Search")
        one.press("Cancel")
        one.wait(3.0)
        assert not any(e.HasField("progress") for e in one.elements.values())
        one.press("Search")
        assert any(e.HasField("progress") for e in one.elements.values()) or one.figures()
        one.press("Cancel")
        one.wait(3.0)
        assert one.errors == []
