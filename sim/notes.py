"""What is worth saying of a step that no figure of its report says: what was asked for and does nothing, or backfires.

Each is worked out from the prices of the step itself, without a run of its own.
"""

from __future__ import annotations

from dataclasses import replace

from sim.build.context import LOW_PRECISION
from sim.build.layer import layer_ops
from sim.build.saved import MODULE_OPS
from sim.cost.step import StepCost
from sim.cost.timing import BACKWARD, FORWARD, PartTime
from sim.run import Simulation
from sim.scenario import Scenario

Spent = dict[str, float]
# In words: the classes of `sim.cost.timing.op_class`, and the launches beyond the device's work.
WORDS = (("products", "GEMMs"), ("casts", "casts and other memory-bound kernels"), ("host", "waiting for launches"))


def notes(scenario: Scenario, run: Simulation | None = None) -> tuple[str, ...]:
    """All of them. run: the simulation of the scenario, where there is one."""
    run = run or Simulation(scenario)
    return (*idle_offload(run.step), *cut_documents(scenario), *costly_precision(scenario, run))


def idle_offload(step: StepCost) -> tuple[str, ...]:
    """A note of the modules to offload that send nothing."""
    ctx, idle = step.ctx, idle_modules(step)
    if not idle:
        return ()
    why = f"with recompute {', '.join(ctx.plan.recompute)} " if ctx.plan.recompute else "in this model "
    return (
        f"--offload modules={'+'.join(idle)} sends nothing: {why}none of its activations are kept; leave it out"
        f"{' or recompute less' if ctx.plan.recompute else ''}",
    )


def idle_modules(step: StepCost) -> list[str]:
    """Modules to offload of which no activation is kept: recomputed anyway, or not in the model."""
    modules = step.ctx.workload.offload.modules
    if not modules:
        return []
    kept: dict[str, float] = {}
    for layer in step.kinds:
        for op in layer_ops(step.ctx, layer):
            kept[op.name] = kept.get(op.name, 0.0) + float(op.saved_bytes)
    return [m for m in modules if not any(kept.get(name, 0.0) for name in MODULE_OPS[m])]


def cut_documents(scenario: Scenario) -> tuple[str, ...]:
    """Documents longer than the sequence, which count as one of its length."""
    lengths = scenario.workload.lengths
    if lengths is None or not lengths.cut:
        return ()
    share = lengths.lost_tokens / (sum(lengths.tokens) + lengths.lost_tokens)
    count = len(lengths.tokens)
    return (
        f"--lengths: {lengths.cut:,} of {count:,} documents ({lengths.cut / count:.1%}) are "
        f"longer than the sequence and cut to {scenario.workload.seq_tokens:,} tokens, {share:.1%} of all tokens are "
        "left out; raise --seq-len to keep them",
    )


def costly_precision(scenario: Scenario, run: Simulation) -> tuple[str, ...]:
    """A low-precision recipe whose products gain less than its casts and launches cost, on the busiest stage."""
    precision = scenario.workload.precision
    if precision not in LOW_PRECISION or "bf16" not in run.cost.device.peak_flop_per_s:
        return ()
    plain = Simulation(replace(scenario, workload=replace(scenario.workload, precision="bf16")))
    low, wide = (max(_stages(each), key=_total) for each in (run, plain))
    if _total(low) <= _total(wide):
        return ()
    parts = ", ".join(f"{1e3 * (low[key] - wide[key]):+.3g} ms {word}" for key, word in WORDS)
    return (
        f"{precision} costs more than it gains: a micro-batch takes {1e3 * _total(low):.3g} ms on the busiest stage, "
        f"{1e3 * _total(wide):.3g} ms in bf16 ({parts}); use --precision bf16, a larger --micro-batch, or a profile "
        "with CUDA graphs",
    )


def _stages(run: Simulation) -> list[Spent]:
    """Seconds of one forward and backward of every pipeline stage, by what they go to."""
    out = []
    waits = run.step.stragglers
    for row in run.contents:
        spent = {"products": 0.0, "casts": 0.0, "host": 0.0, "rest": 0.0}
        for content in row:
            for count, part in run.step.parts_of(content):
                for way in (FORWARD, BACKWARD):
                    here = _spent(part, way)
                    for name in spent:
                        spent[name] += waits * float(count) * here[name]
        out.append(spent)
    return out


def _spent(part: PartTime, way: str) -> Spent:
    device = part.classes[way]
    products = float(device.get("gemm", 0.0) + device.get("experts", 0.0))
    casts, busy = float(device.get("memory-bound", 0.0)), float(part.device_s(way))
    host = float(part.duration_s(way)) - busy
    return {"products": products, "casts": casts, "host": host, "rest": busy - products - casts}


def _total(spent: Spent) -> float:
    return sum(spent.values())
