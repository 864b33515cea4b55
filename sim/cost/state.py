"""The model's state on a rank: its parameter tensors, and the ranks that share it where a stage is held twice."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.model import LayerSpec
from sim.plan import Degrees

# Host launches per parameter tensor and step: gradient view into the main gradient, norm, copy back; Adam itself
# runs over many tensors per launch.
LAUNCHES_PER_TENSOR = 3


def parameter_tensors(layer: LayerSpec, ep: Any) -> Any:
    """Parameter tensors of one layer on one rank."""
    attention = 6.0 if layer.attention.kind == "mla" else 3.0
    norms = 2.0 + 2.0 * layer.attention.qk_norm
    if layer.moe is None:
        return attention + norms + 2.0
    shared = 2.0 if layer.moe.shared_ffn_dim else 0.0
    return attention + norms + 1.0 + shared + 2.0 * layer.moe.num_experts / np.asarray(ep, float)


class TwoCopies:
    """The degrees of a plan whose stages are held twice, as its state sees them."""

    def __init__(self, *, of: Degrees) -> None:
        self._of = of
        self.dp, self.edp = 2 * of.dp, 2 * of.edp
        self.pp = of.pp // 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)
