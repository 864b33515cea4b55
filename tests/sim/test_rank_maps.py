"""Rank maps in a scenario: what cannot be laid out is refused, and the bound stays below the step under any map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprofiles.catalogue import cluster, software
from hwprofiles.errors import UserError
from hwprofiles.hostmap import HostMap, host_map, read_host_map
from sim.columns import columns_of
from sim.cost.model import CostModel
from sim.families import load_model
from sim.imbalance import step_distribution
from sim.mesh import RankMap
from sim.plan import Plan
from sim.routing import Routing
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

MODEL = replace(load_model("Qwen3-30B-A3B"), layers=load_model("Qwen3-30B-A3B").layers[:8])
MACHINES = cluster("hgx-h100-2to1", gpus=64)
TRAINER = software("megatron-bridge-26.06", device="H100")
WORK = Workload(seq_tokens=4096, global_batch_seqs=64)
DEALT = host_map([rank % 8 * 8 + rank // 8 for rank in range(64)])
SCATTERED = HostMap(devices=(*range(24), *range(64, 104)))
PLANS = [
    Plan(tp=4, pp=4, dp=4, ep=4, edp=4), Plan(tp=8, pp=2, dp=4, ep=8, edp=4), Plan(tp=2, cp=2, pp=2, dp=8, ep=4, edp=8),
]  # fmt: skip
MAPS = [RankMap(order="tp-cp-ep-pp-dp"), RankMap(hosts=DEALT), RankMap(order="tp-cp-ep-pp-dp", hosts=SCATTERED)]


def case(plan: Plan, ranks: RankMap) -> Scenario:
    return Scenario(model=MODEL, cluster=MACHINES, software=TRAINER, workload=WORK, plan=plan, ranks=ranks)


@pytest.mark.parametrize("ranks", MAPS, ids=["dp outermost", "dealt", "scattered"])
def test_the_bound_stays_below_the_step_and_memory_does_not_see_the_ranks(ranks: RankMap) -> None:
    rows = screen(MODEL, MACHINES, TRAINER, WORK, columns_of(PLANS)[0], ranks=ranks)
    plain = screen(MODEL, MACHINES, TRAINER, WORK, columns_of(PLANS)[0])
    assert np.array_equal(rows.peak_bytes, plain.peak_bytes)
    for i, plan in enumerate(PLANS):
        report = simulate(case(plan, ranks), trace=False)
        assert rows.bound_s[i] <= report.step_s.value * (1 + 1e-9)
        assert report.ranks == ranks
        said = report.to_json()
        assert said["rank_order"] == ranks.order and "ranks" not in said
        assert (said["host_map"] is None) == (ranks.hosts is None)


def test_ranks_dealt_round_the_nodes_are_slower() -> None:
    assert (
        simulate(case(PLANS[1], RankMap(hosts=DEALT)), trace=False).step_s.value
        > simulate(case(PLANS[1], RankMap()), trace=False).step_s.value
    )


def test_what_cannot_be_laid_out_is_said_at_once() -> None:
    plan = Plan(tp=4, pp=4, dp=4, ep=8, edp=2)
    short = HostMap(devices=tuple(range(32)))
    with pytest.raises(UserError) as caught:
        simulate(case(plan, RankMap(order="tp-cp-ep-pp-dp", hosts=short)))
    assert len(caught.value.problems) == 2
    assert "other pipelines" in str(caught.value) and "holds 32 ranks, the plan has 64" in str(caught.value)
    simulate(case(plan, RankMap(order="tp-ep-cp-dp-pp")), trace=False)


def test_noise_is_of_the_same_ranks() -> None:
    ranks = RankMap(hosts=DEALT)
    uneven = replace(case(PLANS[1], ranks), routing=Routing(max_over_mean=1.5))
    report = simulate(uneven, trace=False)
    assert step_distribution(report, uneven).p50 > 0.9 * report.step_s.value
    assert Simulation(uneven).cost.ranks == ranks
    with pytest.raises(AssertionError):
        Simulation(uneven, cost=CostModel(MACHINES, TRAINER))


def test_a_host_map_with_names_is_told_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("node,ranks\n" + "".join(f"gpu{i:02},0 1 2 3\n" for i in range(9)))
    with pytest.raises(UserError) as caught:
        read_host_map(str(path), num_devices=36, devices_per_node=4)
    said = " ".join(caught.value.problems)
    assert "give the number of a node" in said and "and 4 more lines" in said and "belongs in --nodes" in said
    path.write_text("rank,device\n" + "".join(f"{i},\n" for i in range(8)))
    with pytest.raises(UserError, match="rank 0, 1, 2, 3, 4 and 3 more: list one device"):
        read_host_map(str(path), num_devices=8, devices_per_node=4)
