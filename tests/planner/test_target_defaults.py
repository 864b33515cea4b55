"""A question that names only its target finds plans: the release and ZeRO stage are those the target runs."""

from __future__ import annotations

import pytest

from hwprofiles.catalogue import names
from planner.question.asked import Asked
from planner.question.read import read_question
from planner.question.trainer import USUAL
from planner.rules import TARGETS
from planner.search import find_plans


def asked(target: str, **more: str) -> Asked:
    return Asked(model="Qwen3-30B-A3B", cluster="dgx-h100", gpus="16", global_batch="64", target=target, **more)


def test_every_usual_release_exists() -> None:
    assert set(USUAL) <= set(TARGETS)
    assert {usual.software for usual in USUAL.values()} <= set(names("software"))


@pytest.mark.parametrize("target", sorted(USUAL))
@pytest.mark.parametrize("cluster", ["dgx-h100", "dgx-b200"])
def test_a_target_alone_has_plans(target: str, cluster: str) -> None:
    question = read_question(Asked(model="Qwen3-30B-A3B", cluster=cluster, gpus="16", global_batch="64", tp="1",
                                   micro_batch="1", target=target))  # fmt: skip
    found = find_plans(
        question.model, question.cluster, question.software, question.workload, fixed=question.fixed, target=target,
        top=1, ranks=question.ranks,
    )  # fmt: skip
    assert found.plans
    assert question.software.name == USUAL[target].software
    assert any(f"{question.software.name} stands for {target}" in note for note in question.notes)
    assert any("--zero" in note for note in question.notes) is (USUAL[target].zero_stage is not None)


def test_what_is_given_stays() -> None:
    question = read_question(asked("torchtitan", software="megatron-lm", zero="2"))
    assert (question.software.name, question.fixed["zero_stage"], question.notes) == ("megatron-lm", 2, ())


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge", "layout", "sglang"])
def test_the_other_targets_keep_the_release_of_the_device(target: str) -> None:
    question = read_question(asked(target))
    assert question.notes == () and "zero_stage" not in question.fixed
    assert question.software == read_question(asked("megatron-lm")).software
