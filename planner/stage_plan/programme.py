"""The integer programme: one variable per interval column, a unit of flow from the first layer to the last.

min (1/v) sum fill_j z_j + (m - 1/v) sum_c tau_c; out of (slot 0, layer 0) flows 1, what comes into (slot, layer) goes
out. tau_c of a chunk is one of the distinct times of its columns, one binary u_k each, and on every slot of the chunk
sum_{j slower than tau_k} z_j + sum_{i <= k} u_i <= 1: with u fixed what is left is a shortest path, so the relaxation
is tight, where tau >= sum_j steady_j z_j would be met by halves of columns. With virtual stages memory is a row for
each moment of a stage. sum_c tau_c is no less than what a count of layers says. One setting of recompute and offload
for all stages: the flow has a copy per setting, a binary y_o opens one of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from planner.placement.solver import Solved, solve, solver_name
from planner.stage_plan.bounds import least_bottleneck_s, moved, simple_paths
from planner.stage_plan.chunked import Chunks, Rows, charged
from planner.stage_plan.dynamic import Paths, groups_of, sweep
from planner.stage_plan.pairs import solve_pairs
from planner.stage_plan.records import Floats, Intervals, Ints, StageSolution, choice_of

NODES = 200
SMALL = 1000  # columns of a programme that is run even where its answer is proved already
MANY = 20000  # columns of a programme of which those are left out that another setting beats on the same layers
GAP = 1e-9
SCALE = 1000.0  # the objective is near this number, so that absolute tolerances of the solver are small
ROUND = 1e-9


def solve_stages(
    columns: Intervals, *, per_stage: bool = False, seed: int = 0, nodes: int = NODES, most_columns: int | None = None,
    enough: float = GAP, cutoff_s: float = np.inf,
) -> StageSolution:  # fmt: skip
    """Best stages and settings. per_stage: each stage may have its own setting (else one for all).

    most_columns: with more of them left the programme is not run; then the bound is of the least fill and the least
    bottleneck, each by itself, or that of charged chunks, and without virtual stages the dynamic programme proves the
    answer. Nor is it run on many where those prove it. Of schedules whose stages hold both ends of the model a dynamic
    programme of their own says all (`planner.stage_plan.pairs`). enough: a gap that what is known may have, with which
    the programme is not run; cutoff_s: nothing dearer is looked for.
    """
    if columns.placed != "loop":
        return solve_pairs(columns)
    began = time.perf_counter()
    dynamic = sweep(columns, per_stage=per_stage) if columns.vpp == 1 else None
    groups = groups_of(columns, per_stage=per_stage)
    tables = [Paths(columns, options) for options in groups]
    least = [least_bottleneck_s(columns, options) for options in groups]
    known = simple_paths(columns, tables)
    chunks: list[Chunks] = []
    if columns.vpp > 1:
        chunks, found = _charged(columns, tables, known, cutoff_s)
        known += found
    empty = set(range(columns.slots)) - set(columns.slot.tolist())
    if empty or (columns.vpp == 1 and not known):
        return _nothing(columns, per_stage, began)
    best_s = min((columns.objective_s(path) for path in known), default=np.inf)
    wanted_s = min(best_s, cutoff_s)
    useful = _useful(columns, wanted_s, tables, least)
    if chunks:
        useful = np.intersect1d(useful, _through_chunks(chunks, wanted_s))
    if per_stage and columns.vpp == 1 and len(useful) > MANY:
        useful = unbeaten(columns, useful)
    kept = columns.take(useful)
    relaxed_s = min((each.least_s for each in chunks), default=-np.inf)
    if len(kept) > SMALL and best_s <= relaxed_s * (1.0 + enough):
        # a path that fits and costs no more than any does, memory charged: nothing is left to choose
        proved = best_s <= relaxed_s * (1.0 + GAP)
        solved = Solved(status="optimal" if proved else "limit", objective=best_s, bound=relaxed_s, nodes=0)
        path = None
    elif relaxed_s > cutoff_s or (np.isfinite(cutoff_s) and not len(kept)):
        solved, path = (
            Solved(status="limit" if known else "infeasible", objective=best_s, bound=cutoff_s, nodes=0),
            None,
        )
    elif most_columns is not None and len(kept) > most_columns and dynamic is not None:
        exact_s = columns.objective_s(dynamic)
        solved, path = Solved(status="optimal", objective=exact_s, bound=exact_s, nodes=0), None
    elif most_columns is not None and len(kept) > most_columns:
        apart = [_apart_s(columns, *each) for each in zip(tables, least, strict=True)]
        solved, path = Solved(status="limit", objective=best_s, bound=min(apart), nodes=0), None
    else:
        solved, path = _run(kept, groups, least, seed, nodes)
        if solved.status == "infeasible" and known:  # nothing is below the cutoff
            solved = replace(solved, status="limit", bound=cutoff_s)
    paths = [*known, *([] if dynamic is None else [dynamic])]
    if path is not None:
        path = np.array([columns.place[_key(kept, i)] for i in path], dtype=np.int64)
        paths.append(path)
    paths = [p for p in paths if columns.fits(p)]
    if not paths:
        return _nothing(columns, per_stage, began, solved)
    # equal to rounding: the one that sends less to the host, then the one with fewer layers on the first stages
    sent = np.array([len(each.offload or ()) for each in columns.options])[columns.option]
    ordered = sorted(paths, key=lambda p: (int(sent[p].sum()), (columns.stop - columns.first)[p].tolist()))
    fastest_s = min(columns.objective_s(p) for p in ordered)
    chosen = next(p for p in ordered if columns.objective_s(p) <= fastest_s * (1.0 + ROUND))
    choice = choice_of(columns, chosen)
    bound = min(max(solved.bound, min(relaxed_s, cutoff_s)), choice.objective_s)
    proved = solved.status == "optimal"
    return StageSolution(
        status=solved.status if proved else "limit", choice=choice, bound_s=bound,
        gap=max(0.0, 1.0 - bound / choice.objective_s), programme_s=None if path is None else columns.objective_s(path),
        per_stage=per_stage, priced=len(columns), columns=len(kept),
        dynamic_s=None if dynamic is None else columns.objective_s(dynamic), nodes=solved.nodes,
        solver=solver_name(), seconds=time.perf_counter() - began,
    )  # fmt: skip


def _charged(
    columns: Intervals, tables: list[Paths], known: list[Ints], cutoff_s: float
) -> tuple[list[Chunks], list[Ints]]:  # fmt: skip
    """(the programme over chunks of each group under charges for memory, paths found that fit). The most promising
    group first; no charges where memory aside nothing of a group beats the paths of others."""
    rows = Rows(columns)
    free = [Chunks(table) for table in tables]
    out, found = list(free), list[Ints]()
    for number in sorted(range(len(tables)), key=lambda i: free[i].least_s):
        best_s = min((columns.objective_s(path) for path in (*known, *found)), default=np.inf)
        best_s = min(best_s, cutoff_s)
        if free[number].least_s > best_s or not np.isfinite(free[number].least_s):
            continue
        if len(tables[number].fill) == 1:
            path = moved(columns, tables[number])
            found += [] if path is None else [path]
            best_s = min([best_s, *(columns.objective_s(each) for each in found)])
        out[number], more = charged(tables[number], rows, best_s, free=free[number])
        found += [path for path in more if columns.fits(path)]
    return out, found


def _nothing(columns: Intervals, per_stage: bool, began: float, solved: Solved | None = None) -> StageSolution:
    unproved = solved is not None and solved.status == "limit"
    return StageSolution(
        status="limit" if unproved else "infeasible", choice=None, bound_s=None, gap=None, programme_s=None,
        dynamic_s=None, per_stage=per_stage, priced=len(columns), columns=len(columns),
        nodes=0 if solved is None else solved.nodes, solver=solver_name(),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _apart_s(columns: Intervals, paths: Paths, least_s: float) -> float:
    """Least fill and least bottleneck of any path of a group, each by itself."""
    shortest = paths.shortest()
    if shortest is None or not np.isfinite(least_s):
        return float("inf")
    return shortest[0] / columns.vpp + (columns.num_micro_batches - 1.0 / columns.vpp) * least_s


def _useful(columns: Intervals, best_s: float, tables: list[Paths], least: list[float]) -> Ints:
    """Columns that some path no dearer than best_s may use: cheapest way there, the column, cheapest way on."""
    weight = columns.num_micro_batches - 1.0 / columns.vpp
    keep = []
    for paths, floor_s in zip(tables, least, strict=True):
        fill, steady = paths.fill.min(axis=0), paths.steady.min(axis=0)
        with np.errstate(invalid="ignore"):  # no column, no difference: not a number, never kept
            through_s = _through(fill)[None] + (paths.fill - fill)
            mean = (_through(steady)[None] + (paths.steady - steady)) / columns.pp
            others = _others(steady, columns.pp)[None, :, None, None]
            cap = np.fmax(np.fmax(paths.steady + others, mean), floor_s)
            bound = through_s / columns.vpp + weight * cap
        good = (paths.at >= 0) & (bound <= best_s * (1.0 + ROUND))
        keep.append(paths.at[good])
    return np.unique(np.concatenate(keep))


def unbeaten(columns: Intervals, rows: Ints) -> Ints:
    """Rows but those that another setting of the same layers on the same stage beats, alone and in the steady state.

    Without virtual stages each column fits or not by itself, so that only its seconds count.
    """
    order = (columns.option, columns.steady_s, columns.fill_s, columns.stop, columns.first, columns.slot)
    kept: list[int] = []
    last, least = None, np.inf
    for i in rows[np.lexsort([each[rows] for each in order])].tolist():
        where = _key(columns, i)[:3]
        if where != last:
            last, least = where, np.inf
        if columns.steady_s[i] < least:
            least = float(columns.steady_s[i])
            kept.append(i)
    return np.array(sorted(kept), dtype=np.int64)


def _through_chunks(chunks: list[Chunks], best_s: float) -> Ints:
    """Columns that some path no dearer than best_s may use, whatever it holds beside them."""
    found = []
    for each in chunks:
        if each.least_s <= best_s * (1.0 + ROUND):
            at = each.paths.at
            found.append(at[(at >= 0) & (each.bounds() <= best_s * (1.0 + ROUND))])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _through(prices: Floats) -> Floats:
    """Least sum of any path through each (slot, first, stop); inf where there is none."""
    slots, size, _ = prices.shape
    before, after = np.full((slots, size), np.inf), np.full((slots, size), np.inf)
    before[0, 0], after[-1, -1] = 0.0, 0.0
    for slot in range(slots - 1):
        before[slot + 1] = (before[slot][:, None] + prices[slot]).min(axis=0)
        back = slots - 1 - slot
        after[back - 1] = (prices[back] + after[back][None, :]).min(axis=1)
    safe = np.where(np.isfinite(prices), prices, 0.0)
    found: Floats = before[:, :, None] + safe + after[:, None, :]
    return found


def _others(steady: Floats, pp: int) -> Floats:
    """[slot] the least steady time of the other slots of its stage."""
    least = steady.min(axis=(1, 2))
    stage = np.arange(len(least)) % pp
    total = np.array([least[stage == s].sum() for s in range(pp)])
    found: Floats = total[stage] - least
    return found


def _key(columns: Intervals, i: int) -> tuple[int, int, int, int]:
    return int(columns.slot[i]), int(columns.first[i]), int(columns.stop[i]), int(columns.option[i])


def _run(
    columns: Intervals, groups: tuple[tuple[int, ...], ...], least: list[float], seed: int, nodes: int
) -> tuple[Solved, Ints | None]:
    """What the solver says, in seconds, and the columns of its path."""
    import pulp

    unit = float(columns.fill_s.max() * columns.num_micro_batches) / SCALE if len(columns) else 1.0
    z = [pulp.LpVariable(f"z{i}", cat="Binary") for i in range(len(columns))]
    opened = [pulp.LpVariable(f"y{g}", cat="Binary") for g in range(len(groups))]
    problem = pulp.LpProblem("stages", pulp.LpMinimize)
    tau, terms = _bottleneck(pulp, problem, columns, z, unit)
    weight = columns.num_micro_batches - 1.0 / columns.vpp
    goal = [(v, float(s) / columns.vpp / unit) for v, s in zip(z, columns.fill_s, strict=True)]
    problem.setObjective(pulp.LpAffineExpression([*goal, *((v, weight * n) for v, n in tau)]))
    for name, expression in terms:
        problem += expression, name
    problem += pulp.lpSum(opened) == 1, "one_setting"
    floor = [(y, bound_s / unit) for y, bound_s in zip(opened, least, strict=True) if bound_s < np.inf]
    problem += pulp.LpAffineExpression(floor) <= pulp.LpAffineExpression(tau), "least_bottleneck"
    _flow(pulp, problem, columns, z, opened, groups)
    if columns.vpp > 1:
        _memory(pulp, problem, columns, z)
    solved = solve(problem, nodes=nodes, gap=GAP, seed=seed)
    said = Solved(
        status=solved.status, objective=solved.objective * unit, bound=solved.bound * unit, nodes=solved.nodes
    )
    if solved.status == "infeasible":
        return said, None
    taken = np.array([v.value() > 0.5 for v in z])
    rows = np.flatnonzero(taken)
    return said, rows[np.argsort(columns.slot[rows])]


def _bottleneck(
    pulp: Any, problem: Any, columns: Intervals, z: list[Any], unit: float
) -> tuple[list[tuple[Any, float]], list[tuple[str, Any]]]:
    """(variable, coefficient) whose sum is tau / unit, and the rows that hold it up."""
    tau, rows = [], []
    for chunk in range(columns.vpp):
        levels = np.unique(columns.steady_s[columns.slot // columns.pp == chunk])
        u = [pulp.LpVariable(f"u{chunk}_{k}", cat="Binary") for k in range(len(levels))]
        tau += [(v, float(level) / unit) for v, level in zip(u, levels, strict=True)]
        rows.append((f"one_level_{chunk}", pulp.lpSum(u) == 1))
        for slot in range(chunk * columns.pp, (chunk + 1) * columns.pp):
            mine = np.flatnonzero(columns.slot == slot)
            slower: list[int] = []
            for k in range(len(levels) - 2, -1, -1):
                new = mine[columns.steady_s[mine] == levels[k + 1]]
                slower += new.tolist()
                if len(new):
                    rows.append((f"slow_{slot}_{k}", pulp.lpSum([*(z[i] for i in slower), *u[: k + 1]]) <= 1))
    return tau, rows


def _flow(
    pulp: Any, problem: Any, columns: Intervals, z: list[Any], opened: list[Any], groups: tuple[tuple[int, ...], ...]
) -> None:
    """A unit of flow through the slots of the setting that is open."""
    group = {option: g for g, options in enumerate(groups) for option in options}
    out: dict[tuple[int, int, int], list[Any]] = {}
    into: dict[tuple[int, int, int], list[Any]] = {}
    for i in range(len(columns)):
        slot, first, stop, option = _key(columns, i)
        out.setdefault((group[option], slot, first), []).append(z[i])
        into.setdefault((group[option], slot + 1, stop), []).append(z[i])
    for g, opens in enumerate(opened):
        problem += pulp.lpSum(out.pop((g, 0, 0), [])) == opens, f"starts_{g}"
        problem += pulp.lpSum(into.pop((g, columns.slots, columns.num_layers), [])) == opens, f"ends_{g}"
    for node in sorted({*out, *into}):
        problem += pulp.lpSum(into.get(node, [])) == pulp.lpSum(out.get(node, [])), "flow_{}_{}_{}".format(*node)


def _memory(pulp: Any, problem: Any, columns: Intervals, z: list[Any]) -> None:
    """Bytes of every moment of every stage, as shares of what a rank may allocate, and may keep on its host."""
    rows = Rows(columns)
    for number, (name, share) in enumerate(zip(rows.names, rows.share, strict=True)):
        mine = np.flatnonzero(share)
        problem += pulp.LpAffineExpression(
            [(z[i], n) for i, n in zip(mine.tolist(), share[mine].tolist(), strict=True)]
        ) <= 1.0, f"{name}_{number}"  # fmt: skip
