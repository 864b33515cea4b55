"""The candidate table: ranges, pins, and the columns it is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from planner.space import MAX_ROWS, divisors, left_out, recompute_choices, space, vpp_choices
from planner.variants import every_recompute
from sim.build.stages import layers_per_stage
from sim.columns import DEGREE_FIELDS, columns_of
from sim.plan import Plan
from tests.planner.toy import make_cluster, make_dense, make_model, make_software, make_workload


def test_dp_and_edp_are_the_quotients() -> None:
    for block in space(make_model(), make_cluster(), make_workload(), None, make_software()):
        assert np.all(block.dp == np.maximum(1, 16 // (block.tp * block.cp * block.pp)))
        assert np.all(block.edp == np.maximum(1, 16 // (block.etp * block.ep * block.pp)))
        assert len(block) <= MAX_ROWS


def test_virtual_stages_run_interleaved_whatever_is_pinned() -> None:
    for fixed in ({}, {"vpp": 2}, {"vpp": 1}, {"schedule": "interleaved"}, {"schedule": "1f1b"}):
        blocks = list(space(make_model(), make_cluster(), make_workload(), fixed, make_software()))
        assert blocks
        for block in blocks:
            assert np.all((block.vpp > 1) == (block.schedule == "interleaved"))
    clash = {"vpp": 2, "schedule": "1f1b"}  # kept, for the rules to refuse with a reason
    assert sum(map(len, space(make_model(), make_cluster(), make_workload(), clash, make_software())))


def test_no_candidate_appears_twice() -> None:
    plans = [
        block.plan(i)
        for block in space(make_model(), make_cluster(), make_workload(), None, make_software())
        for i in range(len(block))
    ]
    assert len(plans) == len(set(plans)) > 1000


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "dualpipe", "zb-h1", "zb-v", "dualpipe-v"])
@pytest.mark.parametrize("mtp", [0, 1])
def test_no_layout_is_written_in_two_ways(schedule: str, mtp: int) -> None:
    """Even stages and lighter ends give the same layers for some counts: then one of the two stands."""
    layer = make_model().layers[0]
    model = replace(make_model(), layers=(layer,) * 13, mtp_layers=mtp)
    cluster = make_cluster()
    laid = []
    for block in space(model, cluster, make_workload(), {"schedule": schedule, "tp": 1, "ep": 1}, make_software()):
        for plan in (block.plan(i) for i in range(len(block))):
            counts = layers_per_stage(13, plan.pp * plan.vpp, account_ends=plan.account_ends, mtp=bool(mtp))
            laid.append((replace(plan, account_ends=False), counts))
    assert len(laid) == len(set(laid)) > 8


@pytest.mark.parametrize("ends", [False, True])
def test_a_pinned_way_to_count_the_ends_is_kept(ends: bool) -> None:
    model = replace(make_model(), layers=(make_model().layers[0],) * 13)
    fixed = {"account_ends": ends, "pp": 4, "tp": 1, "ep": 1, "vpp": 1}
    assert sum(map(len, space(model, make_cluster(), make_workload(), fixed, make_software()))) > 0


def test_pins_hold_and_illegal_pins_are_kept_for_the_rules() -> None:
    fixed = {"tp": 3, "pp": 5, "dp": 7, "recompute": ["mlp"], "zero_stage": 0, "account_ends": True, "ep": None}
    blocks = list(space(make_model(), make_cluster(), make_workload(), fixed, make_software()))
    assert sum(map(len, blocks)) > 0
    for block in blocks:
        assert set(block.tp) == {3} and set(block.pp) == {5} and set(block.dp) == {7}
        assert block.recompute == ("mlp",) and block.zero_stage == 0 and block.account_ends


def test_long_sequences_open_context_parallelism() -> None:
    def largest(seq: int) -> int:
        workload = make_workload(seq_tokens=seq)
        return max(int(b.cp.max()) for b in space(make_model(), make_cluster(), workload, None, make_software()))

    assert (largest(4096), largest(8192), largest(16384)) == (1, 2, 16)


def test_dense_models_have_no_expert_degrees() -> None:
    for block in space(make_dense(), make_cluster(), make_workload(), None, make_software()):
        assert set(block.ep) == set(block.etp) == {1}


def test_fsdp_trainers_default_to_sharded_parameters() -> None:
    titan = make_software()
    stages = {b.zero_stage for b in space(make_model(), make_cluster(), make_workload(), None, titan)}
    assert stages == {1}
    titan = replace(titan, trainer="torchtitan")
    stages = {b.zero_stage for b in space(make_model(), make_cluster(), make_workload(), None, titan)}
    assert stages == {3}


def test_core_attention_is_recomputed_only_where_it_is_not_fused() -> None:
    assert ("core_attn",) not in recompute_choices(make_model(), make_software())
    assert ("core_attn",) in recompute_choices(make_model(), make_software(flash_attention=False))


def test_a_release_recomputes_what_it_can_name() -> None:
    """Before --recompute-modules: nothing, the whole MoE layer, whole layers; what is asked for stays."""
    old = make_software(recompute_modules=("core_attn", "moe"))
    assert recompute_choices(make_model(), old) == ((), ("moe",), ("full",))
    assert ("moe_act", "layernorm") in recompute_choices(make_model(), make_software())
    assert set(every_recompute(make_model(), old)) == {(), ("core_attn",), ("moe",), ("full",)}


@pytest.mark.parametrize("fixed", [{"tp": 0}, {"tp": 1.5}, {"tp": True}, {"tpp": 2}, {"recompute": "full"}])
def test_bad_pins_are_user_errors(fixed: dict[str, object]) -> None:
    with pytest.raises(UserError):
        list(space(make_model(), make_cluster(), make_workload(), fixed, make_software()))


def test_published_virtual_stages_are_in_the_table() -> None:
    """61 layers on PP16 with two virtual stages, 94 on PP8 with twelve: both need their ends counted."""
    assert 2 in vpp_choices(61, 16, True)
    assert vpp_choices(61, 16, False) == (1,)
    assert 12 in vpp_choices(94, 8, True)


@given(layers=st.integers(1, 130), pp=st.integers(2, 64))
def test_virtual_stages_leave_no_stage_empty(layers: int, pp: int) -> None:
    for ends in (False, True):
        assert all(pp * v <= layers + 2 * ends or v == 1 for v in vpp_choices(layers, pp, ends))


@given(st.integers(1, 5000))
def test_divisors_are_all_divisors(number: int) -> None:
    assert list(divisors(number)) == [d for d in range(1, number + 1) if number % d == 0]


degree = st.integers(1, 64)
plans = st.builds(
    Plan,
    **{name: degree for name in DEGREE_FIELDS},
    recompute=st.sampled_from([(), ("full",), ("mlp",)]),
    zero_stage=st.integers(0, 3),
    account_ends=st.booleans(),
)


@settings(max_examples=30)
@given(st.lists(plans, min_size=1, max_size=8))
def test_plans_survive_the_trip_through_columns(some: list[Plan]) -> None:
    back = [block.plan(i) for block in columns_of(some) for i in range(len(block))]
    assert sorted(back, key=repr) == sorted(some, key=repr)
    for block in columns_of(some):
        mask = block.tp > 8
        taken = block.take(mask)
        assert [taken.plan(i) for i in range(len(taken))] == [
            block.plan(int(i)) for i in np.flatnonzero(mask)
        ]  # fmt: skip


@pytest.mark.parametrize("mtp", [False, True])
def test_no_layout_stands_in_the_table_twice(mtp: bool) -> None:
    """Candidates that differ in account_ends alone lay out the layers differently."""
    model, work = replace(make_model(), mtp_layers=int(mtp)), replace(make_workload(), with_mtp=mtp)
    seen: dict[object, set[tuple[int, ...]]] = {}
    for block in space(model, make_cluster(), work, None, make_software()):
        for plan in (block.plan(i) for i in range(len(block))):
            counts = layers_per_stage(len(model.layers), plan.pp * plan.vpp, account_ends=plan.account_ends, mtp=mtp)
            layouts = seen.setdefault(replace(plan, account_ends=False), set())
            assert counts not in layouts, plan
            layouts.add(counts)
    assert max(map(len, seen.values())) == (1 if mtp else 2)  # both readings stand where they differ


def test_what_the_table_leaves_out_is_said() -> None:
    """Context parallelism that is not tried at a length of sequence, unless a degree was asked for."""
    assert "1 alone at 4,096" in left_out(4096, {}) and "up to 2 at 8,192" in left_out(8192)
    assert not left_out(4096, {"cp": 2}) and not left_out(32_768)
