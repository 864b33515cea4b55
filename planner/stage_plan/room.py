"""Layouts that no choice of stages fits into memory: a necessary condition, asked of many rows at once.

Stage s holds the state of its parts all step and, when its first backward begins, the activations of h_s micro-batches
of each: bytes_s >= sum_k y_sk (S_k + h_s A_k) for shares y of the parts k, and bytes_s <= C for every stage. With
weights u_s >= 0 the stages together hold sum_k n_k min_s u_s (S_k + h_s A_k) at least, so where that exceeds
C sum(u_s) nothing fits. u_s = 1 / (S + h_s A), of the whole model, is nearly the best choice. Transients are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.stage_plan.orders import held_at_most
from sim.build.forms import in_first
from sim.build.order import SPLIT_SCHEDULES
from sim.build.schedule import group_size, num_warmup
from sim.columns import Columns
from sim.cost.footprint import end_params, static_bytes
from sim.cost.prices import distinct
from sim.cost.step import StepCost

Mask = NDArray[np.bool_]
Part = tuple[int, Any, Any]  # how often, bytes of state, bytes of activations of a micro-batch


def parts_of(step: StepCost) -> list[Part] | None:
    """The parts of a model with their bytes; None where activations of a stage are not the sum of its parts' (layers
    with loads of their own, activations on the host) or its state is not (whole matrices in the optimizer)."""
    ctx = step.ctx
    if step.levels.own or step.offload.on or ctx.workload.optimizer.name == "muon":
        return None
    kinds, index = ctx.model.layer_kinds()
    state_ctx = step.of_state().ctx  # shared with the ranks of the mirrored stages where the model is held twice
    copies = 2 if ctx.plan.schedule == "dualpipe" else 1
    found: list[Part] = []
    for kind in range(len(kinds)):
        state = sum(static_bytes(state_ctx, step.layer_params[kind]).values())
        found.append((copies * index.count(kind), state, step.layer_parts[kind].saved))
    for embedding, saved in ((True, step.embedding.saved), (False, sum(part.saved for part in step.head))):
        params = end_params(ctx, embedding=embedding, head=not embedding)
        found.append((copies, sum(static_bytes(state_ctx, params).values()), saved))
    return found


def held_at_first_backward(pp: int, vpp: int, m: int, group: int = 0) -> NDArray[np.float64]:
    """Micro-batches [pp] that each virtual stage of a stage holds at least when the first backward begins."""
    schedule = "interleaved" if vpp > 1 else "1f1b"
    size = (group or group_size(pp, m)) if vpp > 1 else m
    held = []
    for stage in range(pp):
        warmup = num_warmup(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m, group=group)
        done = min(m * vpp, warmup + 1)
        # the last chunk is the one that has run fewest
        held.append(float(in_first(done, vpp - 1, vpp=vpp, num_micro_batches=m, group=size)))
    return np.array(held)


def may_fit(rows: Columns, m: NDArray[np.int64], parts: list[Part] | None, usable_bytes: float) -> Mask:
    """Rows that the condition does not rule out; parts: bytes of each row's parts (`parts_of`)."""
    fits = np.ones(len(rows), dtype=bool)
    if parts is None:
        return fits
    first, pipe = distinct([rows.pp, rows.vpp, m])
    for at, row in enumerate(first.tolist()):
        mine = np.flatnonzero(pipe == at)
        pp, vpp, many = int(rows.pp[row]), int(rows.vpp[row]), int(m[row])
        if rows.schedule in SPLIT_SCHEDULES:
            held = np.array(held_at_most(rows.schedule, pp, vpp, many))
        else:
            held = held_at_first_backward(pp, vpp, many, rows.micro_batch_group)
        here = [(n, _of(state, mine)[:, None], _of(saved, mine)[:, None]) for n, state, saved in parts]
        whole = sum(n * (state + held * saved) for n, state, saved in here)
        weight = 1.0 / np.maximum(whole, 1.0)
        least = sum(n * (weight * (state + held * saved)).min(axis=1) for n, state, saved in here)
        fits[mine] = least <= usable_bytes * weight.sum(axis=1)
    return fits


def _of(value: Any, rows: NDArray[Any]) -> NDArray[np.float64]:
    found = np.asarray(value, dtype=np.float64)
    return np.full(len(rows), float(found)) if found.ndim == 0 else found[rows]
