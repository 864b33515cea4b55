"""Which layer a record of a rank with virtual pipeline stages is of.

Megatron-LM logs number layers inside a virtual stage (a model chunk), so records of several chunks carry the same
number. They are told apart by when they were written: a stage runs its chunks in a known order, and a layer writes one
record each time its chunk runs forward, one more each time the backward runs its router again (recompute).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprofiles.errors import UserError
from sim.build.order import slot_of
from sim.build.schedule import lane_order
from sim.model import ModelSpec
from sim.plan import Plan

RERUN = ("full", "moe")  # recompute that runs the router again
MAX_PASSES = 10**6


class Chunks:
    """The order of the chunks of every pipeline stage of a plan.

    stages: layers per virtual stage in model order. Raises UserError for a schedule that Megatron-LM does not run.
    """

    def __init__(self, model: ModelSpec, plan: Plan, stages: Sequence[int]) -> None:
        if plan.schedule != "interleaved":
            raise UserError(
                f"schedule {plan.schedule} is none of Megatron-LM's, whose log this is; give the plan that ran",
                where="--plan",
            )
        self.model, self.plan, self.stages = model, plan, tuple(stages)
        self.first = np.concatenate([[0], np.cumsum(self.stages)])[:-1].tolist()
        self.rerun = any(module in plan.recompute for module in RERUN)
        self._orders: dict[tuple[int, int], tuple[tuple[str, int], ...]] = {}

    def _layer(self, stage: int, chunk: int, local: int) -> int | None:
        """Number of a layer in the model, or None where that chunk has no such layer with experts."""
        slot = slot_of(stage, chunk, pp=self.plan.pp)
        layer = int(self.first[slot]) + local
        has = local < self.stages[slot] and self.model.layers[layer].moe is not None
        return layer if has else None

    def _order(self, stage: int, micro_batches: int) -> tuple[tuple[str, int], ...]:
        key = (stage, micro_batches)
        if key not in self._orders:
            plan = self.plan
            steps = lane_order(
                "interleaved", pp=plan.pp, vpp=plan.vpp, stage=stage, num_micro_batches=micro_batches,
                group=plan.micro_batch_group,
            )  # fmt: skip
            self._orders[key] = tuple((step.kind, step.chunk) for step in steps)
        return self._orders[key]

    def layers_of(self, stage: int, local: int, entries: int, where: str) -> list[int | None]:
        """Layer of each of the `entries` records that local layer `local` of a stage wrote in one step, in order.

        None: a router run again. Raises UserError where the plan's passes cannot have written so many.
        """
        layers = [self._layer(stage, chunk, local) for chunk in range(self.plan.vpp)]
        each = (2 if self.rerun else 1) * sum(layer is not None for layer in layers)
        if not each or entries % each or entries > MAX_PASSES:
            raise UserError(
                f"layer {local} of pipeline stage {stage} wrote {entries} records in one step, which is no multiple of "
                f"the {each} that a micro-batch writes under the plan; give the plan that ran (its stages and "
                "recompute), and a log without evaluation steps",
                where=where,
            )
        counted = [
            (kind, layers[chunk])
            for kind, chunk in self._order(stage, entries // each)
            if layers[chunk] is not None and (kind == "F" or self.rerun)
        ]
        return [layer if kind == "F" else None for kind, layer in counted]
