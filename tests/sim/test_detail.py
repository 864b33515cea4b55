"""The layer-level run beside the pipeline run: same prices, same memory, and where events know better."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from sim.account import link_rates
from sim.build.detail import DetailBuilder, LaneWork
from sim.build.groups import PartWork, backward_groups, forward_groups, pair_groups, seconds_of
from sim.build.order import SPLIT_SCHEDULES
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.schedule import lane_order
from sim.cost.segments import PartSegments, Segment
from sim.cost.slots import Backlog, Rules, pair_slots
from sim.cost.timing import BACKWARD, FORWARD, comm_sm_share, overlap_left, pair_s
from sim.detail import _chunks, _Parts, idle_s, simulate_layers
from sim.engine import run
from sim.plan import Plan
from sim.report import Trace
from sim.run import Simulation, simulate
from tests.sim.layer_scenarios import CASES, DEEP, scenario
from tests.sim.test_link_rates import integral

PAIRED = [name for name in CASES if "pairs" in name]


@cache
def both(name: str) -> tuple[float, tuple[dict[str, float], ...], Trace]:
    fast = simulate(CASES[name], trace=False)
    return fast.step_s.value, tuple(dict(m) for m in fast.memory), simulate_layers(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_pipeline_run(name: str) -> None:
    step_s, memory, trace = both(name)
    assert trace.makespan_s == pytest.approx(step_s, rel=0.02)
    for fast, layers in zip(memory, trace.peak_bytes, strict=True):
        # of a pair, one layer of the forward is there before one of the backward has gone
        if "dualpipe" in name and name in PAIRED:  # the pipeline run has all of the forward there before that
            assert 0.9 * sum(fast.values()) <= sum(layers.values()) <= (1 + 1e-9) * sum(fast.values())
        elif name in PAIRED:
            assert sum(fast.values()) <= sum(layers.values()) <= 1.05 * sum(fast.values())
        else:
            assert layers == pytest.approx(fast)


@pytest.mark.parametrize("name", CASES)
def test_links_carry_what_the_pipeline_run_says(name: str) -> None:
    """Traffic inside layers too, once; on the levels of the network as on the port."""
    use = simulate(CASES[name], trace=False).link_use
    trace = both(name)[2]
    assert set(use) >= {"scale_up", "scale_out"} and ("levels" not in name or {"leaf"} < set(use) - {"scale_up"})
    assert {link for _, link in trace.link_rates} == set(use)
    for link, found in use.items():
        steps = trace.link_rates[int(found["lane"]), link]
        assert integral(steps) == pytest.approx(found["bytes"], rel=1e-3 if "uneven" in name else 1e-9)
        assert min(rate for _, rate in steps) >= 0.0 and steps[-1][1] == 0.0
    assert link_rates(Simulation(CASES[name]).profile(), trace) == trace.link_rates


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].plan.schedule in SPLIT_SCHEDULES])
def test_all_that_a_split_schedule_keeps_is_given_back(name: str) -> None:
    """On every lane, and weight gradients put off do not lie twice: passes make up for what the backwards leave out."""
    sim = Simulation(CASES[name])
    m = sim.num_micro_batches
    tasks = DetailBuilder(
        sim.profile(), m, m, work=(LaneWork(profile=sim.profile(), chunks=_chunks(sim)),), rules=rules_of(sim),
        overlap=sim.scenario.software.a2a_overlap,
    ).tasks()  # fmt: skip
    for lane in range(sim.scenario.plan.pp):
        mine = [task for task in tasks if task.lane == lane]
        kept, freed = (sum(size for task in mine for _, size in getattr(task, way)) for way in ("alloc", "free"))
        assert kept > 0.0 and freed == pytest.approx(kept, rel=1e-9)
        late_s = sum(t.busy_s for t in mine if t.name.startswith("W"))
        chunks = sim.profile().chunks[lane]
        order = lane_order(sim.profile().schedule, pp=sim.profile().pp, vpp=sim.profile().vpp, stage=lane,
                           num_micro_batches=m)  # fmt: skip
        assert late_s == pytest.approx(sum(chunks[s.chunk].wgrad_s for s in order if s.kind == "W"), rel=5e-3)
        assert late_s > 0.0


@pytest.mark.parametrize(
    ("name", "layers"),
    [("Qwen3 zb-v uneven by layer", {0: {0, 47}, 3: {23, 24}}), ("Mixtral dualpipe", {0: {0, 31}, 3: {0, 31}})],
)
def test_layers_are_numbered_along_the_model(name: str, layers: dict[int, set[int]]) -> None:
    """Down the stages and back up in a V; each end of the pipeline holds both ends of the model in dualpipe."""
    for stage, wanted in layers.items():
        words = {word for s in both(name)[2].spans if s.lane == stage for word in s.name.split() if word[0] == "L"}
        assert wanted <= {int(word[1:]) for word in words}


def test_layers_with_loads_of_their_own_last_differently() -> None:
    trace = both("Qwen3 uneven by layer")[2]
    found = [
        round(s.end_s - s.start_s, 7)
        for s in trace.spans if s.lane == 0 and s.kind == "experts" and s.name.startswith("F0 ")
    ]  # fmt: skip
    assert len(found) == 12 and len(set(found)) > 6


@pytest.mark.parametrize("name", [n for n in CASES if n not in PAIRED])
def test_slots_of_a_chunk_add_up_to_its_duration(name: str) -> None:
    sim = Simulation(CASES[name])
    rules = rules_of(sim)
    for made, chunks in zip(_chunks(sim), sim.profile().chunks, strict=True):
        for work, chunk in zip(made, chunks, strict=True):
            none = [0.0] * 100
            forward, backward = forward_groups(work, none, rules), backward_groups(work[::-1], none, rules)
            # with two batches the router stands before the dispatch, with shared experts each hides one exchange
            # a layer at its own load lies beside the line through the levels of its kind by a little
            apart = {"two batches": 0.03, "shared": 0.03, "uneven": 0.005}
            rel = max((value for word, value in apart.items() if word in name), default=1e-9)
            assert seconds_of(forward) == pytest.approx(chunk.forward_s, rel=rel)
            assert seconds_of(backward) == pytest.approx(chunk.backward_s, rel=rel)


def rules_of(sim: Simulation) -> Rules:
    software = sim.scenario.software
    return Rules(
        shared_beside=software.shared_expert_overlap,
        delay_wgrad=software.delay_wgrad,
        steal=comm_sm_share(sim.cost),
        left=overlap_left(sim.cost),
    )


@pytest.mark.parametrize("name", CASES)
def test_segments_add_up_to_their_part(name: str) -> None:
    """Compute and exposed communication of each direction; all-to-alls at the length they have alone."""
    sim = Simulation(CASES[name])
    waits = sim.step.stragglers
    for part, work in zip(sim.step.half_parts if "two" in name else sim.step.layer_parts, _Parts(sim.step).layers,
                          strict=True):  # fmt: skip
        made = work.half or work.whole
        if "two" in name and work.half is None:
            continue
        for way, passes in ((FORWARD, ("forward",)), (BACKWARD, ("recompute", "backward", "wgrad"))):
            mine = [s for p in passes for place in made.passes[p].values() for s in place]
            assert sum(s.seconds for s in mine if s.is_compute) == pytest.approx(waits * float(part.compute_s(way)))
            other = float(part.exposed_s(way)) - float(part.exposed[way].get("ep", 0.0))
            assert sum(s.seconds for s in mine if not s.is_compute) == pytest.approx(waits * other, abs=1e-12)
            whole = sum(float(v) for (w, axis, _), v in part.comm.items() if w == way and axis == "ep")
            assert sum(s.seconds for p in passes for s in made.exchange[p].values()) == pytest.approx(waits * whole)


@pytest.mark.parametrize("name", PAIRED)
def test_a_pair_of_layers_takes_what_the_closed_form_says(name: str) -> None:
    sim = Simulation(CASES[name])
    part, work = sim.step.layer_parts[-1], _Parts(sim.step).layers[-1].whole
    backlog = Backlog()
    rules = rules_of(sim)
    slots = pair_slots(work, work, rules, backlog)
    device_s = sum(s.seconds for s in slots if not any(seg.name == "launch" for _, seg in s.work)) + backlog.late_s
    assert device_s == pytest.approx(sim.step.stragglers * float(pair_s(sim.cost, part)), rel=0.03)


def test_without_virtual_stages_pairs_of_neighbours_wait_for_each_other() -> None:
    """Two passes in turns need both inputs at once. That is why Megatron-LM refuses pp > 1 with vpp = 1 here; the
    pipeline run, which lets the two passes follow each other, does not see it."""
    one = scenario("DeepSeek-V3", DEEP, batch=512, a2a_overlap=True, dispatcher="deepep")
    assert simulate_layers(one).makespan_s > 1.4 * simulate(one, trace=False).step_s.value
    assert both("DeepSeek-V3 pp4 vpp2 pairs")[2].makespan_s < 1.02 * both("DeepSeek-V3 pp4 vpp2 pairs")[0]


def test_communication_has_streams_and_kinds_of_its_own() -> None:
    trace = both("Mixtral tp cp")[2]
    assert {s.stream for s in trace.spans} >= {"compute", "ep", "tp", "pp", "dp"}
    for span in trace.spans:
        if span.stream in ("ep", "tp", "cp"):
            assert span.kind == span.stream
    assert {"attention", "router", "experts", "wgrad", "ends"} <= {s.kind for s in trace.spans}


def test_recompute_comes_first_and_weight_gradients_where_the_release_puts_them() -> None:
    spans = [s for s in both("DeepSeek-V3 full recompute")[2].spans if s.lane == 1 and s.name.startswith("B5 ")]
    assert spans[0].kind == "recompute" and "wgrad" in {s.kind for s in spans}
    late = scenario("DeepSeek-V3", Plan(ep=64, dp=64), batch=128, delay_wgrad=True)
    order = [s.kind for s in simulate_layers(late).spans if s.name.startswith("B0 ") and s.stream == "compute"]
    first = next(i for i, kind in enumerate(order) if kind == "experts")
    assert order[first + 1] != "wgrad" and "wgrad" in order


def test_degrees_are_checked_as_in_the_pipeline_run() -> None:
    with pytest.raises(UserError):
        simulate_layers(replace(CASES["Mixtral pp1"], plan=Plan(tp=3)))
    with pytest.raises(UserError, match="hottest, median, nodes"):
        simulate_layers(CASES["Mixtral pp1"], lanes="coldest")


def test_a_step_of_millions_of_tasks_is_refused_with_a_remedy() -> None:
    one = CASES["Mixtral pp1"]
    huge = replace(one, workload=replace(one.workload, global_batch_seqs=8 * 8192))
    with pytest.raises(UserError, match="lower --global-batch"):
        simulate_layers(huge)


@pytest.mark.parametrize(("ahead", "back"), [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize("exchange_s", [0.1e-3, 3e-3])
def test_delayed_weight_gradients_are_all_done_by_the_end_of_a_pair(ahead: int, back: int, exchange_s: float) -> None:
    """In gaps they run on the SMs the exchange leaves, the rest after the last pair; none is lost or done twice."""
    late = Segment(name="wgrad", kind="wgrad", seconds=0.7e-3)
    layer = hand_made(exchange_s, 1e-3)
    layer = replace(layer, passes={**layer.passes, "wgrad": {"attention": [late], "experts": [late]}})
    loss = Segment(name="ends", kind="ends", seconds=1e-3)
    head = replace(
        layer, passes={key: {} for key in layer.passes} | {"forward": {"ends": [loss]}},
        exchange={key: {} for key in layer.passes}, routed=False,
    )  # fmt: skip
    parts = [PartWork(whole=layer)]
    steal = 0.1
    rules = Rules(shared_beside=False, delay_wgrad=True, steal=steal)
    zeros = [0.0] * 9
    groups = pair_groups(parts * ahead + [PartWork(whole=head)], parts * back, zeros, zeros, rules)
    done_s = 0.0
    for slot in (slot for group in groups for slot in group.slots):
        mine = [s for _, s in slot.work if s.kind == "wgrad"]
        done_s += sum(s.seconds * ((1.0 - steal) if slot.comm else 1.0) for s in mine)
    assert done_s == pytest.approx(back * 2 * late.seconds)


# ---------------------------------------------------------------- idle time


def hand_made(exchange_s: float, compute_s: float) -> PartSegments:
    """One MoE layer: attention, dispatch, experts, combine; backward twice as long."""

    def segment(name: str, seconds: float) -> Segment:
        return Segment(name=name, kind=name if name in ("attention", "experts", "unpermute") else "ep", seconds=seconds)

    def one(factor: float) -> dict[str, list[Segment]]:
        return {name: [segment(name, factor * compute_s)] for name in ("attention", "experts", "unpermute")}

    sent = {name: segment(name, exchange_s) for name in ("dispatch", "combine")}
    return PartSegments(
        passes={"forward": one(1.0), "recompute": {}, "backward": one(2.0), "wgrad": {}},
        exchange={"forward": sent, "recompute": {}, "backward": sent, "wgrad": {}},
        launch_s={FORWARD: 0.0, BACKWARD: 0.0}, host_s={FORWARD: 0.0, BACKWARD: 0.0}, saved_bytes=1.0, routed=True,
    )  # fmt: skip


def pipeline(exchanges_s: tuple[float, ...], *, vpp: int, overlap: bool) -> Trace:
    pp, m = len(exchanges_s), 8
    one = ChunkProfile(forward_s=1.0, backward_s=2.0, saved_bytes=1.0)
    profile = StepProfile(
        pp=pp, vpp=vpp, schedule="interleaved" if vpp > 1 else "1f1b", num_micro_batches=m,
        chunks=((one,) * vpp,) * pp, tails=(StageTail(),) * pp, links={"scale_out": 1.0},
        p2p=(SendProfile(latency_s=1e-5),) * pp,
    )  # fmt: skip
    chunks = tuple((((PartWork(whole=hand_made(x, 1e-3)),) * 2),) * vpp for x in exchanges_s)
    rules = Rules(shared_beside=False, delay_wgrad=False, steal=0.1)
    work = (LaneWork(profile=profile, chunks=chunks),)
    group = pp if vpp > 1 else 1
    return run(DetailBuilder(profile, m, group, work=work, rules=rules, overlap=overlap).tasks(), profile.links)


@settings(max_examples=12, deadline=None)
@given(
    vpp=st.sampled_from([1, 2]),
    times=st.tuples(*[st.floats(0.1e-3, 2e-3)] * 4),
    extra=st.floats(0, 2e-3),
)
def test_a_longer_all_to_all_never_raises_its_stages_idle_time(
    vpp: int, times: tuple[float, ...], extra: float
) -> None:
    """At a fixed plan, a longer all-to-all that may hide in the bubble must not raise a stage's idle time."""
    before = pipeline(times, vpp=vpp, overlap=False)
    after = pipeline((times[0], times[1] + extra, *times[2:]), vpp=vpp, overlap=False)
    assert after.makespan_s >= before.makespan_s * (1 - 1e-9)
    assert idle_s(after, 1) <= idle_s(before, 1) + 1e-9 * after.makespan_s


def test_an_exposed_all_to_all_of_an_idle_stage_costs_fill_and_drain_only() -> None:
    slow = (2e-3, 0.5e-3, 2e-3, 2e-3)
    before, after = (pipeline((slow[0], x, *slow[2:]), vpp=1, overlap=False) for x in (0.5e-3, 1e-3))
    # two layers of two exchanges, forward and backward, once each; 8 micro-batches would be 8 times that
    assert after.makespan_s - before.makespan_s <= 8 * 0.5e-3 * (1 + 1e-9)


def test_a_pair_hides_the_exchange_of_both() -> None:
    apart, turns = (pipeline((0.9e-3,), vpp=1, overlap=x) for x in (False, True))
    assert turns.makespan_s < apart.makespan_s
    np.testing.assert_allclose(sum(s.end_s - s.start_s for s in turns.spans if s.stream == "ep"), 8 * 8 * 0.9e-3)
