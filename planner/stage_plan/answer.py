"""The stage question answered: options that may run, the programme's choice, and simulated steps beside even stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwprofiles.errors import UserError
from planner.rules import check
from planner.space import recompute_choices
from planner.stage_plan.priced import intervals
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Modules, StageChoice, StageSolution
from sim import run
from sim.plan import Plan
from sim.report import Report
from sim.scenario import Scenario

FORM = "(sum of fill over virtual stages) / v + (m - 1 / v) x (of each chunk the slowest stage, added up)"
MOST_COLUMNS = 3000  # of a programme with virtual stages: more take minutes, and the gap to the charged bound is said
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StageAnswer:
    """together: one recompute setting for all stages, which a plan has; apart: one for each stage, which a plan cannot
    say yet (None with virtual stages: not asked). before: the fastest step of the plan's own stages that fits under
    any of the options, None where none fits; after: the step of `together`.
    """

    together: StageSolution
    apart: StageSolution | None
    options: tuple[Modules, ...]
    num_micro_batches: int
    before: Report | None
    after: Report

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
        return {
            "closed_form": FORM,
            "num_micro_batches": self.num_micro_batches,
            "recompute_options": [list(each) for each in self.options],
            "together": _solution(self.together),
            "apart": None if self.apart is None else _solution(self.apart),
            "before": None if self.before is None else _step(self.before),
            "after": _step(self.after),
            "adopted": "stages" if self.better else "even" if self.before is not None else None,
        }


def _solution(solution: StageSolution) -> dict[str, Any]:
    """All but the clock, which is beside the answer."""
    out = asdict(solution)
    return out | {"timing": {"seconds": out.pop("seconds")}}


def _step(report: Report) -> dict[str, Any]:
    step = report.step_s
    return {
        "label": report.plan.label(), "stages": list(report.stages), "recompute": list(report.plan.recompute),
        "pipeline_layout": report.pipeline_layout, "fits": report.fits, "peak_mem_bytes": report.peak_mem_bytes,
        "step_s": {"value": step.value, "low": step.low, "high": step.high},
    }  # fmt: skip


def best_stages(
    scenario: Scenario, *, target: str, recompute: Modules | None = None, seed: int = 0,
    progress: Progress = lambda text: None,
) -> StageAnswer:  # fmt: skip
    """Stages and recompute of a plan; the plan's own stages are the ones compared with. recompute: the only setting
    to use (None: those worth trying that the target runs). Raises UserError where no stages fit."""
    options = options_of(scenario, target=target, recompute=recompute)
    progress("pricing")
    columns = intervals(scenario, options)
    progress("solving")
    together = solve_stages(columns, seed=seed, most_columns=MOST_COLUMNS if columns.vpp > 1 else None)
    if together.choice is None:
        why = "no stages were found before a limit" if together.status == "limit" else "no stages fit"
        raise UserError(
            f"{why} in {columns.capacity_bytes.max() / 2**30:.1f} GiB under {len(options)} recompute settings; raise "
            "--pp, --tp or --ep, lower --micro-batch, or use more --gpus",
            where=scenario.plan.label(),
        )
    apart = solve_stages(columns, per_stage=True, seed=seed) if columns.vpp == 1 else None
    progress("simulating")
    chosen = laid_out(scenario, together.choice, target)
    return StageAnswer(
        together=together, apart=apart, options=tuple(options), num_micro_batches=columns.num_micro_batches,
        before=_even(scenario, options), after=run.simulate(chosen, trace=False),
    )  # fmt: skip


def options_of(scenario: Scenario, *, target: str, recompute: Modules | None = None) -> list[Modules]:
    """Recompute settings of a layout that the target runs: `recompute` alone, or (None) those worth trying. Raises
    UserError with the rules that break where there is none."""
    tried = (recompute,) if recompute is not None else recompute_choices(scenario.model, scenario.software)
    options = [each for each in tried if not _broken(_with(scenario, recompute=each), target)]
    if not options:
        raise UserError(_broken(_with(scenario, recompute=tried[0]), target), where=scenario.plan.label())
    return options


def laid_out(scenario: Scenario, choice: StageChoice, target: str) -> Scenario:
    """The scenario under the chosen stages and recompute. Raises UserError with the rules of the target it breaks."""
    chosen = _with(scenario, recompute=choice.recompute[0], stages=choice.counts, account_ends=False)
    problems = _broken(chosen, target)
    if problems:
        raise UserError(problems, where=f"stages {list(choice.counts)}")
    return chosen


def _with(scenario: Scenario, **changes: Any) -> Scenario:
    plan: Plan = replace(scenario.plan, **changes)
    return replace(scenario, plan=plan)


def _broken(scenario: Scenario, target: str) -> list[str]:
    """Rules of the target that a scenario's plan breaks."""
    s = scenario
    found = check(s.plan, s.model, s.cluster, s.software, s.workload, target=target, ranks=s.ranks)
    return [str(violation) for violation in found]


def _even(scenario: Scenario, options: Sequence[Modules]) -> Report | None:
    """The fastest step of the plan's own stages under one of the options; None where none fits."""
    reports = [run.simulate(_with(scenario, recompute=each), trace=False) for each in options]
    return min((r for r in reports if r.fits), key=lambda r: (r.step_s.value, r.plan.recompute), default=None)
