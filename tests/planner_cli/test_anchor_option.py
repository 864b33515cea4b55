"""`--anchor` on plan, simulate and validate: what moves, what does not, and what is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.planner_cli.running import LAYOUT, SMALL, moecast

HEAD = "id,model,gpu,n_gpus,seq_len,gbs,mbs,tp,pp,vpp,cp,ep,etp,recompute,precision,framework,framework_version"
RUN = "{id},{model},{gpu},{gpus},4096,64,1,1,1,1,1,8,1,moe_act;layernorm,BF16,Megatron-Bridge (NeMo container),26.06"
SOFTWARE = ("--software", "megatron-bridge-26.06")
ASKED = (*SMALL, *LAYOUT, *SOFTWARE)


def written(folder: Path, *rows: str, name: str = "mine.csv") -> str:
    path = folder / name
    path.write_text("\n".join([HEAD + ",tokens_per_s_gpu", *rows]) + "\n", encoding="utf-8")
    return str(path)


def run(rate: float | str, ident: str = "a", model: str = "Qwen3-30B-A3B", gpu: str = "H100", gpus: int = 32) -> str:
    return RUN.format(id=ident, model=model, gpu=gpu, gpus=gpus) + f",{rate}"


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(moecast("simulate", *ASKED, "--json", "-").out)
    assert record["anchored"] is None
    return record


def simulated(*anchors: str) -> dict[str, Any]:
    options = [word for path in anchors for word in ("--anchor", path)]
    done = moecast("simulate", *ASKED, *options, "--json", "-")
    assert done.code == 0, done.err
    record: dict[str, Any] = json.loads(done.out)
    return record


def width(estimate: dict[str, float]) -> float:
    return math.log(estimate["high"] / estimate["low"])


def test_a_slow_run_of_the_same_moves_the_prediction_most_of_the_way(plain: dict[str, Any], tmp_path: Path) -> None:
    rate = plain["tokens_per_s_per_gpu"]["value"]
    got = simulated(written(tmp_path, run(rate / 1.2)))
    found = got["anchored"]
    (anchor,) = found["anchors"]
    assert anchor["ratio"] == pytest.approx(1.2, rel=1e-6) and 0.9 < anchor["weight"] < 1.0
    assert found["factor"] == pytest.approx(1.2 ** anchor["weight"])
    assert got["step_s"]["value"] == pytest.approx(plain["step_s"]["value"] * found["factor"])
    assert width(got["step_s"]) == pytest.approx(width(plain["step_s"]) * found["share"])
    assert 0.0 < found["share"] < 0.5
    assert found["after"][0] == pytest.approx(got["step_s"]["low"] / plain["step_s"]["value"])
    assert sum(got["breakdown"].values()) == pytest.approx(got["step_s"]["value"])
    assert got["tokens_per_s_per_gpu"]["value"] * got["step_s"]["value"] == pytest.approx(
        rate * plain["step_s"]["value"]
    )
    assert got["bound_s"] <= got["step_s"]["value"] * (1 + 1e-9)
    assert got["peak_mem_bytes"] == plain["peak_mem_bytes"]


def test_an_anchor_equal_to_the_prediction_only_narrows(plain: dict[str, Any], tmp_path: Path) -> None:
    got = simulated(written(tmp_path, run(repr(plain["tokens_per_s_per_gpu"]["value"]))))
    assert got["step_s"]["value"] == pytest.approx(plain["step_s"]["value"], rel=1e-9)
    assert width(got["step_s"]) < width(plain["step_s"])


def test_more_runs_narrow_and_others_say_nothing(plain: dict[str, Any], tmp_path: Path) -> None:
    rate = plain["tokens_per_s_per_gpu"]["value"]
    other = written(tmp_path, run(3000, "b", gpu="A100", gpus=64), name="other.csv")
    elsewhere = simulated(other)
    assert elsewhere["step_s"] == pytest.approx(plain["step_s"])  # another device: nothing is carried over
    assert elsewhere["anchored"]["anchors"][0]["weight"] == 0.0
    one, two = written(tmp_path, run(rate, "a")), written(tmp_path, run(rate, "c", gpus=64), name="two.csv")
    widths = [width(simulated(*files)["step_s"]) for files in ((), (two,), (two, one), (two, one, other))]
    assert widths == sorted(widths, reverse=True) and widths[-1] == pytest.approx(widths[-2])


def test_text_says_what_the_anchors_did(tmp_path: Path) -> None:
    path = written(tmp_path, run(9000), run("", "empty"), run(9000, "strange", model="Nobody-1B"))
    done = moecast("simulate", *ASKED, "--anchor", path)
    for words in ("Anchored to own runs", "step time moved by", "interval narrowed from", "a (mine.csv)"):
        assert words in done.out
    assert "row empty is no anchor: nothing measured" in done.out
    assert "row strange is no anchor: unsupported" in done.out
    assert done.out == moecast("simulate", *ASKED, "--anchor", path).out


def test_plan_keeps_its_order_and_certificate(tmp_path: Path) -> None:
    asked = (*SMALL, *SOFTWARE, "--pp", "1", "--cp", "1", "--tp", "1", "--micro-batch", "1", "--etp", "1")
    path = written(tmp_path, run(7000))
    out = tmp_path / "plan.json"
    plain = json.loads(moecast("plan", *asked, "--json", "-").out)
    done = moecast("plan", *asked, "--anchor", path, "--json", "-", "--out", str(out))
    assert done.code == 0, done.err
    got = json.loads(done.out)
    factor = got["plans"][0]["anchored"]["factor"]
    assert factor != 1.0
    assert [p["plan"] for p in got["plans"]] == [p["plan"] for p in plain["plans"]]
    for mine, theirs in zip(got["plans"], plain["plans"], strict=True):
        assert mine["step_s"]["value"] == pytest.approx(theirs["step_s"]["value"] * factor)
        assert mine["bound_s"] == pytest.approx(theirs["bound_s"] * factor)
        assert mine["bound_s"] <= mine["step_s"]["value"] * (1 + 1e-9)
    for key in ("certificate", "gap", "simulated", "rejected"):
        assert got["search"][key] == plain["search"][key]
    assert got["search"]["bound_s"] == pytest.approx(plain["search"]["bound_s"] * factor)
    assert got["inputs"]["digest"] != plain["inputs"]["digest"]
    best = got["plans"][0]["plan"]
    words = ("--ep", str(best["ep"]), "--recompute", ",".join(best["recompute"]) or "none")
    same = json.loads(moecast("simulate", *asked, *words, "--anchor", path, "--json", "-").out)
    assert same["step_s"] == pytest.approx(got["plans"][0]["step_s"])
    assert moecast("explain", str(out)).code == 0


def test_validate_predicts_a_row_without_itself(tmp_path: Path) -> None:
    rows = {"a": 32, "b": 64}
    bare = written(tmp_path, *(run("", name, gpus=gpus) for name, gpus in rows.items()))
    predicted = {r["id"]: r["predicted"] for r in json.loads(moecast("validate", bare, "--json", "-").out)["rows"]}
    slow = [run(predicted[name] / 1.3, name, gpus=gpus) for name, gpus in rows.items()]
    path = written(tmp_path, *slow, run("", "empty"))
    before = json.loads(moecast("validate", path, "--json", "-").out)["rows"]
    data = json.loads(moecast("validate", path, "--anchor", path, "--json", "-").out)
    after = data["rows"]
    assert [r["anchored"]["anchors"] for r in after] == [["b"], ["a"], ["a", "b"]]
    assert all(abs(a["error"]) < abs(b["error"]) for a, b in zip(after[:2], before[:2], strict=True))
    assert [r["id"] for r in data["anchors"]["unusable"]] == ["empty"]
    assert before[0]["group"]["distance"] == "same" and before[0]["anchored"] is None
    assert "by_distance" in json.loads(moecast("validate", path, "--json", "-").out)["summary"]
    assert "Anchored to own runs" in moecast("validate", path, "--anchor", path).out


def test_bad_files_are_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "strange.csv").write_text("who,what\nnobody,1\n", encoding="utf-8")
    done = moecast(
        "simulate", *ASKED, "--anchor", str(tmp_path / "strange.csv"), "--anchor", str(tmp_path / "missing.csv")
    )
    assert done.code == 2
    assert "unknown columns" in done.err and "missing.csv" in done.err and "--anchor" in done.err
    useless = written(tmp_path, run("", "empty"), run(9e6, "huge"), run(5000, "bad", gpu="Nothing9000"))
    done = moecast("plan", *ASKED, "--anchor", useless)
    assert done.code == 2
    assert "no row can serve" in done.err and "row empty: nothing measured" in done.err
    assert "row huge: measured step time is" in done.err and "row bad: unsupported" in done.err
