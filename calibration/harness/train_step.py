"""One training step of a small MoE model, with its peak memory: what a predicted step is held against.

Ops: "train_step" and its parts "train_step_forward", "_backward", "_optimizer", and over ranks
"_reduce" (all taken in the same steps; a part is summed over its micro-batches). sizes hold every
dimension needed to build the model again (`small_model.StepDims`). peak_bytes counts everything from the
first weight on: weights, gradients, master weights, moments, activations, temporaries, of the busiest rank.
Over ranks: ep = ranks, each with its own micro-batches (family "train_step_ep").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibration.harness.points import Bench, Point, Prepared, Suite, shapes, torch_module, worst_error
from calibration.harness.small_model import LARGEST_NORM, LEARNING_RATE, Model, StepDims, batches
from calibration.harness.timing import Timer, Timing, summary

FAMILY = "train_step"
GROUP_FAMILY = "train_step_ep"
STEPS = 20
STEP_TARGETS = 4  # a step is long: several times the wall seconds of another point
# AdamW keeps two moments, a master weight and a main gradient of 4 bytes, beside 2 bytes of weight.
STATE_BYTES = 18


def points(suite: Suite, device: str) -> list[Point]:
    """Training steps of one rank."""
    return _points(FAMILY, _sweep(suite, device))


def group_points(suite: Suite, device: str, ranks: int) -> list[Point]:
    """Training steps over `ranks` ranks; shapes whose experts do not divide are left out."""
    wanted = [replace(dims, ranks=ranks, ep=ranks) for dims in _sweep(suite, device) if dims.experts % ranks == 0]
    return _points(GROUP_FAMILY, wanted[: 3 if suite == "quick" else 6])


def _points(family: str, wanted: list[StepDims]) -> list[Point]:
    found = []
    for dims in wanted:
        parts = ("", "_forward", "_backward", "_optimizer", *(("_reduce",) if dims.ranks > 1 else ()))
        found += [_point(family, "train_step" + part, dims) for part in parts]
    return found


def _sweep(suite: Suite, device: str) -> list[StepDims]:
    if suite == "tiny":
        sizes = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "experts": 8, "top_k": 2}
        return [StepDims(**sizes, ffn=48, vocab=64, seq=32, batch=1, micro_batches=2)]
    table = shapes()["cpu"]["step"] if device == "cpu" else shapes()["step"]
    return [StepDims(**row) for row in (table if suite == "full" else table[: max(4, len(table) // 2)])]


def _point(family: str, op: str, dims: StepDims) -> Point:
    return Point(
        family=family,
        op=op,
        pass_="step",
        sizes=dict(dims.__dict__),
        follows=op != "train_step",
        flop=dims.flop if op == "train_step" else 0.0,
        bytes=float(STATE_BYTES * dims.local_parameters),
        prepare=lambda bench: _prepare(bench, op, dims),
    )


def _prepare(bench: Bench, op: str, dims: StepDims) -> Prepared:
    part = op.removeprefix("train_step").removeprefix("_") or "step"
    key = ("train_step", dims, part)
    if key in bench.timings:
        timing = bench.timings[key]
        return Prepared(measure=lambda timer: timing)
    rank = 0 if bench.group is None else bench.group.rank

    def measure(timer: Timer) -> Timing:
        model, data = Model(bench, dims), batches(bench, dims, rank)
        for name, timing in _timed_parts(timer, model, data).items():
            bench.timings["train_step", dims, name] = timing
        return bench.timings[key]

    def fresh() -> None:
        model, data = Model(bench, dims), batches(bench, dims, rank)
        for _ in range(2):  # the moments appear in the first step
            model.step(data)

    def check() -> float:
        # float32, so that rounding cannot hide a wrong scale; the 16 bit kernels are checked in moe_block.
        return bench.once(("train_step", bench.group is None), lambda: step_error(bench, _small(dims)))

    return Prepared(measure=measure, check=check, peak=fresh if part == "step" else None)


def _timed_parts(timer: Timer, model: Model, data: list[tuple[Any, Any]]) -> dict[str, Timing]:
    names: list[str] = []

    def run(mark: Any) -> None:
        names.clear()

        def named(part: str) -> None:
            names.append(part)
            mark()

        model.step(data, named)

    rows = timer.parts(run, STEPS, STEP_TARGETS * timer.patience.point_s)
    out = {"step": summary([row[-1] for row in rows])}
    for part in dict.fromkeys(names):
        out[part] = summary([sum(s for name, s in zip(names, row, strict=False) if name == part) for row in rows])
    return out


def _small(dims: StepDims) -> StepDims:
    few = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48, "vocab": 64}
    return replace(dims, **few, experts=4 * dims.ranks, top_k=2, seq=32, batch=1, micro_batches=2)


def step_error(bench: Bench, dims: StepDims) -> float:
    """Error of the weights' change in two float32 steps, against plain torch on all ranks' tokens at once.

    The reference holds all experts, takes the mean loss of every micro-batch of every rank, clips with
    clip_grad_norm_ and steps torch's own AdamW.
    """
    torch = torch_module()
    group, ranks = bench.group, dims.ranks
    rank = 0 if group is None else group.rank
    model = Model(bench, dims, "fp32", loop=True)
    alone = Bench(device=bench.device, timer=bench.timer, seed=bench.seed)
    reference = Model(alone, replace(dims, ranks=1, ep=1), "fp32", loop=True)
    plain = {name: torch.nn.Parameter(w.detach().clone()) for name, w in reference.weights.items()}
    reference.weights = plain
    adam = torch.optim.AdamW(list(plain.values()), lr=LEARNING_RATE, fused=False, foreach=False)
    everything = [batch for r in range(ranks) for batch in batches(bench, dims, r)]
    start = {name: w.detach().clone() for name, w in model.weights.items()}
    begin = {name: w.detach().clone() for name, w in plain.items()}
    for _ in range(2):
        model.step(batches(bench, dims, rank))
        adam.zero_grad()
        losses = [reference.loss(tokens, targets) for tokens, targets in everything]
        (sum(losses) / len(losses)).backward()
        torch.nn.utils.clip_grad_norm_(list(plain.values()), LARGEST_NORM, foreach=False)
        adam.step()
    pairs = []
    for name, weight in model.weights.items():
        moved, want = weight.detach() - start[name], (plain[name].detach() - begin[name])
        if moved.shape != want.shape:
            count = moved.shape[0]
            want = want[rank * count : (rank + 1) * count]
        pairs.append((moved, want))
    return worst_error(pairs)
