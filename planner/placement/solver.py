"""Small mixed-integer programmes through PuLP with HiGHS: honest status, bound of the solver, work limits only.

PuLP calls a run that stopped at a limit "Optimal"; what counts here is what HiGHS itself says, its dual bound, and an
objective recomputed by the caller from the values. No limit is a clock: the same input gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

MOST_NODES = 2000
RELATIVE_GAP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Solved:
    """status: "optimal", "limit" or "infeasible"; bound: the solver's dual bound."""

    status: str
    objective: float
    bound: float
    nodes: int


def solve(problem: Any, *, nodes: int = MOST_NODES, gap: float = RELATIVE_GAP, seed: int = 0) -> Solved:
    """Run HiGHS on a PuLP minimisation in place; values are in its variables unless the status is infeasible."""
    import pulp

    solver = pulp.HiGHS(msg=False, threads=1, gapRel=gap, mip_max_nodes=nodes, random_seed=seed)
    solver.createAndConfigureSolver(problem)  # its own solve() knows no node limit and fails on one
    solver.buildSolverModel(problem)
    solver.callSolver(problem)
    model = problem.solverModel
    info, values = model.getInfo(), model.getSolution().col_value
    said = str(model.modelStatusToString(model.getModelStatus()))
    feasible = info.primal_solution_status == 2
    status = "optimal" if said == "Optimal" else "limit" if feasible else "infeasible"
    if feasible:
        for variable in problem.variables():
            variable.varValue = values[variable.index]
    relaxed = info.mip_node_count < 0  # a linear programme has no dual bound of its own
    bound = info.objective_function_value if relaxed else info.mip_dual_bound
    return Solved(
        status=status, objective=float(info.objective_function_value), bound=float(bound),
        nodes=max(0, int(info.mip_node_count)),
    )  # fmt: skip


def solver_name() -> str:
    """Solver and version, as the certificate names them."""
    return f"HiGHS {version('highspy')} through PuLP {version('pulp')}"
