"""Stages by integer programme: equal to brute force and to the dynamic programme, memory equal to the simulator's."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.stage_plan import programme
from planner.stage_plan.answer import best_stages
from planner.stage_plan.bounds import least_bottleneck_s
from planner.stage_plan.chunked import Chunks, Rows, charged
from planner.stage_plan.dynamic import Paths, groups_of
from planner.stage_plan.priced import intervals
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Intervals, Moment, Setting, StageSolution
from planner.stage_plan.settings import settings_of
from sim import run
from sim.families import load_model
from sim.plan import Plan
from sim.scenario import Scenario
from sim.workload import Workload


def made(seed: int, pp: int, vpp: int, layers: int, options: int, capacity: float = 1e9) -> Intervals:
    """Columns of random layers: a layer has a time and bytes, an option trades one for the other."""
    rng = np.random.default_rng(seed)
    slots = pp * vpp
    spans = [
        (slot, first, stop, option)
        for slot in range(slots)
        for first in ([0] if slot == 0 else range(layers + 1))
        for stop in ([layers] if slot == slots - 1 else range(first, layers + 1))
        for option in range(options)
    ]
    slot, first, stop, option = np.array(spans, dtype=np.int64).T
    layer_s, layer_bytes = rng.uniform(1.0, 2.0, layers), rng.uniform(1.0, 2.0, layers)
    longer, smaller = 1.0 + 0.3 * np.arange(options), 1.0 / (1.0 + np.arange(options))
    ends = rng.uniform(0.0, 2.0) * (slot == 0) + rng.uniform(0.0, 4.0) * (slot == slots - 1)
    fill = np.array([layer_s[a:b].sum() for a, b in zip(first, stop, strict=True)]) * longer[option] + ends
    size = np.array([layer_bytes[a:b].sum() for a, b in zip(first, stop, strict=True)])
    m = 2 * pp
    moments: tuple[tuple[Moment, ...], ...]
    if vpp == 1:
        moments = tuple((Moment(running=0, held=(pp - stage,)),) for stage in range(pp))
    else:
        moments = tuple(
            tuple(Moment(running=c, held=(pp - stage + c, pp - c)) for c in range(vpp)) for stage in range(pp)
        )
    return Intervals(
        pp=pp, vpp=vpp, num_layers=layers, num_micro_batches=m,
        options=tuple(Setting(recompute=(f"o{i}",)) for i in range(options)), capacity_bytes=np.full(pp, capacity),
        host_capacity_bytes=np.full(pp, np.inf), moments=moments, slot=slot, first=first, stop=stop, option=option,
        fill_s=fill, steady_s=fill * rng.uniform(0.8, 1.0, len(fill)), static_bytes=size,
        saved_bytes=size * smaller[option], working_bytes=0.1 * size,
        host_static_bytes=np.zeros(len(slot)), host_saved_bytes=np.zeros(len(slot)),
        deferred_bytes=np.zeros(len(slot)), ramp_s=np.zeros(len(slot)), late_s=np.zeros(len(slot)),
        end_s=np.zeros(len(slot)),
    )  # fmt: skip


def brute(columns: Intervals, *, per_stage: bool) -> float:
    """Least objective over every cut and every choice of options."""
    best = np.inf
    options = range(len(columns.options))
    for cut in itertools.combinations_with_replacement(range(columns.num_layers + 1), columns.slots - 1):
        edges = [0, *cut, columns.num_layers]
        same = [(o,) * columns.slots for o in options]
        for chosen in itertools.product(options, repeat=columns.slots) if per_stage else same:
            keys = zip(range(columns.slots), edges[:-1], edges[1:], chosen, strict=True)
            path = np.array([columns.place[key] for key in keys])
            if columns.fits(path):
                best = min(best, columns.objective_s(path))
    return best


def agrees(found: StageSolution, best: float) -> bool:
    """Whether there is a choice; asserts that it is the one of brute force, by every way it was found."""
    if best == np.inf:
        assert found.status == "infeasible" and found.choice is None
        return False
    assert found.choice is not None and found.status == "optimal"
    assert found.choice.objective_s == pytest.approx(best, rel=1e-9)
    assert found.dynamic_s == pytest.approx(best, rel=1e-9)
    assert found.programme_s == pytest.approx(best, rel=1e-7)
    return True


def alone_fit(columns: Intervals) -> Intervals:
    """What pricing leaves: columns that fit by themselves (the dynamic programme asks no more)."""
    held = np.array([columns.moments[s % columns.pp][0].held[0] for s in columns.slot])
    need = columns.static_bytes + held * columns.saved_bytes + columns.working_bytes
    return columns.take(np.flatnonzero(need <= columns.capacity_bytes[columns.slot % columns.pp]))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), pp=st.integers(2, 4), layers=st.integers(3, 6), per_stage=st.booleans(),
    capacity=st.floats(6.0, 25.0),
)  # fmt: skip
def test_programme_dynamic_programme_and_brute_force_agree(
    seed: int, pp: int, layers: int, per_stage: bool, capacity: float
) -> None:
    columns = made(seed, pp, 1, layers, 2, capacity)
    best = brute(columns, per_stage=per_stage)
    found = solve_stages(alone_fit(columns), per_stage=per_stage)
    if not agrees(found, best):
        return
    assert found.choice is not None
    assert found.bound_s is not None and found.bound_s == pytest.approx(best, rel=1e-7)
    assert found.bound_s <= best * (1 + 1e-9)
    assert max(found.choice.stage_bytes) <= capacity


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(4, 6), capacity=st.floats(12.0, 40.0))
def test_virtual_stages_agree_with_brute_force(seed: int, layers: int, capacity: float) -> None:
    columns = made(seed, 2, 2, layers, 2, capacity)
    best = brute(columns, per_stage=False)
    found = solve_stages(columns)
    if best == np.inf:
        assert found.status == "infeasible"
        return
    assert found.choice is not None and found.dynamic_s is None
    assert found.choice.objective_s == pytest.approx(best, rel=1e-7)
    assert found.programme_s == pytest.approx(best, rel=1e-7)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(4, 6), capacity=st.floats(12.0, 40.0))
def test_what_charged_chunks_prove_needs_no_programme(seed: int, layers: int, capacity: float) -> None:
    """Without the programme the answer is never better than its own, and called optimal only where it is."""
    columns = made(seed, 2, 2, layers, 2, capacity)
    whole = solve_stages(columns)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programme, "SMALL", 0)
        quick = solve_stages(columns, most_columns=0)
    if quick.choice is None:
        assert quick.status in ("limit", "infeasible")
        return
    assert whole.choice is not None and quick.programme_s is None and quick.bound_s is not None
    assert quick.bound_s <= whole.choice.objective_s * (1 + 1e-9) <= quick.choice.objective_s * (1 + 2e-9)
    if quick.status == "optimal":
        assert quick.choice.objective_s == pytest.approx(whole.choice.objective_s, rel=1e-7)
    assert quick.gap == pytest.approx(1.0 - quick.bound_s / quick.choice.objective_s, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), pp=st.integers(2, 3), vpp=st.integers(1, 2), layers=st.integers(4, 6))
def test_counting_layers_bounds_the_slowest_stage(seed: int, pp: int, vpp: int, layers: int) -> None:
    columns = made(seed, pp, vpp, layers, 1)
    (options,) = groups_of(columns, per_stage=True)
    cuts = itertools.combinations_with_replacement(range(layers + 1), columns.slots - 1)
    edges = ([0, *cut, layers] for cut in cuts)
    paths = ([columns.place[s, e[s], e[s + 1], 0] for s in range(columns.slots)] for e in edges)
    least = min(columns.bottleneck_s(np.array(path)) for path in paths)
    assert least_bottleneck_s(columns, options) <= least * (1 + 1e-12)


def test_a_setting_per_stage_is_never_worse() -> None:
    columns = alone_fit(made(3, 3, 1, 7, 3, 14.0))
    together, apart = solve_stages(columns), solve_stages(columns, per_stage=True)
    assert together.choice is not None and apart.choice is not None
    assert apart.choice.objective_s <= together.choice.objective_s
    assert len(set(together.choice.recompute)) == 1


def scenario(name: str, cluster: str, gpus: int, batch: int, plan: Plan) -> Scenario:
    model, machines = load_model(name), catalogue.cluster(cluster, gpus=gpus)
    software = catalogue.software("megatron-lm", device=machines.device, model=model.name, arch="moe")
    workload = Workload(seq_tokens=4096, global_batch_seqs=batch)
    return Scenario(model=model, cluster=machines, software=software, workload=workload, plan=plan)


MIXTRAL = Plan(tp=2, pp=4, ep=4, dp=8, edp=4, account_ends=True)


@pytest.mark.parametrize("plan", [MIXTRAL, replace(MIXTRAL, vpp=2, schedule="interleaved")])
def test_memory_and_seconds_are_those_of_the_simulator(plan: Plan) -> None:
    asked = scenario("mixtral-8x7b", "dgx-h100", 64, 256, plan)
    columns = intervals(asked, [Setting(), Setting(recompute=("full",))])
    found = solve_stages(columns)
    assert found.choice is not None and found.status == "optimal"
    chosen = replace(plan, stages=found.choice.counts, recompute=found.choice.recompute[0], account_ends=False)
    simulation = run.Simulation(replace(asked, plan=chosen))
    peaks = [sum(tags.values()) for tags in simulation.report(trace=False).memory]
    assert found.choice.stage_bytes == pytest.approx(peaks, rel=1e-9)
    stages = [[c.forward_s + c.backward_s for c in row] for row in simulation.profile().chunks]
    assert found.choice.bottleneck_s == pytest.approx(sum(max(chunk) for chunk in zip(*stages, strict=True)), rel=1e-9)


def test_sixty_one_layers_on_sixteen_stages_are_proved_in_six_seconds() -> None:
    asked = scenario("deepseek-v3", "h800", 2048, 15360, Plan(pp=16, ep=64, dp=128, edp=2, micro_batch_seqs=2))
    columns = intervals(asked, settings_of(asked))
    assert columns.num_layers == 61 and len(columns.options) >= 6
    for per_stage in (False, True):
        began = time.process_time()
        found = solve_stages(columns, per_stage=per_stage)
        assert time.process_time() - began <= 6.0
        assert found.status == "optimal" and found.choice is not None
        assert found.programme_s == pytest.approx(found.dynamic_s, rel=1e-7)
        assert found.gap is not None and found.gap <= 1e-7
        assert columns.fits(
            np.array([columns.place[key] for key in _keys(found.choice.counts, found.choice.settings, columns)])
        )


def _keys(counts: tuple[int, ...], chosen: tuple[Setting, ...], columns: Intervals) -> list[tuple[int, int, int, int]]:
    stops = np.cumsum(counts).tolist()
    options = [columns.options.index(each) for each in chosen]
    return list(zip(range(len(counts)), [0, *stops[:-1]], stops, options, strict=True))


def test_steps_stand_beside_even_stages() -> None:
    answer = best_stages(scenario("mixtral-8x7b", "dgx-h100", 64, 256, MIXTRAL), target="megatron-lm")
    assert answer.before is not None and answer.after.fits
    assert answer.together.choice is not None and answer.after.plan.stages == answer.together.choice.counts
    assert answer.adopted is (answer.after if answer.better else answer.before)
    data = answer.to_json()
    assert data["adopted"] in ("stages", "even") and data["together"]["gap"] <= 1e-7


def test_what_cannot_be_laid_out_is_said() -> None:
    asked = scenario("mixtral-8x7b", "dgx-h100", 64, 256, replace(MIXTRAL, schedule="gpipe"))
    with pytest.raises(UserError, match="gpipe"):
        best_stages(asked, target="layout")
    tight = scenario("mixtral-8x22b", "dgx-h100", 8, 64, Plan(pp=4, dp=2, ep=1, edp=2, account_ends=True))
    with pytest.raises(UserError, match="no stages fit"):
        best_stages(tight, target="layout")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6), layers=st.integers(4, 5), capacity=st.floats(12.0, 60.0), vpp=st.integers(1, 2)
)  # fmt: skip
def test_chunks_are_exact_without_shared_memory_and_bound_it_with(
    seed: int, layers: int, capacity: float, vpp: int
) -> None:
    free = made(seed, 2, vpp, layers, 2)
    best = brute(free, per_stage=True)
    chunks = Chunks(Paths(free, (0, 1)))
    path = chunks.path()
    assert path is not None and free.objective_s(path) == pytest.approx(best, rel=1e-12)
    assert chunks.least_s == pytest.approx(best, rel=1e-12)
    assert chunks.bounds().min() == pytest.approx(best, rel=1e-12)
    tight = replace(free, capacity_bytes=np.full(free.pp, capacity))
    held = brute(tight, per_stage=True)
    bound, found = charged(Paths(tight, (0, 1)), Rows(tight), held)
    assert bound.least_s <= held * (1 + 1e-9)
    assert all(tight.fits(each) and tight.objective_s(each) >= held * (1 - 1e-12) for each in found)
    if held < np.inf:
        assert bound.bounds().min() <= held * (1 + 1e-9)
