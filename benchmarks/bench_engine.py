"""How fast the event engine is: tasks per second, a DeepSeek-V3-like step in full and with the period jump, an uneven
all-to-all on links that lanes share, and a layer-level step with one lane and with two lanes per stage.

Run: python benchmarks/bench_engine.py. The step has 16 pipeline stages and 120 micro-batches; its durations
and bytes are round figures of that order, not a prediction.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from benchmarks import figures
from hwprofiles import catalogue
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.tasks import simulate_step
from sim.detail import lane_loads, simulate_layers
from sim.engine import Task, run
from sim.families import load_model
from sim.plan import Plan
from sim.report import Trace
from sim.routing import parse_routing, resolve
from sim.scenario import Scenario
from sim.workload import Workload

LANES = 16
LINK_BYTES_PER_S = 50e9
SCALE_UP_BYTES_PER_S = 450e9
NODE_RANKS = 8
NODE_PORTS = 4  # a node's ports together carry what so many ranks' own would
REPEATS = 20


def chain_tasks(count: int) -> list[Task]:
    """A pipeline-like graph without flows: each task waits for one on the lane before."""
    return [
        Task(
            id=i, name="t", kind="k", lane=i % LANES, stream="compute", busy_s=1e-3,
            after=(i - 1,) if i % LANES else (),
        )
        for i in range(count)
    ]  # fmt: skip


def step_profile(*, vpp: int, num_micro_batches: int, contention: bool) -> StepProfile:
    """16 uneven stages of about 20 ms forward; sends share their link with the all-to-all when `contention`."""

    def chunk(stage: int) -> ChunkProfile:
        forward_s = (0.020 + 0.0005 * (stage % 3)) / vpp
        moved = 0.4 * LINK_BYTES_PER_S * forward_s if contention else 0.0
        return ChunkProfile(
            forward_s=forward_s,
            backward_s=2.0 * forward_s,
            forward_flows=(("scale_out", moved),),
            backward_flows=(("scale_out", 2.0 * moved),),
            saved_bytes=1e9 / vpp,
            working_bytes=1e8,
        )

    tail = StageTail(grad_flows=(("scale_out", 4e9),), param_flows=(("scale_out", 2e9),), optimizer_s=0.02)
    return StepProfile(
        pp=LANES,
        vpp=vpp,
        schedule="interleaved" if vpp > 1 else "1f1b",
        num_micro_batches=num_micro_batches,
        chunks=tuple((chunk(stage),) * vpp for stage in range(LANES)),
        tails=(tail,) * LANES,
        links={"scale_out": LINK_BYTES_PER_S},
        p2p=(SendProfile(flows=(("scale_out", 58e6),), latency_s=1e-5),) * LANES,
        static_bytes=({"weights": 2e10},) * LANES,
    )


def skewed_bytes(ranks: int = 64, mean_bytes: float = 8e6) -> np.ndarray:
    """bytes[source][destination] of a dispatch: popular destinations get several times the rows of others."""
    rng = np.random.default_rng(0)
    popular = rng.lognormal(0.0, 0.7, ranks)
    out = rng.uniform(0.5, 1.5, (ranks, ranks)) * popular * mean_bytes / popular.mean()
    np.fill_diagonal(out, 0.0)
    return out


def exchange_tasks(pairs: np.ndarray) -> list[Task]:
    """One task per rank: what it sends and receives on its own links, and on the ports its node shares."""
    node = np.arange(len(pairs)) // NODE_RANKS
    near = np.where(node[:, None] == node[None, :], pairs, 0.0)
    far = pairs - near
    return [
        Task(
            id=i, name="dispatch", kind="ep", lane=i, stream="ep",
            flows=(
                ("up.out", float(near[i].sum())), ("up.in", float(near[:, i].sum())),
                ("out.out", float(far[i].sum())), ("out.in", float(far[:, i].sum())),
                (f"node{node[i]}.out", float(far[i].sum())), (f"node{node[i]}.in", float(far[:, i].sum())),
            ),
        )
        for i in range(len(pairs))
    ]  # fmt: skip


def run_exchange(pairs: np.ndarray) -> Trace:
    """Build and run one exchange."""
    own = {f"{name}.{way}": rate for name, rate in (("up", SCALE_UP_BYTES_PER_S), ("out", LINK_BYTES_PER_S))
           for way in ("out", "in")}  # fmt: skip
    nodes = range(-(-len(pairs) // NODE_RANKS))
    shared = {f"node{n}.{way}": NODE_PORTS * LINK_BYTES_PER_S for n in nodes for way in ("out", "in")}
    return run(exchange_tasks(pairs), own, shared=shared)


def layer_step() -> Scenario:
    """DeepSeek-V3 on 256 H100, uneven experts, 16 micro-batches."""
    model = load_model("DeepSeek-V3")
    software = replace(catalogue.software("megatron-bridge-26.04"), capacity_factor=None, host_sync=False)
    return Scenario(
        model=model, cluster=catalogue.cluster("dgx-h100", gpus=256), software=software,
        workload=Workload(seq_tokens=4096, global_batch_seqs=1024), plan=Plan(pp=4, ep=64, dp=64, account_ends=True),
        routing=resolve(parse_routing("zipf:0.5"), model, seed=0),
    )  # fmt: skip


def measure(out: figures.Figures) -> None:
    """The figures."""
    tasks = chain_tasks(100_000)
    begin = time.process_time()
    run(tasks, {})
    out.add("engine without flows, tasks", len(tasks) / (time.process_time() - begin), "/s")
    for vpp, m, contention in (
        (1, 120, False), (1, 120, True), (2, 120, True), (2, 128, True), (1, 1920, True),
    ):  # fmt: skip
        profile = step_profile(vpp=vpp, num_micro_batches=m, contention=contention)
        t0 = time.process_time()
        full = simulate_step(profile, steady=False)
        t1 = time.process_time()
        jumped = simulate_step(profile)
        t2 = time.process_time()
        what = f"PP16 VPP{vpp}, {m} micro-batches{', contention' if contention else ''}"
        error = abs(jumped.makespan_s / full.makespan_s - 1.0)
        out.add(f"{what}: full run", t1 - t0, "s", f"{full.num_events:,} events")
        out.add(f"{what}: full run over period jump", (t1 - t0) / (t2 - t1), "x", f"step differs by {error:.1e}")
    pairs = skewed_bytes()
    begin = time.process_time()
    for _ in range(REPEATS):
        trace = run_exchange(pairs)
    took_s = (time.process_time() - begin) / REPEATS
    out.add("uneven all-to-all of 64 lanes, node ports shared by 8", took_s, "s", f"{trace.num_events:,} events")
    scenario = layer_step()
    for lanes in ("hottest", "median", "nodes"):
        begin = time.process_time()
        trace = simulate_layers(scenario, lanes=lanes)
        took_s = time.process_time() - begin
        count = len(lane_loads(scenario, lanes))
        out.add(f"layer-level run, DeepSeek-V3 on 256 H100, lanes a stage: {count}", took_s, "s",
                f"{len(trace.spans):,} spans")  # fmt: skip


if __name__ == "__main__":
    figures.run(measure, __doc__)
