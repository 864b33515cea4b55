"""Tables of an answer over several types of devices: plans, stages of the first one, pools by themselves, the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.cli import output


def print_mixed(data: Mapping[str, Any]) -> None:
    """Print an answer of `planner.mixed.mixfile.mixed_json`."""
    from dashboards.style import gib_text, interval_text, seconds_text
    from planner.cli.tables import grid, notes, rests_on
    from sim.report import Estimate

    screen = output.console()
    rows = []
    for plan in data["plans"]:
        of_stage, even = plan["pool_of_stage"], plan["even_s"]
        pools = " | ".join(f"{name} x{of_stage.count(name)}" for name in dict.fromkeys(of_stage))
        rows.append((
            str(plan["rank"]), plan["label"], pools, " ".join(str(sum(s["layers"])) for s in plan["stage_loads"]),
            ", ".join(plan["plan"]["recompute"]) or "none", interval_text(Estimate(**plan["step_s"])),
            "" if even is None else seconds_text(even),
            f"{gib_text(plan['peak_mem_bytes'])}/{gib_text(plan['usable_mem_bytes'])}",
        ))  # fmt: skip
    headers = ("#", "plan", "stages on", "layers of each stage", "recompute", "step", "even layers", "GiB")
    total = sum(pool["devices"] for pool in data["pools"])
    title = f"{data['model']} on {total:,} devices of {len(data['pools'])} pools"
    screen.print(grid(title, headers, rows, left=("plan", "stages on", "layers of each stage", "recompute")))
    first = data["plans"][0]
    lines = [
        (
            str(at), load["pool"], " ".join(map(str, load["layers"])), seconds_text(load["busy_s"]),
            f"{load['busy_s'] / first['step_s']['value']:.0%}",
            f"{gib_text(load['peak_bytes'])}/{gib_text(load['usable_bytes'])}",
        )
        for at, load in enumerate(first["stage_loads"])
    ]  # fmt: skip
    names = ("stage", "pool", "layers" if first["plan"]["vpp"] == 1 else "layers of each virtual stage", "works",
             "of the step", "GiB")  # fmt: skip
    screen.print()
    screen.print(grid("Stages of the first plan", names, lines, left=("pool", names[2])))
    screen.print(f"\nLayout of the first plan: {first['pipeline_layout']}", markup=False)
    screen.print()
    lone = []
    for pool in data["pools"]:
        alone = pool["alone"]
        said = (alone["why"], "") if alone["step_s"] is None else (alone["label"], seconds_text(alone["step_s"]))
        lone.append((pool["cluster"], f"{pool['devices']:,}", *said))
    screen.print(grid("Each pool by itself", ("pool", "# GPUs", "plan", "step"), lone, left=("plan",)))
    search = data["search"]
    why = (
        "no layout that is left could be faster" if search["stopped"] == "bound" else "stopped at the limit of layouts"
    )
    screen.print(
        f"\n{search['raw']:,} candidates, {search['legal']:,} may fit, stages of {search['tried']} chosen: {why}. No "
        f"layout is faster than {seconds_text(search['bound_s'])}, whatever its stages (gap {search['gap']:.1%})."
    )
    notes(screen, "The first plan rests on", rests_on(first["provenance"]))
    notes(screen, "Warnings", data["warnings"])
