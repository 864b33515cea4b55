"""Settings of recompute and offload that a stage may run, beyond the usual recompute: what `--search` asks for."""

from __future__ import annotations

from collections.abc import Sequence

from hwprofiles.errors import UserError
from planner.space import recompute_choices
from planner.stage_plan.priced import under
from planner.stage_plan.records import Modules, Setting
from planner.variants import OFFLOADS, every_recompute
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.notes import idle_modules
from sim.scenario import Scenario
from sim.workload import OFFLOAD_MODULES

DIMENSIONS = ("offload", "recompute")


def settings_of(
    scenario: Scenario, dimensions: Sequence[str] = (), *, recompute: Modules | None = None
) -> list[Setting]:  # fmt: skip
    """All settings to choose among, those that keep every activation on the device first.

    dimensions: of DIMENSIONS, what is searched; without offload what goes to the host is what the workload says.
    recompute: the only modules to recompute (None: those worth trying, or with "recompute" every one by itself too).
    A module is offloaded only where something of it is kept. Raises UserError.
    """
    fixed = scenario.workload.offload
    problems = [f"{name[:40]!r} is not known here; use {', '.join(DIMENSIONS)}" for name in dimensions
                if name not in DIMENSIONS]  # fmt: skip
    if "recompute" in dimensions and recompute is not None:
        problems.append("recompute is fixed by --recompute; leave one of them out")
    if "offload" in dimensions and (fixed.layers or fixed.modules):
        problems.append("offload of activations is fixed by --offload; leave layers and modules out of one of them")
    if problems:
        raise UserError(problems, where="--search")
    usual = every_recompute if "recompute" in dimensions else recompute_choices
    recomputes = usual(scenario.model, scenario.software) if recompute is None else (recompute,)
    if "offload" not in dimensions:
        return [Setting(recompute=each) for each in recomputes]
    cost = CostModel(scenario.cluster, scenario.software, ranks=scenario.ranks)
    found = [Setting(recompute=each, offload=()) for each in recomputes]
    for modules in offloads():
        tried = (Setting(recompute=each, offload=modules) for each in recomputes)
        found += [each for each in tried if not idle_modules(StepCost(cost, under(scenario, each).context()))]
    return found


def offloads() -> tuple[Modules, ...]:
    """Modules of which `plan` tries to offload the activations, each and all of them."""
    single = tuple(each.modules for each in OFFLOADS if each.modules and not each.optimizer)
    every = {name for modules in single for name in modules}
    return (*single, tuple(name for name in OFFLOAD_MODULES if name in every))
