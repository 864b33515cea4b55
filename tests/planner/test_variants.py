"""What is searched besides degrees: every value of every dimension, written so that it is read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles import catalogue
from hwprofiles.errors import NoPlanError, UserError
from planner import find_plans
from planner.export.handover import handover_from
from planner.planfile import load_plan
from planner.reask import asked_again
from planner.schema import check_plan
from planner.variants import DISPATCHERS, SHARES, axes_of
from sim.families import load_model
from sim.run import simulate
from sim.workload import Offload, Workload
from tests.planner_cli.running import moecast

SMALL = (
    "--model", "Mixtral-8x7B", "--cluster", "dgx-h100", "--gpus", "16", "--global-batch", "32", "--tp", "2",
    "--ep", "8", "--pp", "1", "--cp", "1", "--etp", "1", "--micro-batch", "1", "--software", "megatron-lm",
)  # fmt: skip


def axes(*dimensions: str, model: str = "Mixtral-8x7B", fixed: dict[str, Any] | None = None, **work: Any) -> Any:
    """The axes of a small question."""
    return axes_of(
        dimensions, load_model(model), catalogue.cluster("dgx-h100", gpus=16), catalogue.software("megatron-lm"),
        Workload(seq_tokens=4096, global_batch_seqs=32, **work), fixed or {},
    )  # fmt: skip


def test_every_value_stands_once_the_own_first() -> None:
    found = axes("dispatcher", "offload", "recompute", "precision", "cp")
    said = [dict(ground.said) for ground in found.grounds]
    assert said[0] == {"precision": "bf16", "dispatcher": "alltoall"}
    assert len({ground.said for ground in found.grounds}) == len(found.grounds)
    assert {each["dispatcher"] for each in said} == set(DISPATCHERS)
    assert {each["precision"] for each in said} == {"bf16", "fp16", "fp8", "fp8_block"}, "what the device has units for"
    assert {each.get("cp") for each in said} == {None, "2", "4", "8", "16"}, "1 is in the table"
    assert found.shares[0] == found.away[0] == Offload()
    assert [each.optimizer for each in found.shares[1:]] == list(SHARES)
    assert len(set(found.away)) == len(found.away) and Offload(modules=("core_attn", "moe_act")) in found.away
    modules = found.recomputes
    assert len(set(modules)) == len(modules) and ("layernorm",) in modules and ("full",) in modules
    assert not any("mla_up_proj" in each for each in modules), "the model has no such module"
    dense = axes("offload", model="Llama2-13B")
    assert not any("moe_act" in each.modules for each in dense.away)


def test_what_contradicts_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        axes("dispatcher", "offload", "recompute", "cp", "fun", model="Llama2-13B", fixed={"recompute": (), "cp": 2},
             offload=Offload(optimizer=1.0))  # fmt: skip
    said = "\n".join(caught.value.problems)
    for piece in ("'fun'", "--recompute", "--offload", "--cp", "no experts"):
        assert piece in said, piece


def test_nothing_that_fits_is_an_error_that_counts_everything() -> None:
    with pytest.raises(NoPlanError) as caught:
        find_plans(
            load_model("DeepSeek-V3"), catalogue.cluster("dgx-h100", gpus=8), catalogue.software("megatron-lm"),
            Workload(seq_tokens=4096, global_batch_seqs=8), fixed={"tp": 8, "pp": 1, "micro_batch_seqs": 1},
            axes=axes_of(("offload",), load_model("DeepSeek-V3"), catalogue.cluster("dgx-h100", gpus=8),
                         catalogue.software("megatron-lm"), Workload(seq_tokens=4096, global_batch_seqs=8), {}),
        )  # fmt: skip
    assert caught.value.search["raw"] == sum(caught.value.search["rejected"].values()) > 0


def test_every_plan_of_a_file_is_read_back_with_what_it_runs_with(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = moecast("plan", *SMALL, "--search", "dispatcher,precision,offload", "--top", "3", "--out", str(out))
    assert done.code == 0, done.err
    for piece in ("Runs with", "Searched besides", "first plan proven best"):
        assert piece in done.out, piece
    data = load_plan(out)
    check_plan(data)
    lines = {line["label"]: line for line in data["variants"]}
    assert {f"dispatcher {name}" for name in DISPATCHERS} <= set(lines)
    best_s = data["plans"][0]["step_s"]["value"]
    assert min(line["step_s"] for line in lines.values() if line["step_s"]) == best_s
    for record in data["plans"]:
        given, stale = handover_from(data, rank=record["rank"])
        assert stale == ""
        assert record["chosen"]["software"]["dispatcher"] == given.software.dispatcher
        assert record["chosen"]["workload"]["precision"] == given.workload.precision
        asked = asked_again(data, rank=record["rank"])
        assert asked.stale == ""
        again = simulate(asked.scenario(), trace=False)
        assert again.step_s.value == pytest.approx(record["step_s"]["value"], rel=1e-9)
    explained = moecast("explain", str(out))
    assert explained.code == 0, explained.err
    assert data["plans"][0]["chosen"]["label"] in explained.out.replace("\n", " ")
    other = json.loads(json.dumps(data))
    other["plans"][0]["chosen"]["software"] = {"no_such_field": 1}
    with pytest.raises(UserError, match="no_such_field"):
        handover_from(other)


@pytest.mark.parametrize(
    ("part", "stated", "said"),
    [
        ("software", {"dispatcher": "nope"}, "dispatcher = 'nope'"),
        ("software", {"cuda_graph": ["nope"]}, "unknown module 'nope'"),
        ("software", {"name": "other"}, "'name' is not a switch"),
        ("workload", {"offload": {"modules": ["nope"]}}, "unknown module 'nope'"),
        ("workload", {"offload": {"optimizer": 2.0}}, "share from 0 to 1"),
        ("workload", {"offload": {"shelves": 2}}, "shelves"),
        ("workload", {"precision": "fp3"}, "precision = 'fp3'"),
        ("workload", {"seq_tokens": 1}, "unknown in workload: 'seq_tokens'"),
    ],
)
def test_what_a_plan_file_says_a_plan_runs_with_is_checked(
    part: str, stated: dict[str, Any], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    assert moecast("plan", *SMALL, "--top", "1", "--out", str(out)).code == 0
    data = json.loads(out.read_text())
    data["plans"][0]["chosen"] = {"label": "", "software": {}, "workload": {}} | {part: stated}
    out.write_text(json.dumps(data))
    done = moecast("export", str(out), "--to", "megatron-lm", "--out", str(tmp_path / "megatron"))
    assert done.code == 2 and said in done.err, done.err
    assert f"chosen.{part} of plan 1" in done.err and "write the file again" in done.err
    # what the file itself holds is explained all the same, with what cannot be read again
    told = moecast("explain", str(out))
    assert told.code == 0 and said in " ".join(told.out.split()), told.err


def test_offload_that_a_workload_states_is_checked(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert moecast("plan", *SMALL, "--top", "1", "--out", str(out)).code == 0
    data = load_plan(out)
    data["inputs"]["workload"]["offload"] = {"modules": ["nope"]}
    with pytest.raises(UserError, match=r"inputs\.workload: offload\.modules: unknown module 'nope'"):
        handover_from(data)


def test_files_of_former_searches_are_read_as_before(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = moecast("plan", *SMALL, "--top", "1", "--out", str(out))
    assert done.code == 0, done.err
    data = load_plan(out)
    asked, stale = handover_from(data)
    assert stale == "" and "chosen" not in data["plans"][0]
    data["inputs"]["options"]["profile"] = {"dispatcher": "allgather"}
    again, warned = handover_from(data)
    assert again.software == replace(asked.software, dispatcher="allgather") and warned


def test_switches_are_searched_with_the_rest() -> None:
    asked = ("plan", *SMALL, "--search", "dispatcher", "--top", "1", "--json", "-")
    plain, joined, applied = (moecast(*asked, "--switches", mode) for mode in ("off", "search", "apply"))
    assert plain.code == joined.code == applied.code == 0, joined.err + applied.err
    first, best, one = (json.loads(done.out) for done in (plain, joined, applied))
    assert best["switches"]["applied"] and best["search"]["certificate"] == "best exact"
    steps = [data["plans"][0]["step_s"]["value"] for data in (first, one, best)]
    assert steps[0] > steps[1] >= steps[2]
