"""What is proved of a placement, and what others would have placed, as rows of text."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.style import bytes_text, seconds_text, significant
from planner.placement.records import PlacementResult, Range


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _gain(gain: Range) -> str:
    between = f"80 % interval {_percent(gain.low)} to {_percent(gain.high)}"
    return f"{_percent(gain.value)} ({between})" if gain.counts else f"none beyond its sampling error ({between})"


def certificate_rows(result: PlacementResult) -> list[tuple[str, str]]:
    """What is proved of an answer and what it gains, as (name, text)."""
    c = result.certificate
    share = c.objective <= 1.0 and c.objective_of.startswith("share")
    shown = _percent if share else (lambda x: significant(x, 4))
    rows = [
        ("decided by", c.objective_of),
        ("reached", shown(c.objective)),
        ("no placement is below", f"{shown(c.lower_bound)} ({c.bound_kind})"),
        ("gap", _percent(c.gap, 3) + (" (proved best)" if c.gap <= 0.0 else "")),
        ("fullest GPU over the mean", f"{c.max_over_mean:.4f}"),
        ("worst layer above its bound", _percent(c.worst_layer, 3)),
    ]
    for name, value in (
        ("flow that changes node", c.cross_node), ("flow that changes GPU", c.cross_gpu),
        ("co-active pairs on one node", c.same_node_pairs),
    ):  # fmt: skip
        if value is not None:
            rows.append((name, _percent(value)))
    if c.held_out is not None:
        rows.append(("gain on held-out counts", _gain(c.held_out)))
    if (t := c.time) is not None:
        rows += [
            ("experts and exchanges, all layers",
             f"{seconds_text(t.before_s)} before, {seconds_text(t.after_s)} after"),
            ("gain in seconds", _gain(t.gain)),
            ("step of one micro-batch",
             f"{seconds_text(t.step_before_s)} before, {seconds_text(t.step_after.value)} after"),
        ]  # fmt: skip
        if t.moved_bytes is not None and t.move_s is not None:
            back = t.pays_back_after_steps
            pays = "never pays back" if back is None else f"pays back after {back:.1f} steps"
            rows.append(("weights to move", f"{bytes_text(t.moved_bytes)} in {seconds_text(t.move_s)}; {pays}"))
    if result.replanned:
        rows.append(("experts that move", f"{c.moved_experts:,}"))
    rows.append(("solver, seed", f"{c.solver}, {c.seed}"))
    return rows + [("limit", text) for text in c.limits]


def against_rows(result: PlacementResult) -> list[dict[str, str]]:
    """The answer beside contiguous, random and other planners' placements, as rows of a table."""
    c = result.certificate
    ours = {"max_load": sum(f.max_load for f in result.layers) / len(result.layers)}
    ours |= {n: v for n in ("cross_node", "cross_gpu", "same_node_pairs") if (v := getattr(c, n)) is not None}
    return [
        {"placement": who} | {
            name.replace("_", " "): "–" if name not in figures
            else f"{figures[name]:,.1f}" if name == "max_load" else _percent(figures[name])
            for name in ours
        }
        for who, figures in [("this answer", ours), *c.baselines.items()]
    ]  # fmt: skip


def layer_rows(result: PlacementResult, most: int = 200) -> Sequence[dict[str, str | float]]:
    """Layers with the largest gap first."""
    worst = sorted(result.layers, key=lambda figure: (-figure.gap, figure.layer))[:most]
    return [
        {"layer": f.layer, "max load": round(f.max_load, 1), "bound": round(f.bound, 1),
         "gap %": round(100 * f.gap, 3), "bound by": f.bound_kind}
        for f in worst
    ]  # fmt: skip
