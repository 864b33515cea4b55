"""Where the ranks of a parallel group sit: two meshes over the same ranks.

Order from the innermost axis out (Megatron-LM's default): tp, cp, dp, pp for attention and
etp, ep, edp, pp for experts. A group of axis `a` has `size` members, `stride` ranks apart; all
functions take integers or numpy columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.plan import Degrees

AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "edp", "tp_cp", "dp_cp")


@dataclass(frozen=True, kw_only=True)
class Group:
    """size members, of which `intra` share a scale-up domain (NVLink); size/intra domains."""

    size: Any
    intra: Any

    @property
    def domains(self) -> Any:
        """Scale-up domains the group spans."""
        return np.ceil(np.asarray(self.size) / np.asarray(self.intra))


def axis_stride(plan: Degrees, axis: str) -> tuple[Any, Any]:
    """(size, stride) of a group axis in ranks."""
    tp, cp, dp, pp = plan.tp, plan.cp, plan.dp, plan.pp
    ep, etp, edp = plan.ep, plan.etp, plan.edp
    table = {
        "tp": (tp, 1),
        "cp": (cp, tp),
        "dp": (dp, tp * cp),
        "pp": (pp, tp * cp * dp),
        "etp": (etp, 1),
        "ep": (ep, etp),
        "edp": (edp, etp * ep),
        "tp_cp": (tp * cp, 1),
        "dp_cp": (dp * cp, tp),
    }
    return table[axis]


def group(plan: Degrees, axis: str, domain_devices: int) -> Group:
    """The group of `axis` and how many of its members share one scale-up domain."""
    size, stride = axis_stride(plan, axis)
    fit = np.maximum(1, domain_devices // np.asarray(stride))
    return Group(size=size, intra=np.minimum(size, fit))
