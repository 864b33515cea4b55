"""Activations in host memory: what travels down in the forward and up again in the backward, and what waits for it.

Two forms. Whole layers (Transformer Engine's offload context): the first layers of a virtual stage, whose copies are
spread evenly over the time of all of its layers. Modules of every layer (Megatron-LM's fine-grained offload): the
inputs of named modules, beside the rest of their own layer. The link is full duplex: copies down and copies up do not
meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from sim.build.context import Context
from sim.build.stages import StageContent
from sim.cost.model import CostModel
from sim.cost.timing import PartTime
from sim.cost.update import host_link_bytes_per_s

DOWN, UP = "host_down", "host_up"
Layers = Sequence[tuple[Any, PartTime]]  # (count, part) of the layers of a virtual stage


class ActivationOffload:
    """What the plan's virtual stages send to the host; nothing unless the workload or the profile asks for it."""

    def __init__(self, cost: CostModel, ctx: Context) -> None:
        self.cost, self.ctx = cost, ctx

    @property
    def on(self) -> bool:
        """Whether anything travels."""
        return bool(self.ctx.offloaded_layers or self.ctx.workload.offload.modules)

    def _whole_layers(self, content: StageContent) -> int:
        return min(self.ctx.offloaded_layers, content.num_layers)

    def moved_bytes(self, content: StageContent, layers: Layers) -> Any:
        """Bytes of one micro-batch of a virtual stage that rest on the host between its passes."""
        away = self._whole_layers(content)
        if away:
            return away * sum(n * part.saved for n, part in layers) / content.num_layers
        return sum((n * part.away for n, part in layers), np.zeros(()))

    def kept_bytes(self, content: StageContent, layers: Layers, saved: Any, excess: Any) -> Any:
        """`saved` less what is on the host: all that moves but the layer (or its modules) on its way out or in.

        excess: what `layers` hold above the fullest rank (`sim.cost.held`), taken off already.
        """
        away = self._whole_layers(content)
        if away:
            mean = (sum(n * part.saved for n, part in layers) - excess) / content.num_layers
            largest = reduce(np.maximum, (part.saved for _, part in layers))  # numbers beside columns
            return saved - np.maximum(0.0, away * mean - largest)
        if not self.ctx.workload.offload.modules or not layers:
            return saved
        # modules of experts hold with the rest of their layer more than the fullest rank does
        share = saved / np.maximum(1.0, saved + excess)
        largest = reduce(np.maximum, (part.away for _, part in layers))
        return saved - np.maximum(0.0, share * self.moved_bytes(content, layers) - largest)

    def stall_s(self, content: StageContent, layers: Layers, seconds: Sequence[Any]) -> Any:
        """Seconds by which a pass outlasts its layers, waiting for copies; seconds: of each of `layers` in that pass.

        Whole layers: all copies have the time of all layers; modules: those of a layer have its own.
        """
        rate = host_link_bytes_per_s(self.cost)
        if self._whole_layers(content):
            own_s = sum(n * s for (n, _), s in zip(layers, seconds, strict=True))
            return np.maximum(0.0, self.moved_bytes(content, layers) / rate - own_s)
        waits = (
            n * np.maximum(0.0, part.away / rate - own_s) for (n, part), own_s in zip(layers, seconds, strict=True)
        )
        return sum(waits, np.zeros(()))

    def paired_s(self, moved: Any, paired_s: Any, forward_s: Any, backward_s: Any) -> Any:
        """Seconds of a forward and a backward run together (`paired_s` without copies): each pass keeps its share of
        the pair, and its copies have that share. Where nothing is paired, the two one after the other."""
        both_s = forward_s + backward_s
        if not self.ctx.software.a2a_overlap:
            return both_s
        copy_s = moved / host_link_bytes_per_s(self.cost)
        return np.maximum(paired_s, copy_s * both_s / np.minimum(forward_s, backward_s))
