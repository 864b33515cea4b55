"""The stage question answered: options that may run, the programme's choice, and simulated steps beside even stages.

Where offload was searched and its stages send activations to the host, the same without is solved and simulated too:
what offload gains is said, not supposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.rules import check
from planner.space import recompute_choices
from planner.stage_plan.even_out import alike_columns
from planner.stage_plan.priced import intervals, under
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Intervals, Modules, Setting, StageChoice, StageSolution
from sim import run
from sim.build.order import placement
from sim.report import Report
from sim.scenario import Scenario

FORM = "(sum of fill over virtual stages) / v + (m - 1 / v) x (of each chunk the slowest stage, added up)"
FORM_IN_TURN = "m x (of the two virtual stages of the slowest stage their passes, alone and paired as they come)"
FORM_TWICE = FORM_IN_TURN.replace("m x", "m / 2 x")  # each way half of the micro-batches
MOST_COLUMNS = 3000  # of a programme with virtual stages: more take minutes, and the gap to the charged bound is said
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A simulated step, and the setting of its stages."""

    report: Report
    setting: Setting


@dataclass(frozen=True, kw_only=True)
class StageAnswer:
    """together: one setting for all stages, which a plan has; apart: one for each stage, which a plan cannot say yet
    (None with virtual stages: not asked). before: the fastest step of the plan's own stages that fits under any of the
    options, None where none fits; after: the step of `together`. kept, kept_step: the same two where nothing goes to
    the host; None where `together` sends nothing there by choice, or where no such stages fit. alike: `together` is the
    optimum of virtual stages that hold about as many layers as each other, as the one of any takes longer in an event
    run.
    """

    together: StageSolution
    apart: StageSolution | None
    kept: StageSolution | None
    options: tuple[Setting, ...]
    num_micro_batches: int
    even: Step | None
    chosen: Step
    kept_step: Step | None
    alike: bool = False

    @property
    def before(self) -> Report | None:
        """The step of the plan's own stages."""
        return None if self.even is None else self.even.report

    @property
    def after(self) -> Report:
        """The step of the chosen stages."""
        return self.chosen.report

    @property
    def searched(self) -> bool:
        """Whether what goes to the host was a choice."""
        return any(each.offload is not None for each in self.options)

    @property
    def better(self) -> bool:
        """Whether the chosen stages give the shorter step in the simulator."""
        if not self.after.fits:
            return False
        return self.before is None or self.after.step_s.value < self.before.step_s.value

    @property
    def adopted(self) -> Report | None:
        """The faster of the two steps; None where neither fits."""
        return self.after if self.better else self.before

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, SI units."""
        more: dict[str, Any] = {}
        if self.searched:
            more = {
                "options": [{"recompute": list(o.recompute), "offload": list(o.offload or ())} for o in self.options],
                "without_offload": None if self.kept is None else _solution(self.kept),
                "after_without_offload": None if self.kept_step is None else _step(self.kept_step),
            }
        return {
            "closed_form": {"v": FORM_IN_TURN, "both": FORM_TWICE}.get(placement(self.after.plan.schedule), FORM),
            "num_micro_batches": self.num_micro_batches,
            "alike": self.alike,
            "recompute_options": [list(each) for each in dict.fromkeys(o.recompute for o in self.options)],
            "together": _solution(self.together),
            "apart": None if self.apart is None else _solution(self.apart),
            "before": None if self.even is None else _step(self.even),
            "after": _step(self.chosen),
            "adopted": "stages" if self.better else "even" if self.before is not None else None,
            **more,
        }


def _solution(solution: StageSolution) -> dict[str, Any]:
    """All but the clock, which is beside the answer."""
    out = asdict(solution)
    if solution.choice is not None:
        out["choice"] = _choice(solution.choice)
    return out | {"timing": {"seconds": out.pop("seconds")}}


def _choice(choice: StageChoice) -> dict[str, Any]:
    """Settings as lists of modules; offload only where it was a choice."""
    said: dict[str, Any] = {"recompute": [list(each) for each in choice.recompute]}
    if any(each.offload is not None for each in choice.settings):
        said["offload"] = [list(each.offload or ()) for each in choice.settings]
    rest = asdict(choice)
    rest.pop("settings")
    return {"counts": rest.pop("counts"), **said, **rest}


def _step(made: Step) -> dict[str, Any]:
    report, step = made.report, made.report.step_s
    offload = {} if made.setting.offload is None else {"offload": list(made.setting.offload)}
    return {
        "label": report.plan.label(), "stages": list(report.stages), "recompute": list(report.plan.recompute),
        **offload, "pipeline_layout": report.pipeline_layout, "fits": report.fits,
        "peak_mem_bytes": report.peak_mem_bytes, "step_s": {"value": step.value, "low": step.low, "high": step.high},
    }  # fmt: skip


def best_stages(
    scenario: Scenario, *, target: str, tried: Sequence[Setting] | None = None, seed: int = 0,
    progress: Progress = lambda text: None,
) -> StageAnswer:  # fmt: skip
    """Stages and settings of a plan; the plan's own stages are the ones compared with. tried: the settings to choose
    among (None: recompute worth trying), of which those that the target runs are. Raises UserError where no stages
    fit."""
    if tried is None:
        tried = [Setting(recompute=each) for each in recompute_choices(scenario.model, scenario.software)]
    options = _allowed(scenario, tried, target)
    progress("pricing")
    columns = intervals(scenario, options)
    progress("solving")
    together = _together(columns, seed)
    if together.choice is None:
        why = "no stages were found before a limit" if together.status == "limit" else "no stages fit"
        recomputes = len({each.recompute for each in options})
        more = f", {len(options)} with offload" if recomputes < len(options) else ""
        raise UserError(
            f"{why} in {columns.capacity_bytes.max() / 2**30:.1f} GiB under {recomputes} recompute settings{more}; "
            "raise --pp, --tp or --ep, lower --micro-batch, or use more --gpus",
            where=scenario.plan.label(),
        )
    apart = solve_stages(columns, per_stage=True, seed=seed) if columns.vpp == 1 and columns.placed == "loop" else None
    progress("simulating")
    chosen, alike = _simulated(scenario, together.choice, target), False
    if columns.vpp > 1 and columns.placed == "loop":
        progress("solving virtual stages that are alike")
        few = alike_columns(columns)
        other = _together(few, seed)
        step = None if other.choice is None else _simulated(scenario, other.choice, target)
        if step is not None and _order(step) < _order(chosen):
            together, chosen, columns, alike = other, step, few, True
    kept = kept_step = None
    if together.choice is not None and together.choice.offloads:
        kept = _together(_without_offload(columns), seed)
        kept_step = None if kept.choice is None else _simulated(scenario, kept.choice, target)
    return StageAnswer(
        together=together, apart=apart, kept=None if kept_step is None else kept, options=tuple(options),
        num_micro_batches=columns.num_micro_batches, even=_even(scenario, options), chosen=chosen,
        kept_step=kept_step, alike=alike,
    )  # fmt: skip


def _together(columns: Intervals, seed: int) -> StageSolution:
    return solve_stages(columns, seed=seed, most_columns=MOST_COLUMNS if columns.vpp > 1 else None)


def _order(step: Step) -> tuple[bool, float]:
    """Steps that fit first, the shortest of them."""
    return not step.report.fits, step.report.step_s.value


def _without_offload(columns: Intervals) -> Intervals:
    """The columns of options that send nothing to the host."""
    stays = np.array([not option.offload for option in columns.options])
    return columns.take(np.flatnonzero(stays[columns.option]))


def options_of(scenario: Scenario, *, target: str, recompute: Modules | None = None) -> list[Setting]:
    """Recompute settings of a layout that the target runs: `recompute` alone, or (None) those worth trying. Raises
    UserError with the rules that break where there is none."""
    tried = (recompute,) if recompute is not None else recompute_choices(scenario.model, scenario.software)
    return _allowed(scenario, [Setting(recompute=each) for each in tried], target)


def _allowed(scenario: Scenario, tried: Sequence[Setting], target: str) -> list[Setting]:
    """The settings that the target runs. Raises UserError with the rules that break where there is none."""
    options = [each for each in tried if not _broken(under(scenario, each), target)]
    if not options:
        raise UserError(_broken(under(scenario, tried[0]), target), where=scenario.plan.label())
    return options


def laid_out(scenario: Scenario, choice: StageChoice, target: str) -> Scenario:
    """The scenario under the chosen stages and setting. Raises UserError with the rules of the target it breaks."""
    chosen = under(scenario, choice.settings[0], stages=choice.counts, account_ends=False)
    problems = _broken(chosen, target)
    if problems:
        raise UserError(problems, where=f"stages {list(choice.counts)}")
    return chosen


def _simulated(scenario: Scenario, choice: StageChoice, target: str) -> Step:
    report = run.simulate(laid_out(scenario, choice, target), trace=False)
    return Step(report=report, setting=choice.settings[0])


def _broken(scenario: Scenario, target: str) -> list[str]:
    """Rules of the target that a scenario's plan breaks."""
    s = scenario
    found = check(s.plan, s.model, s.cluster, s.software, s.workload, target=target, ranks=s.ranks)
    return [str(violation) for violation in found]


def _even(scenario: Scenario, options: Sequence[Setting]) -> Step | None:
    """The fastest step of the plan's own stages under one of the options; None where none fits."""
    steps = [Step(report=run.simulate(under(scenario, each), trace=False), setting=each) for each in options]
    fit = [step for step in steps if step.report.fits]
    # of equal steps the one that sends less to the host
    return min(
        fit, key=lambda s: (s.report.step_s.value, len(s.setting.offload or ()), s.setting.recompute), default=None
    )
