"""How fast the event engine is: tasks per second, and a DeepSeek-V3-like step in full and with the period jump.

Run: python benchmarks/bench_engine.py. The step has 16 pipeline stages and 120 micro-batches; its durations
and bytes are round figures of that order, not a prediction.
"""

from __future__ import annotations

import time

from sim.build.profile import ChunkProfile, StageTail, StepProfile
from sim.build.tasks import simulate_step
from sim.engine import Task, run

LANES = 16
LINK_BYTES_PER_S = 50e9


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
        p2p_flows=(("scale_out", 58e6),),
        p2p_latency_s=1e-5,
        static_bytes=({"weights": 2e10},) * LANES,
    )


def main() -> None:
    """Print the table."""
    tasks = chain_tasks(100_000)
    begin = time.perf_counter()
    run(tasks, {})
    print(f"engine without flows: {len(tasks) / (time.perf_counter() - begin):,.0f} tasks/s")
    print("PP16 step: vpp, micro-batches, contention | full s | steady s | ratio | events | skipped | error")
    for vpp, m, contention in (
        (1, 120, False), (1, 120, True), (2, 120, True), (2, 128, True), (1, 1920, True),
    ):  # fmt: skip
        profile = step_profile(vpp=vpp, num_micro_batches=m, contention=contention)
        t0 = time.perf_counter()
        full = simulate_step(profile, steady=False)
        t1 = time.perf_counter()
        jumped = simulate_step(profile)
        t2 = time.perf_counter()
        error = abs(jumped.makespan_s / full.makespan_s - 1.0)
        print(
            f"{vpp} {m:5d} {contention!s:5} | {t1 - t0:6.3f} | {t2 - t1:6.3f} | {(t1 - t0) / (t2 - t1):5.1f} | "
            f"{full.num_events:7d} | {jumped.periods_skipped:5d} | {error:.1e}"
        )


if __name__ == "__main__":
    main()
