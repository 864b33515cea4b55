"""Levels of the network as links: times alone, bytes on each, and who waits for whom in a step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.collectives import collective_forms
from hwprofiles.factors import factors
from hwprofiles.forms import collectives as form
from hwprofiles.measured import tables
from hwprofiles.specs import ClusterSpec, FabricLevel
from sim.cost.comm import CommCost, CommTime
from sim.engine import Task, run
from sim.families import load_model
from sim.mesh import Group, fabric_seconds, fabric_slowdown, group
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Workload

MIB = 2.0**20
PRESETS = {"hgx-h100-2to1": 128, "dgx-h100-superpod": 512, "h100-two-sites": 4096, "h100-roce-pods": 6144}
KINDS = st.sampled_from(form.KINDS)
PLANS = (
    Plan(dp=128, ep=8, edp=16), Plan(dp=128, ep=64, edp=2), Plan(pp=4, dp=32, ep=32, edp=1),
    Plan(tp=2, pp=2, vpp=2, dp=32, ep=16, edp=4, schedule="interleaved"), Plan(dp=128, ep=16, edp=8, zero_stage=3),
)  # fmt: skip


@cache
def preset(name: str) -> ClusterSpec:
    return catalogue.cluster(name, gpus=PRESETS[name])


def comm(made: ClusterSpec) -> CommCost:
    return CommCost(made, tables("h100"), factors("h100"))


def flat(made: ClusterSpec) -> ClusterSpec:
    return replace(made, fabric=())


def step_s(made: ClusterSpec, plan: Plan, dispatcher: Any = "alltoall", **changes: Any) -> float:
    trainer = replace(
        catalogue.software("megatron-bridge-26.04"), dispatcher=dispatcher, cuda_graph=("full_iteration",),
        a2a_overlap=False, capacity_factor=None, host_sync=False, **changes,
    )  # fmt: skip
    work = Workload(seq_tokens=4096, global_batch_seqs=256)
    model = load_model("Qwen3-30B-A3B")
    scenario = Scenario(model=model, cluster=made, software=trainer, plan=plan, workload=work)
    return simulate(scenario, trace=False).step_s.value


def faster(made: ClusterSpec, level: int, factor: float) -> ClusterSpec:
    levels = list(made.fabric)
    levels[level] = replace(levels[level], bytes_per_s=levels[level].bytes_per_s * factor)
    return replace(made, fabric=tuple(levels))


# ---------------------------------------------------------------- one collective


@given(
    name=st.sampled_from(sorted(PRESETS)), kind=KINDS, nbytes=st.floats(1.0, 2.0**34),
    degrees=st.sampled_from([("dp", 1), ("dp", 8), ("ep", 1), ("ep", 2), ("pp", 64)]),
)  # fmt: skip
def test_alone_a_collective_takes_its_slowest_level(
    name: str, kind: str, nbytes: float, degrees: tuple[str, int]
) -> None:
    """The form with the port slowed to the slowest level; a level that nothing crosses takes no seconds."""
    made, (axis, inner) = preset(name), degrees
    n = made.num_devices // inner
    plan = Plan(tp=inner, dp=n, etp=inner, ep=n) if axis != "pp" else Plan(dp=inner, pp=n, ep=inner)
    costs, grp = comm(made), group(plan, axis, made)
    found = costs.collective(kind, nbytes, grp)
    pattern: Any = "spread" if kind in ("all_to_all", "p2p", "ring") else "ring"
    span = replace(
        costs._span(grp, kind), out_bytes_per_s=costs.out_rate / fabric_slowdown(made, grp, pattern)
    )  # fmt: skip
    forms = collective_forms()
    want = form.collective(kind, nbytes, span, forms.domain("h100"), forms.fabrics["infiniband"])
    if kind == "all_to_all":
        want = costs._in_step(want)
    assert float(found.alone_s) == pytest.approx(float(want.alone_s), rel=1e-12)
    assert float(found.wire_s) == pytest.approx(float(want.out_s), rel=1e-12)
    assert len(found.fabric_s) == len(made.fabric)
    for level, seconds in zip(made.fabric, found.fabric_s, strict=True):
        inside = grp.within[made.fabric.index(level)]
        assert (seconds > 0) == (grp.size > inside)


def test_bytes_are_conserved_from_link_to_link() -> None:
    """Even all-to-all of 128 ranks, leaves of 32: bytes on the port less what stays in the leaf are on its uplink."""
    made = preset("hgx-h100-2to1")
    costs, rates = comm(made), comm(made).link_rates()
    grp = group(Plan(dp=128, ep=128), "ep", made)
    assert costs.network == ("scale_out", "leaf")
    assert rates == {"scale_up": 450e9, "scale_out": 50e9, "leaf": 25e9}
    for found in (
        costs.collective("all_to_all", 128 * MIB, grp),
        costs.dispatch(128 * MIB, grp, top_k=8, hidden=4096, phase="dispatch", experts=128),
    ):
        port, leaf = float(found.out_s) * rates["scale_out"], float(found.fabric_s[0]) * rates["leaf"]
        assert leaf / port == pytest.approx((128 - 32) / (128 - 8))
    ring = costs.collective("all_gather", 128 * MIB, grp)
    # a ring leaves each domain and each leaf once: the share of one device is 1/8 and 1/32 of the buffer
    assert float(ring.fabric_s[0]) * rates["leaf"] / (float(ring.out_s) * rates["scale_out"]) == pytest.approx(8 / 32)


def test_columns_are_their_numbers_on_every_level() -> None:
    made = preset("h100-two-sites")
    costs = comm(made)
    plans = [Plan(dp=4096 // pp, pp=pp, ep=ep, edp=4096 // pp // ep) for pp in (1, 2) for ep in (1, 8, 64, 2048)]
    groups = [group(plan, "ep", made) for plan in plans]
    column = Group(
        size=np.array([g.size for g in groups]), intra=np.array([g.intra for g in groups]),
        within=tuple(np.array([g.within[i] for g in groups]) for i in range(2)),
    )  # fmt: skip
    sizes: dict[str, Any] = {"top_k": 8, "hidden": 4096, "phase": "dispatch", "experts": 2048}
    for get in (lambda g: costs.collective("all_to_all", 64 * MIB, g), lambda g: costs.dispatch(64 * MIB, g, **sizes)):
        whole = get(column)
        for i, grp in enumerate(groups):
            one = get(grp)
            for a, b in zip(whole.network_s, one.network_s, strict=True):
                assert a[i] == pytest.approx(float(b), rel=1e-12)
            assert whole.alone_s[i] == pytest.approx(float(one.alone_s), rel=1e-12)


def test_a_dispatch_pays_for_the_leaf_it_crosses_and_only_for_that() -> None:
    made = preset("hgx-h100-2to1")
    sizes: dict[str, Any] = {"top_k": 8, "hidden": 4096, "phase": "dispatch", "experts": 128}
    costs, without = comm(made), comm(flat(made))

    def time(cost: CommCost, ep: int) -> CommTime:
        return cost.dispatch(512 * MIB, group(Plan(dp=128, ep=ep, edp=128 // ep), "ep", cost.cluster), **sizes)

    assert float(time(costs, 32).alone_s) == pytest.approx(float(time(without, 32).alone_s), rel=1e-12)
    grp = group(Plan(dp=128, ep=128), "ep", made)
    (over,) = fabric_seconds(made, grp, "spread")
    crossed, before = time(costs, 128), time(without, 128)
    assert float(over) == pytest.approx(2.0 * 96 / 120)
    assert float(crossed.fabric_s[0] / crossed.out_s) == pytest.approx(float(over))
    assert crossed.alone_s > before.alone_s
    assert crossed.alone_s <= before.alone_s * float(over) + 2e-6  # and the latency of the leaf, both ways


# ---------------------------------------------------------------- links shared in a step


def tasks(made: ClusterSpec, *times: CommTime) -> list[Task]:
    """Each communication as a task of its own stream, from t = 0."""
    rates = comm(made).link_rates()
    return [
        Task(
            id=i, name=str(i), kind="comm", lane=0, stream=str(i), busy_s=float(t.wire_s),
            flows=tuple((name, float(s) * rate) for (name, rate), s in zip(rates.items(), (t.up_s, *t.network_s),
                                                                            strict=True)),
        )
        for i, t in enumerate(times)
    ]  # fmt: skip


def together_s(made: ClusterSpec, *times: CommTime) -> list[float]:
    """When each ends."""
    spans = run(tasks(made, *times), comm(made).link_rates()).spans
    return [span.end_s for span in sorted(spans, key=lambda s: s.name)]


def test_reduction_and_all_to_all_over_one_leaf_link_share_it() -> None:
    made = preset("hgx-h100-2to1")
    costs = comm(made)
    dp = costs.collective("reduce_scatter", 1024 * MIB, group(Plan(dp=128, ep=8, edp=16), "dp", made))
    ep = costs.collective("all_to_all", 64 * MIB, group(Plan(dp=128, ep=128), "ep", made))
    alone = [together_s(made, t)[0] for t in (dp, ep)]
    both = max(together_s(made, dp, ep))
    assert alone[1] == pytest.approx(float(ep.wire_s))
    assert max(alone) * 1.01 < both <= sum(alone) * (1 + 1e-9)


def test_an_all_to_all_inside_the_leaf_is_not_slowed_by_a_reduction_across_sites() -> None:
    made = preset("h100-two-sites")
    costs = comm(made)
    # a reduction over both sites, bound by the line between them: few bytes a second through the port
    slow = faster(made, 1, 0.01)
    dp = comm(slow).collective("reduce_scatter", 1024 * MIB, group(Plan(dp=4096, ep=8, edp=512), "dp", slow))
    assert dp.wire_s == dp.fabric_s[1] > 4 * dp.out_s
    ep = costs.collective("all_to_all", 16 * MIB, group(Plan(dp=4096, ep=64, edp=64), "ep", made))
    assert ep.fabric_s == (0.0, 0.0) and ep.out_s > ep.up_s
    half_busy = tasks(slow, dp, ep)[1]._replace(busy_s=2 * float(ep.out_s))  # it has the port half the time
    ends = run([tasks(slow, dp, ep)[0], half_busy], comm(slow).link_rates())
    end = {span.name: span.end_s for span in ends.spans}
    assert end["1"] == pytest.approx(2 * float(ep.out_s), rel=1e-9)
    assert end["0"] == pytest.approx(float(dp.wire_s), rel=1e-9)
    # one that crosses the line has to share it: the line carries the bytes of both, one after the other or mixed
    far = comm(slow).collective("all_to_all", 16 * MIB, group(Plan(dp=4096, ep=4096), "ep", slow))
    assert max(together_s(slow, dp, far)) == pytest.approx(float(far.wire_s + dp.wire_s), rel=1e-9)


def test_a_step_puts_its_bytes_on_the_levels_it_crosses() -> None:
    made = preset("hgx-h100-2to1")
    model, work = load_model("Qwen3-30B-A3B"), Workload(seq_tokens=4096, global_batch_seqs=256)

    def use(plan: Plan) -> dict[str, dict[str, float]]:
        trainer = catalogue.software("megatron-bridge-26.04")
        scenario = Scenario(model=model, cluster=made, software=trainer, plan=plan, workload=work)
        sim = Simulation(scenario)
        profile = sim.profile()
        assert list(profile.links) == ["scale_up", "scale_out", "leaf"]
        report = sim.report()
        sent = dict.fromkeys(profile.links, 0.0)
        for chunk in profile.chunks[0]:
            for link, size in (*chunk.forward_flows, *chunk.backward_flows):
                sent[link] += profile.num_micro_batches * size
        for link, size in (*profile.tails[0].grad_flows, *profile.tails[0].param_flows):
            sent[link] += size
        for link in ("scale_out", "leaf"):
            assert report.link_use[link]["bytes"] == pytest.approx(sent[link], rel=1e-9)
        return report.link_use

    near, far = use(Plan(dp=128, ep=32, edp=4)), use(Plan(dp=128, ep=128))
    assert far["leaf"]["bytes"] > 5 * near["leaf"]["bytes"] > 0


@settings(max_examples=40)
@given(plan=st.sampled_from(PLANS), dispatcher=st.sampled_from(["alltoall", "deepep"]))
def test_a_level_as_fast_as_the_port_changes_nothing(plan: Plan, dispatcher: str) -> None:
    made = flat(preset("hgx-h100-2to1"))
    level = FabricLevel(name="leaf", devices=32, bytes_per_s=50e9, latency_s=0.0)
    even = replace(made, fabric=(level,))
    assert step_s(even, plan, dispatcher) == pytest.approx(step_s(made, plan, dispatcher), rel=1e-9)


@settings(max_examples=60)
@given(
    plan=st.sampled_from(PLANS), dispatcher=st.sampled_from(["alltoall", "deepep"]),
    over=st.floats(1.0, 16.0), more=st.floats(1.0, 8.0),
)  # fmt: skip
def test_a_faster_leaf_never_makes_a_step_longer(plan: Plan, dispatcher: str, over: float, more: float) -> None:
    made = faster(preset("hgx-h100-2to1"), 0, 1.0 / over)
    assert step_s(faster(made, 0, more), plan, dispatcher) <= step_s(made, plan, dispatcher) * (1 + 1e-9)


@given(
    name=st.sampled_from(sorted(PRESETS)), kind=KINDS, nbytes=st.floats(1.0, 2.0**34), inner=st.sampled_from([1, 8]),
    more=st.floats(1.0, 100.0), which=st.integers(0, 1),
)  # fmt: skip
def test_more_bandwidth_on_any_level_is_never_slower(
    name: str, kind: str, nbytes: float, inner: int, more: float, which: int
) -> None:
    made = preset(name)
    better = faster(made, which % len(made.fabric), more)
    n = made.num_devices // inner
    plan = Plan(tp=inner, dp=n, etp=inner, ep=n)
    slow, fast = (comm(c).collective(kind, nbytes, group(plan, "ep", c)) for c in (made, better))
    assert fast.alone_s <= slow.alone_s * (1 + 1e-9)
    sizes: dict[str, Any] = {"top_k": 8, "hidden": 4096, "phase": "combine", "experts": n}
    slow, fast = (comm(c).dispatch(nbytes, group(plan, "ep", c), **sizes) for c in (made, better))
    assert fast.alone_s <= slow.alone_s * (1 + 1e-9)
