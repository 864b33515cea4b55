"""Study files: which cases they stand for, what is wrong with them, and what tells one case from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.cli.sweep_case import run_plans, run_simulations
from planner.question.asked import Asked
from planner.question.case import OPTIONS, question_of
from planner.question.read import read_question
from planner.study.identity import case_digest, program_digest
from planner.study.spec import resolved, study_of
from planner.study.store import FAILED, ILLEGAL, NO_FIT, NO_PLAN, OK

BASE = {"model": "Qwen3-30B-A3B", "cluster": "dgx-h100", "gpus": 32, "global_batch": 64, "recompute": "full"}


def cases(data: dict[str, Any], folder: Path = Path()) -> list[dict[str, Any]]:
    return [dict(case) for case in study_of(data, OPTIONS, where="s.toml", folder=folder).cases]


def test_list_is_crossed_with_the_grid() -> None:
    found = cases({"base": {"model": "m"}, "grid": {"ep": [4, 8]}, "list": [{"tp": 1}, {"tp": 2, "pp": 4}]})
    assert found == [
        {"model": "m", "tp": 1, "ep": 4},
        {"model": "m", "tp": 1, "ep": 8},
        {"model": "m", "tp": 2, "pp": 4, "ep": 4},
        {"model": "m", "tp": 2, "pp": 4, "ep": 8},
    ]


def test_nested_tables_are_dotted_keys_and_equal_cases_stand_once() -> None:
    found = cases({"grid": {"cluster": {"scale_out": {"bytes_per_s": [1, 1, 2]}}}})
    assert found == [{"cluster.scale_out.bytes_per_s": 1}, {"cluster.scale_out.bytes_per_s": 2}]


def test_every_mistake_is_named_at_once() -> None:
    data = {
        "study": {"verb": "dance"}, "base": {"modle": "m", "tp": [1, 2]}, "grid": {"ep": 4, "pp": []},
        "list": [{"pp": 2}], "lists": [],
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        cases(data)
    said = "\n".join(caught.value.problems)
    for piece in ("dance", "did you mean model?", "base.tp is a list", "grid.ep", "grid.pp", "lists"):
        assert piece in said, piece


def test_a_study_of_too_many_cases_is_refused() -> None:
    many = {name: list(range(1, 60)) for name in ("tp", "pp", "ep", "cp")}
    with pytest.raises(UserError, match="at most"):
        cases({"grid": many})


def row(**case: Any) -> Any:
    (found,) = run_simulations((("d", BASE | case),))
    return found


def test_case_is_what_simulate_says() -> None:
    from planner.question.read import read_plan, scenario_of
    from sim.run import simulate

    found = row(ep=8)
    question = read_question(Asked(model=BASE["model"], cluster="dgx-h100", gpus="32", global_batch="64",
                                   recompute="full", ep="8"))  # fmt: skip
    report = simulate(scenario_of(question, read_plan(question), question.ranks[0]), trace=False)
    assert found.status == OK
    assert found.result["step_s"] == report.step_s.value
    assert found.result["record"]["plan"]["ep"] == 8


def test_whatever_goes_wrong_is_the_row_of_its_case() -> None:
    assert row(ep=8, tp=3).status == ILLEGAL and row(ep=8, tp=3).error
    assert row(model="no-such-model").status == FAILED and "no-such-model" in row(model="no-such-model").error
    assert row(**{"software.no_such": 1}).error.startswith("software: unknown key")
    assert row(**{"model.moe.no_such": 1}).status == FAILED
    assert row(ep=1, recompute="none", micro_batch=2).status == NO_FIT
    (none,) = run_plans((("d", BASE | {"gpus": 1, "model": "DeepSeek-V3"}),))
    assert none.status == NO_PLAN and none.result["rejected"]


def test_fields_of_records_reach_the_question() -> None:
    case = BASE | {
        "cluster.scale_out.bytes_per_s": "100 Gb/s", "device.mem_bytes": "60 GiB", "software.fused_experts": False,
        "model.moe.top_k": 4, "model.num_layers": 10, "model.vocab_size": 1000,
    }  # fmt: skip
    question = question_of(case)
    assert question.cluster.scale_out.bytes_per_s == 100e9 / 8
    assert catalogue.device_of(question.cluster).mem_bytes == 60 * 2**30
    assert not question.software.fused_experts
    assert len(question.model.layers) == 10 and question.model.vocab_size == 1000
    assert {layer.moe.top_k for layer in question.model.layers if layer.moe} == {4}


def test_unchanged_fields_change_nothing() -> None:
    """Setting a field to what it is leaves the answer the same: records survive the way through a file."""
    q = question_of(BASE)
    same = {"cluster.scale_out.bytes_per_s": q.cluster.scale_out.bytes_per_s, "device.num_sms": 132,
            "software.fused_experts": q.software.fused_experts, "model.num_layers": len(q.model.layers)}  # fmt: skip
    assert row(ep=8, **same).result["step_s"] == row(ep=8).result["step_s"]
    assert (
        row(ep=8, **same | {"cluster.scale_out.bytes_per_s": "50 Gb/s"}).result["step_s"] > row(ep=8).result["step_s"]
    )


def test_digest_follows_what_a_file_holds_not_where_it_lies(tmp_path: Path) -> None:
    program = program_digest()
    digests = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.toml").write_text(text)
        case = {"model": "m.toml", "tp": 1}
        digests.append(case_digest("simulate", case, resolved(case, tmp_path / name), program))
    assert digests[0] == digests[1] != digests[2]
    assert case_digest("plan", {"tp": 1}, {"tp": 1}, program) != case_digest("simulate", {"tp": 1}, {"tp": 1}, program)
