"""Options of a plan that say which plans are looked at: stages, device types, what else is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from planner.question.asked import LAYOUT, Asked, Option, Text

WAYS = ("uniform", "auto", "ilp")  # of choosing stages, as `planner.stage_plan.refine` has them


@dataclass(frozen=True, kw_only=True)
class AskedSpace(Asked):
    """The question, and how far the search goes beyond its table."""

    stages: Annotated[
        str, Option("--stages", "Layers of pipeline stages: uniform (as even as layers go, ends lighter), auto (the "
                     "plans listed also with stages and recompute by integer programme) or ilp (further layouts too). "
                     "Default: uniform.", "WAY", LAYOUT)
    ] = "uniform"  # fmt: skip
    search: Annotated[
        Text, Option("--search", "What is searched besides degrees, with commas: dispatcher, offload, recompute "
                      "(every module by itself), precision, cp. Default: nothing more.", "NAMES", LAYOUT)
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AskedStages(Asked):
    """The question of one layout, and which settings of a stage are choices."""

    search: Annotated[
        Text, Option("--search", "What is chosen besides layers and the usual recompute, with commas: offload (modules "
                      "whose activations go to the host), recompute (every module by itself). Default: nothing more.",
                      "NAMES", LAYOUT)
    ] = None  # fmt: skip
