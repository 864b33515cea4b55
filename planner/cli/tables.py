"""What the verbs print: rich tables of plan records, one report and an explanation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dashboards.plan_rows import (
    ORDER_HEADER,
    SCHEDULE_HEADER,
    STEP_HEADER,
    plan_grid,
    ranks_text,
    recompute_text,
    rejected_rows,
    room_text,
    search_line,
)
from dashboards.style import class_name, gib_text, interval_text, ordered, seconds_text, share_text, significant
from sim.mesh import DEFAULT_ORDER

if TYPE_CHECKING:
    from planner.explain import Explanation
    from sim.report import Report

MAX_REASONS = 8
MAX_NOTES = 6
HOTTEST = 8
_LEFT = (SCHEDULE_HEADER, "recompute", ORDER_HEADER)
_OPTIONAL = ("CP", "VPP", "ETP")
NARROW = 120
KINDS = ("assumed", "extrapolated", "interpolated", "measured")  # the weakest first


def grid(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = (), gap: int = 2
) -> Group:
    """A plain table: texts left (the first column and `left`), numbers right. Its title may be wider than it."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for i, header in enumerate(headers):
        is_left = header in left or (i == 0 and not header.startswith("#"))
        table.add_column(header, justify="left" if is_left else "right", header_style="bold cyan", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return Group(Text(title, style="bold"), table) if title else Group(table)


def notes(console: Console, title: str, lines: Sequence[str], most: int = MAX_NOTES) -> None:
    """A short list; the rest is counted."""
    if not lines:
        return
    console.print(f"\n[bold]{title}[/bold]")
    for line in lines[:most]:
        console.print(f"  - {escape(line)}")
    if len(lines) > most:
        console.print(f"  ... and {len(lines) - most} more (see --json)")


def rests_on(provenance: Sequence[str]) -> list[str]:
    """Provenance gathered by kind, the weakest first; what is partly weak stands with the weak."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    rest = []
    for line in provenance:
        what, _, kind = line.rpartition(": ")
        if kind not in kinds:
            rest.append(line)
        elif not any(what in kinds[weaker] for weaker in KINDS[: KINDS.index(kind) + 1]):
            kinds[kind].append(what)
    return [*(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names), *rest]


def plans_grid(records: Sequence[Mapping[str, Any]], usable_bytes: float, title: str, width: int) -> Group:
    """The plan table; on a narrow terminal degrees that are 1 everywhere and the interval are left out."""
    headers, rows = plan_grid(records, usable_bytes)
    keep = list(range(len(headers)))
    if width < NARROW:
        keep = [i for i in keep if headers[i] not in _OPTIONAL or any(row[i] != "1" for row in rows)]
        step, recompute = headers.index(STEP_HEADER), headers.index("recompute")
        headers[step] = "step s"
        for row in rows:
            row[step] = row[step].split(" (")[0]
            first, *more = row[recompute].split(", ")
            row[recompute] = f"{first} +{len(more)}" if more else first
    return grid(
        title,
        [headers[i] for i in keep],
        ([row[i] for i in keep] for row in rows),
        left=_LEFT,
        gap=1 if width < NARROW else 2,
    )


def print_plans(console: Console, data: Mapping[str, Any], best: Report, warnings: Sequence[str]) -> None:
    """The answer of `moecast plan`: plans, search, what was ruled out, what the numbers rest on."""
    title = f"{best.model} on {best.devices:,} devices of {best.cluster}, {best.software}"
    console.print(plans_grid(data["plans"], best.usable_mem_bytes, title, console.width))
    search = data["search"]
    seconds = data.get("timing", {}).get("seconds")
    took = "" if seconds is None else f" Took {seconds_text(seconds)}."
    if best.plan.pp > 1:
        console.print(f"\nStages of the first plan: {escape(best.pipeline_layout)}")
    print_ranks(console, best, data["inputs"]["target"])
    console.print(f"\n{search_line(search)}{took}")
    asked = data["inputs"]
    from planner.space import left_out

    unsearched = left_out(int(asked["workload"]["seq_tokens"]), asked["options"]["fixed"])
    if unsearched and "cp" not in asked["options"].get("searched", ()):
        console.print(unsearched, markup=False)
    print_rejected(console, search, data.get("rules", {}))
    print_imbalance(console, best)
    notes(console, "The first plan rests on", rests_on(best.provenance))
    notes(console, "Warnings", [*warnings, *best.warnings])


def print_ranks(console: Console, report: Report, target: str = "layout") -> None:
    """Rank order and node order of a plan where they are not the default, and how the trainer is told."""
    from planner.rules import RANK_ORDERS

    said = ranks_text(report.ranks)
    option = RANK_ORDERS[target].get(report.ranks.order, "")
    if said:
        console.print(f"{escape(said)}{f' ({option})' if option else ''}")


def print_rejected(console: Console, search: Mapping[str, Any], rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Candidates lost per rule, the most frequent first."""
    rows = rejected_rows(search)
    if not rows:
        return
    from planner.explain import NOT_RULES

    known = {**rules, **NOT_RULES}
    said = [(f"{count:,}", reason, str(known.get(reason, {}).get("text", ""))) for reason, count in rows[:MAX_REASONS]]
    if len(rows) > MAX_REASONS:
        rest = sum(count for _, count in rows[MAX_REASONS:])
        said.append((f"{rest:,}", f"{len(rows) - MAX_REASONS} more rules", "see --json"))
    console.print()
    console.print(grid("Ruled out", ("# lost", "rule", "what it says"), said, left=("rule", "what it says")))


def headline(report: Report) -> list[tuple[str, str]]:
    """(name, value) of the numbers people ask for first."""
    exposed_s = sum(report.exposed_comm_s.values())
    step = report.step_s
    scale, unit = (1.0, "s") if step.value >= 1 else (1e3, "ms")
    around = report.peak_mem
    spread = "" if around is None else f" ({around.low / 2**30:.1f}-{around.high / 2**30:.1f})"
    peak = f"{gib_text(report.peak_mem_bytes)}{spread} of {room_text(report)}"
    return [
        ("step time", interval_text(step, scale, unit)),
        ("tokens/s per GPU", interval_text(report.tokens_per_s_per_gpu)),
        ("model FLOP utilisation", interval_text(report.mfu, 100, "%")),
        ("TFLOP/s per GPU", significant(report.tflops_per_gpu)),
        ("peak memory", peak + ("" if report.fits else "  DOES NOT FIT")),
        ("pipeline bubble", f"{report.bubble_fraction:.1%} of the step"),
        ("exposed communication", f"{seconds_text(exposed_s)}, {exposed_s / step.value:.1%} of the step"),
        *([] if report.usd_per_step is None else [("cost of a step", f"{significant(report.usd_per_step)} USD")]),
    ]


def _recompute(modules: Sequence[str]) -> str:
    return f"recompute {recompute_text(modules)}" if modules else "no recompute"


def print_report(console: Console, report: Report) -> None:
    """The answer of `moecast simulate`."""
    title = f"{report.model} on {report.devices:,} devices of {report.cluster}, {report.software}"
    recompute = _recompute(report.plan.recompute)
    console.print(f"[bold]{escape(title)}[/bold]")
    console.print(f"{report.plan.label()}, {recompute}, {report.num_micro_batches} micro-batches per step")
    if report.plan.pp > 1:
        console.print(f"stages {escape(report.pipeline_layout)}")
    print_ranks(console, report)
    console.print()
    console.print(grid("", ("", "value (80 % interval)"), headline(report), left=("value (80 % interval)",)))
    total_s = sum(report.breakdown.values()) or 1.0
    shares = [
        (class_name(name), seconds_text(report.breakdown[name]), f"{report.breakdown[name] / total_s:.1%}")
        for name in ordered(name for name, value in report.breakdown.items() if value)
    ]
    console.print()
    console.print(
        grid("Where the time goes", ("slowest stage", "time", "share"), [*shares, ("step", seconds_text(total_s), "")])
    )
    console.print()
    console.print(memory_grid(report))
    if report.host_mem_bytes:
        have = gib_text(report.host_mem_capacity_bytes)
        console.print(f"Host memory of a node: {gib_text(report.host_mem_bytes)} offloaded, {have} there")
    if report.link_use:
        from dashboards.plan_rows import link_rows

        console.print()
        console.print(grid("Links", ("link", "bytes per device and step", "mean use"), link_rows(report)))
    print_imbalance(console, report)
    notes(console, "The numbers rest on", rests_on(report.provenance))
    notes(console, "Warnings", report.warnings)


def print_layers(console: Console, report: Report, layers: Mapping[str, Any]) -> None:
    """Step of the layer-level run beside that of the pipeline run above, and how long each lane waits."""
    rows = [
        (each["name"], f"{each['ranks']:,}", seconds_text(each["idle_s"]), f"{each['idle_s'] / layers['step_s']:.1%}")
        for each in layers["each"]
    ]
    console.print()
    console.print(
        f"Layer-level run (lanes: {layers['lanes']}): step {seconds_text(layers['step_s'])}; the figures above are of "
        f"the pipeline run, {seconds_text(report.step_s.value)}"
    )
    console.print(grid("Waiting", ("lane", "ranks", "neither computes nor sends", "share of the step"), rows))


def print_training(console: Console, training: Mapping[str, Any]) -> None:
    """What drawn packs and a batch ramp-up make of the step above (`simulate.training_json`)."""
    if packs := training.get("packs"):
        console.print(
            f"Packed documents: a token meets {packs['met_mean']:,.0f} tokens ({packs['met_p10']:,.0f} to "
            f"{packs['met_p90']:,.0f} by micro-batch); a step of drawn packs takes "
            f"{seconds_text(packs['drawn_step_s'])}, {packs['cost_share']:.1%} more than one of even packs"
        )
    if ramp := training.get("ramp_up"):
        rows = [(f"{x['global_batch_seqs']:,}", f"{x['steps']:,}", seconds_text(x["step_s"])) for x in ramp["levels"]]
        console.print(grid("Batch ramp-up", ("global batch", "steps", "step"), rows))
        console.print(
            f"{ramp['samples']:,} sequences in {ramp['steps']:,} steps: {ramp['seconds'] / 3600.0:,.1f} h, "
            f"{ramp['full_batch_s'] / 3600.0:,.1f} h at the full batch all along"
        )


def print_imbalance(console: Console, report: Report) -> None:
    """Cost of uneven experts, the noise of step and memory, and the load of the hottest ranks."""
    found = report.imbalance
    if found is None:
        return
    said = [
        ("hottest rank", f"{found.max_over_mean:.2f} x the mean, its fullest expert {found.fullest_over_mean:.2f} x"),
        ("cost of imbalance", f"{found.cost_share:.1%} over {seconds_text(found.balanced_step_s)} with even experts"),
        (
            "step, p10 / p50 / p90",
            " / ".join(map(seconds_text, (found.step_p10_s, found.step_p50_s, found.step_p90_s))),
        ),
        ("fullest rank, p50 / p99", f"{gib_text(found.peak_p50_bytes)} / {gib_text(found.peak_p99_bytes)}"),
        ("chance of out of memory", f"{share_text(found.oom_probability)} of steps"),
    ]
    if found.sampled_p10_s is not None and found.sampled_p50_s is not None and found.sampled_p90_s is not None:
        drawn = (found.sampled_p10_s, found.sampled_p50_s, found.sampled_p90_s)
        said.insert(3, (f"the same of {found.sampled_steps} drawn steps", " / ".join(map(seconds_text, drawn))))
    if found.dropped_share > 0.0:
        said.append(("dropped choices", f"{found.dropped_share:.2%}, worst layer {found.dropped_worst_layer:.2%}"))
    if found.stay_rank is not None and found.stay_node is not None:
        said.append(("stay on rank / node to the next layer", f"{found.stay_rank:.1%} / {found.stay_node:.1%}"))
    console.print()
    console.print(grid(f"Uneven experts, {found.source}", ("", "value"), said, left=("value",)))
    if not found.rank_load:
        return
    ranks = list(zip(*found.rank_load, strict=True))
    order = sorted(range(len(ranks)), key=lambda r: (-sum(ranks[r]), r))
    rows = [
        (f"rank {r}", f"{sum(ranks[r]) / len(ranks[r]):.2f}", f"{max(ranks[r]):.2f}", f"{min(ranks[r]):.2f}")
        for r in order[:HOTTEST]
    ]
    which = "" if len(ranks) <= HOTTEST else f" (the {HOTTEST} hottest of {len(ranks)} expert-parallel ranks)"
    headers = ("load over the mean", "all layers", "highest", "lowest")
    console.print()
    console.print(grid(f"Load per GPU{which}", headers, rows))


def memory_grid(report: Report) -> Group:
    """Memory by tag at the peak of the fullest stages, one column per stage (at most eight)."""
    totals = [sum(stage.values()) for stage in report.memory]
    shown = sorted(sorted(range(len(totals)), key=lambda i: -totals[i])[:8])
    tags = sorted({tag for stage in report.memory for tag in stage}, key=lambda t: -report.memory[0].get(t, 0.0))
    rows = [
        (tag.replace("_", " "), *(f"{report.memory[i].get(tag, 0.0) / 2**30:.2f}" for i in shown))
        for tag in tags
        if any(report.memory[i].get(tag, 0.0) for i in shown)
    ]
    total = ("total", *(f"{totals[i] / 2**30:.2f}" for i in shown))
    which = "" if len(shown) == len(totals) else f" (the {len(shown)} fullest of {len(totals)} stages)"
    return grid(f"Memory at the peak, GiB{which}", ("tag", *(f"stage {i}" for i in shown)), [*rows, total])


def print_explanation(console: Console, explanation: Explanation) -> None:
    """The answer of `moecast explain`."""
    recompute = _recompute(explanation.recompute)
    order = "" if explanation.rank_order == DEFAULT_ORDER else f", rank order {explanation.rank_order}"
    console.print(f"[bold]{explanation.label}[/bold], {recompute}{order}, step {seconds_text(explanation.step_s)}")
    if explanation.runs_with:
        console.print(f"Runs with {escape(explanation.runs_with)}")
    console.print(f"{escape(explanation.certificate)}\n")
    bars = [
        (class_name(bar.name), seconds_text(bar.seconds), f"{bar.share:.1%}", seconds_text(bar.until_s))
        for bar in explanation.waterfall
    ]
    console.print(grid("Where the time goes", ("class", "time", "share", "sum so far"), bars))
    notes(console, "What keeps it from being faster", explanation.binding, 10)
    if explanation.near:
        console.print()
        near = [
            (item.label, recompute_text(item.recompute), seconds_text(item.bound_s), item.why)
            for item in explanation.near
        ]
        console.print(grid("Not chosen", ("plan", "recompute", "lower bound", "why"), near, left=("recompute", "why")))
    if explanation.rejected:
        console.print()
        lost = [(f"{r.count:,}", f"{r.share:.1%}", r.reason, r.text, r.source) for r in explanation.rejected]
        headers = ("# lost", "share", "rule", "what it says", "source")
        console.print(grid("Ruled out", headers, lost, left=headers[2:]))
    notes(console, "Warnings", explanation.warnings)
