"""Sections of docs/accuracy.md on groups of cases: by setup, how sure the scores are, what is in the wrong order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from calibration.accuracy_rows import left_table, percent, table, value_text
from calibration.bootstrap import CLOSE, DRAWS, SHARE, intervals
from calibration.regret import mean_regret, sweeps
from calibration.score import errors, rank_groups
from calibration.validate import Row

Classes = Sequence[tuple[str, Callable[[Row], bool]]]
LOW_TAU = 0.7  # groups below this are listed
SHOWN = 6  # turned pairs of a group that are spelled out


def sure_section(cases: Sequence[Row], classes: Classes) -> list[str]:
    """Mean error, bias, p90 and share within 10 % with their bootstrap intervals."""
    rows = []
    for name, mine in classes:
        found = intervals([c for c in cases if mine(c)])
        if found:
            cells = [_sure(found["mape"]), _sure(found["bias"], sign=True), _sure(found["p90_ape"])]
            rows.append([name, *cells, _sure(found["close"])])
    return [
        "### How sure these scores are",
        f"In brackets, where a score lies in {100 * SHARE:.0f} % of {DRAWS:,} resamples that draw whole groups of "
        "one source and model: runs of a group share their mistakes, and another choice of models and sources would "
        "have given another score.",
        table(("class", "MAPE", "bias", "p90", f"within {100 * CLOSE:.0f} %"), rows),
    ]


def _sure(found: tuple[float, float, float], *, sign: bool = False) -> str:
    value, low, high = (percent(x, sign=sign) for x in found)
    return f"{value} ({low.removesuffix(' %')} to {high})"


def setup_section(cases: Sequence[Row]) -> list[str]:
    """One line per model, GPU and release."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for case in cases:
        groups[case.group.get("model", ""), case.group.get("gpu", ""), case.group.get("release", "")].append(case)
    rows = []
    for name, members in sorted(groups.items()):
        e = errors(members)
        rows.append([
            *name, e["cases"], _range(members, "measured"), _range(members, "predicted"), _ratios(members),
            percent(e["mape"]), percent(e["bias"], sign=True), percent(e["coverage"]),
        ])  # fmt: skip
    head = (
        "model", "GPU", "release", "cases", "measured", "predicted", "predicted / measured", "MAPE", "bias",
        "in interval",
    )  # fmt: skip
    return ["### By model, GPU and release", "Tokens/s per GPU, lowest to highest case.", left_table(head, rows)]


def _range(members: Sequence[Row], name: str) -> str:
    found = sorted(members, key=lambda r: getattr(r, name) or 0.0)
    first, last = (value_text(r, getattr(r, name)) for r in (found[0], found[-1]))
    return first if first == last else f"{first} to {last}"


def _ratios(members: Sequence[Row]) -> str:
    found = sorted(1.0 + (m.error or 0.0) for m in members)
    first, last = f"{found[0]:.2f}", f"{found[-1]:.2f}"
    return first if first == last else f"{first} to {last}"


def rank_section(ranked: Sequence[Row]) -> list[str]:
    """The groups that the prediction does not order as measured, with what it has in the wrong order."""
    groups = rank_groups(ranked)
    low = sorted((g for g in groups if g.tau < LOW_TAU), key=lambda g: (g.tau, g.name))
    if not low:
        return [f"No group has a tau below {LOW_TAU}."]
    rows = []
    for group in low:
        model, gpu, count, seq = group.name
        turned = [pair for pair in group.wrong if not _level(pair)]
        cells = [model, f"{gpu} × {count}", seq, len(group.cases), f"{group.tau:.2f}"]
        rows.append([*cells, len(group.wrong) - len(turned), len(turned), _spelled(turned)])
    head = ("model", "GPUs", "sequence", "cases", "tau", "level", "turned", "turned pairs")
    return [
        f"Groups with a tau below {LOW_TAU}, {len(low)} of {len(groups)}. `level`: pairs with one and the same "
        "prediction, most often runs of one configuration on systems or releases that differ in nothing the "
        "simulator is told. `turned`: pairs predicted in the other order, as slower < faster (measured; predicted), "
        "widest measured gap first.",
        left_table(head, rows),
    ]


def _level(pair: tuple[Row, Row]) -> bool:
    one, other = (row.predicted or 0.0 for row in pair)
    return math.isclose(one, other, rel_tol=1e-9)


def _spelled(pairs: Sequence[tuple[Row, Row]]) -> str:
    ordered = sorted(pairs, key=lambda p: (-(p[1].measured or 0.0) / (p[0].measured or 1.0), p[0].id, p[1].id))
    said = [
        f"{a.id} < {b.id} ({value_text(a, a.measured)} < {value_text(b, b.measured)}; "
        f"{value_text(a, a.predicted)} > {value_text(b, b.predicted)})"
        for a, b in ordered[:SHOWN]
    ]
    more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return "; ".join(said) + more


def regret_section(ranked: Sequence[Row]) -> list[str]:
    """What choosing the mapping predicted fastest costs on published sweeps, group by group."""
    found = sweeps(ranked)
    out = [
        "### Regret of the first choice",
        "Groups of equal model, GPU, GPU count, sequence, global batch, precision and release with at least three "
        "published mappings (degrees and micro-batch). The planner's first choice is the mapping predicted fastest "
        "among those predicted to fit; its regret is the share of the best measured tokens/s that it gives away. "
        "`blind`: the regret to expect of a mapping drawn at random. Figures derived from printed TFLOP/s count here, "
        "as in rank agreement.",
    ]
    if not found:
        return [*out, "No published sweep has three mappings."]
    rows = []
    for sweep in found:
        model, gpu, count, seq, batch, precision, release = sweep.name
        best, chosen = (f"{m.plan} ({m.measured:,.0f})" for m in (sweep.best, sweep.chosen))
        cells = [model, f"{gpu} × {count}", seq, batch, precision, release, len(sweep.mappings), best, chosen]
        rows.append([*cells, percent(sweep.regret), percent(sweep.blind)])
    head = ("model", "GPUs", "sequence", "batch", "precision", "release", "mappings", "best (tokens/s per GPU)",
            "first choice (tokens/s per GPU)", "regret", "blind")  # fmt: skip
    blind = sum(sweep.blind for sweep in found) / len(found)
    right = sum(sweep.chosen == sweep.best for sweep in found)
    out.append(
        f"Mean regret {percent(mean_regret(found))} over {len(found)} groups (blind {percent(blind)}); the first "
        f"choice is the best measured one in {right} of them."
    )
    return [*out, left_table(head, rows)]
