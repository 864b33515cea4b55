"""Offload as an option of a stage: proved as recompute is, held and timed as simulated, chosen only where it gains."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from planner.stage_plan import programme
from planner.stage_plan.answer import best_stages
from planner.stage_plan.priced import intervals, under
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Intervals, Setting
from planner.stage_plan.settings import offloads, settings_of
from sim import run
from sim.plan import Plan
from sim.scenario import Scenario
from sim.workload import Offload
from tests.planner.test_stage_plan import MIXTRAL as PLAN
from tests.planner.test_stage_plan import agrees, alone_fit, brute, made, scenario

MIXTRAL = replace(PLAN, pp=2, dp=16, edp=8, micro_batch_seqs=4)
FOUR = replace(PLAN, micro_batch_seqs=4)
VIRTUAL = replace(MIXTRAL, vpp=2, schedule="interleaved")
EVERY = ("core_attn", "moe_act")
TIGHT, WIDE = 19.0, 80.0  # GiB of a device


def with_host(columns: Intervals, capacity: float) -> Intervals:
    """The second option keeps most of what it saves on the host, which has so much room; each is the faster one in the
    steady state on some of the stages."""
    away = columns.option == 1
    share = np.random.default_rng(len(columns)).uniform(0.4, 1.0, len(columns))
    return replace(
        columns, steady_s=columns.fill_s * share, options=(Setting(offload=()), Setting(offload=("moe_act",))),
        host_saved_bytes=np.where(away, columns.static_bytes - columns.saved_bytes, 0.0),
        host_capacity_bytes=np.full(columns.pp, capacity),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), pp=st.integers(2, 3), layers=st.integers(3, 6), per_stage=st.booleans(),
    capacity=st.floats(6.0, 25.0), host=st.floats(0.5, 12.0), many=st.sampled_from((0, programme.MANY)),
)  # fmt: skip
def test_brute_force_agrees_under_memory_of_device_and_host(
    seed: int, pp: int, layers: int, per_stage: bool, capacity: float, host: float, many: int
) -> None:
    columns = with_host(made(seed, pp, 1, layers, 2, capacity), host)
    best = brute(columns, per_stage=per_stage)
    held = np.array([columns.moments[s][0].held[0] for s in columns.slot])
    fits = columns.take(np.flatnonzero(held * columns.host_saved_bytes <= host))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programme, "MANY", many)
        found = solve_stages(alone_fit(fits), per_stage=per_stage)
    agrees(found, best)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), pp=st.integers(2, 3), layers=st.integers(3, 5), options=st.integers(2, 4))
def test_columns_are_left_out_only_where_another_setting_is_no_slower(
    seed: int, pp: int, layers: int, options: int
) -> None:
    columns = with_host(made(seed, pp, 1, layers, options), np.inf)
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(columns)) < 0.8)
    kept = set(programme.unbeaten(columns, rows).tolist())
    where = [(int(columns.slot[i]), int(columns.first[i]), int(columns.stop[i])) for i in range(len(columns))]
    price = [(float(columns.fill_s[i]), float(columns.steady_s[i])) for i in range(len(columns))]
    assert len(kept) > 0
    for i in rows.tolist():
        rivals = [j for j in rows.tolist() if j != i and where[j] == where[i]]
        # of equal ones the first setting stays
        beaten = any(
            price[j][0] <= price[i][0] and price[j][1] <= price[i][1]
            and (price[j] != price[i] or columns.option[j] < columns.option[i])
            for j in rivals
        )  # fmt: skip
        assert (i not in kept) == beaten


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), capacity=st.floats(18.0, 40.0), host=st.floats(4.0, 10.0))
def test_chunks_of_a_stage_share_its_host(seed: int, capacity: float, host: float) -> None:
    columns = with_host(made(seed, 2, 2, 5, 2, capacity), host)
    best = brute(columns, per_stage=False)
    found = solve_stages(columns)
    if best == np.inf:
        assert found.choice is None
        return
    assert found.choice is not None and found.choice.objective_s == pytest.approx(best, rel=1e-7)
    assert found.programme_s == pytest.approx(best, rel=1e-7)


def short(memory_gib: float, link: float = 1.0, plan: Plan = MIXTRAL) -> Scenario:
    """Eight layers of Mixtral on devices of so much memory, with a link to the host so many times as fast."""
    asked = scenario("mixtral-8x7b", "dgx-h100", 64, 256, plan)
    cluster = asked.cluster
    host = replace(cluster.host_link, bytes_per_s=cluster.host_link.bytes_per_s * link)
    less = asked.software.reserved_bytes + (WIDE - memory_gib) * 2.0**30
    model = replace(asked.model, layers=asked.model.layers[:8])
    software = replace(asked.software, reserved_bytes=less)
    return replace(asked, model=model, software=software, cluster=replace(cluster, host_link=host))


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize(("plan", "memory", "link"), [(FOUR, 15.0, 1.0), (MIXTRAL, TIGHT, 1.0), (MIXTRAL, TIGHT, 0.1)])
def test_priced_columns_agree_with_brute_force(plan: Plan, memory: float, link: float, per_stage: bool) -> None:
    options = [
        Setting(offload=()), Setting(recompute=("full",), offload=()),
        Setting(recompute=("moe_act", "layernorm"), offload=("core_attn",)), Setting(offload=EVERY),
    ]  # fmt: skip
    columns = intervals(short(memory, link, plan), options)
    assert columns.on_host
    found = solve_stages(columns, per_stage=per_stage)
    best, stages = np.inf, range(plan.pp)
    for cut in itertools.combinations_with_replacement(range(9), plan.pp - 1):
        edges = (0, *cut, 8)
        same = [(o,) * plan.pp for o in range(4)]
        for chosen in itertools.product(range(4), repeat=plan.pp) if per_stage else same:
            path = np.array([columns.place.get((s, edges[s], edges[s + 1], chosen[s]), -1) for s in stages])
            if path.min() >= 0 and columns.fits(path):
                best = min(best, columns.objective_s(path))
    assert found.choice is not None
    assert found.choice.objective_s == pytest.approx(best, rel=1e-9)
    assert found.dynamic_s == pytest.approx(best, rel=1e-9)
    assert found.bound_s == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("plan", [MIXTRAL, VIRTUAL])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("link", [0.1, 1.0])
def test_seconds_and_bytes_are_those_of_the_simulator(plan: Plan, overlap: bool, link: float) -> None:
    asked = short(WIDE, link, plan)
    asked = replace(asked, software=replace(asked.software, a2a_overlap=overlap, delay_wgrad=overlap))
    for setting in (Setting(offload=EVERY), Setting(recompute=("layernorm",), offload=("core_attn",))):
        columns = intervals(asked, [setting])
        found = solve_stages(columns)
        assert found.choice is not None and found.choice.offloads
        simulation = run.Simulation(under(asked, setting, stages=found.choice.counts, account_ends=False))
        report = simulation.report(trace=False)
        peaks = [sum(tags.values()) for tags in report.memory]
        assert found.choice.stage_bytes == pytest.approx(peaks, rel=1e-9)
        stops = np.cumsum(found.choice.counts).tolist()
        keys = zip(range(columns.slots), [0, *stops[:-1]], stops, strict=True)
        path = np.array([columns.place[(*key, 0)] for key in keys])
        host = columns.host_bytes(path).max() * asked.cluster.devices_per_node
        assert host == pytest.approx(report.host_mem_bytes, rel=1e-9) and host > 0.0
        steps = [[c.forward_s + c.backward_s if c.paired_s is None else c.paired_s for c in row]
                 for row in simulation.profile().chunks]  # fmt: skip
        bottleneck = sum(max(chunk) for chunk in zip(*steps, strict=True))
        assert found.choice.bottleneck_s == pytest.approx(bottleneck, rel=1e-9)
        if plan.vpp == 1:
            assert found.choice.objective_s <= report.step_s.value * (1 + 1e-9)


def test_a_slow_link_stretches_a_stage_that_offloads_and_no_other() -> None:
    kept, sent = Setting(offload=()), Setting(offload=EVERY)
    fast, slow = (intervals(short(WIDE, link), [kept, sent]) for link in (100.0, 1e-3))
    for columns, longer in ((fast, False), (slow, True)):
        for slot in range(2):
            a, b = (columns.place[slot, 4 * slot, 4 * slot + 4, option] for option in range(2))
            assert columns.saved_bytes[b] < columns.saved_bytes[a]
            assert (columns.fill_s[b] > columns.fill_s[a] * (1 + 1e-9)) == longer


def test_offload_wins_over_recompute_where_memory_is_tight() -> None:
    asked = short(TIGHT)
    answer = best_stages(asked, target="megatron-lm", tried=settings_of(asked, ["offload"]))
    assert answer.together.choice is not None and answer.together.choice.offloads
    assert answer.kept is not None and answer.kept.choice is not None and answer.kept_step is not None
    assert answer.kept.choice.recompute[0] and not answer.kept.choice.offloads
    assert answer.together.choice.objective_s < answer.kept.choice.objective_s
    assert answer.after.fits and answer.after.step_s.value < answer.kept_step.report.step_s.value
    assert answer.together.choice.objective_s <= answer.after.step_s.value
    plain = best_stages(asked, target="megatron-lm")
    assert plain.together.choice is not None
    assert plain.together.choice.objective_s == pytest.approx(answer.kept.choice.objective_s, rel=1e-12)
    data = answer.to_json()
    assert data["after"]["offload"] == list(answer.chosen.setting.offload or ()) != []
    assert data["together"]["choice"]["offload"] == [data["after"]["offload"]] * 2
    assert data["without_offload"]["choice"]["offload"] == [[]] * 2


@pytest.mark.parametrize(("memory", "link"), [(WIDE, 1.0), (TIGHT, 1e-3)])
def test_nothing_is_offloaded_where_that_gains_nothing(memory: float, link: float) -> None:
    """There is room for all, or copies take longer than recompute."""
    asked = short(memory, link)
    answer = best_stages(asked, target="megatron-lm", tried=settings_of(asked, ["offload"]))
    plain = best_stages(asked, target="megatron-lm")
    assert answer.together.choice is not None and plain.together.choice is not None
    assert not answer.together.choice.offloads and answer.kept is None and answer.kept_step is None
    assert answer.together.choice.objective_s == plain.together.choice.objective_s
    assert answer.together.choice.recompute == plain.together.choice.recompute
    assert answer.after.step_s == plain.after.step_s


def test_a_small_host_refuses_what_the_simulator_refuses() -> None:
    asked = short(TIGHT)
    host = replace(asked, cluster=replace(asked.cluster, host_mem_bytes=2.0**28))
    options = settings_of(asked, ["offload"])
    sent = next(each for each in options if each.offload)
    assert run.simulate(under(asked, sent), trace=False).host_mem_bytes > 2.0**28
    columns = intervals(host, options)
    assert (columns.host_saved_bytes <= columns.host_capacity_bytes[0]).all()
    found = solve_stages(columns)
    assert found.choice is not None and not found.choice.offloads
    assert found.programme_s == pytest.approx(found.choice.objective_s, rel=1e-7)


def test_settings_offload_only_what_is_kept() -> None:
    asked = short(WIDE)
    assert offloads() == (("moe_act",), ("core_attn",), EVERY)
    found = settings_of(asked, ["offload"])
    assert len(set(found)) == len(found)
    assert [each.recompute for each in found if not each.offload] == [each.recompute for each in settings_of(asked)]
    assert all(each.offload is None for each in settings_of(asked))
    for each in found:
        assert not set(each.offload or ()) & set(each.recompute)
        assert not (each.offload and "full" in each.recompute)
    assert len(settings_of(asked, ["recompute"])) > len(settings_of(asked))
    assert [each.offload for each in settings_of(asked, ["offload"], recompute=("moe_act",))] == [(), ("core_attn",)]


def test_settings_that_contradict_the_question_are_refused_at_once() -> None:
    asked = short(WIDE)
    fixed = replace(asked, workload=replace(asked.workload, offload=Offload(modules=("moe_act",))))
    with pytest.raises(UserError) as error:
        settings_of(fixed, ["offload", "recompute", "links"], recompute=())
    assert len(error.value.problems) == 3


def test_the_optimizer_stays_where_it_was_asked_for() -> None:
    asked = short(WIDE)
    away = replace(asked, workload=replace(asked.workload, offload=Offload(optimizer=1.0, overlap=True)))
    chosen = under(away, Setting(offload=EVERY)).workload.offload
    assert chosen == Offload(optimizer=1.0, overlap=True, modules=EVERY)
    assert under(away, Setting()).workload.offload == away.workload.offload
    kept, gone = (intervals(each, [Setting()]) for each in (asked, away))
    assert not kept.on_host and gone.host_static_bytes.min() > 0.0
    assert gone.static_bytes.sum() < kept.static_bytes.sum()


def test_a_target_without_module_offload_leaves_recompute() -> None:
    asked = short(WIDE)
    plan = replace(asked.plan, tp=1, dp=32, ep=4, edp=8, zero_stage=3)
    answer = best_stages(replace(asked, plan=plan), target="torchtitan", tried=settings_of(asked, ["offload"]))
    assert {each.offload for each in answer.options} == {()}


def test_sixty_one_layers_on_sixteen_stages_with_offload_are_proved_in_eight_seconds() -> None:
    asked = scenario("deepseek-v3", "h800", 2048, 15360, Plan(pp=16, ep=64, dp=128, edp=2, micro_batch_seqs=2))
    began = time.process_time()
    columns = intervals(asked, settings_of(asked, ["offload"]))
    assert columns.num_layers == 61 and len(columns.options) >= 15
    for per_stage in (False, True):
        found = solve_stages(columns, per_stage=per_stage)
        assert found.status == "optimal" and found.choice is not None and found.choice.offloads
        assert found.programme_s == pytest.approx(found.dynamic_s, rel=1e-7)
        assert found.gap is not None and found.gap <= 1e-7
    assert time.process_time() - began <= 8.0
