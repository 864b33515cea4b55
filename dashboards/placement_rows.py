"""What is proved of a placement, and what others would have placed, as rows of text.

Read from the JSON of `moecast place --json` (`planner.placement.placefile.placement_json`), so that a stored placement
can be shown as well as a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboards.style import bytes_text, seconds_text, significant

Json = Mapping[str, Any]
_COMPARED = ("cross_node", "cross_gpu", "same_node_pairs")


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def _gain(gain: Json) -> str:
    between = f"80 % interval {_percent(gain['low'])} to {_percent(gain['high'])}"
    if gain["counts"]:
        return f"{_percent(gain['value'])} ({between})"
    return f"none beyond its sampling error ({between})"


def certificate_rows(data: Json) -> list[tuple[str, str]]:
    """What is proved of an answer and what it gains, as (name, text)."""
    c = data["certificate"]

    def shown(value: float) -> str:
        return _percent(value) if str(c["objective_of"]).startswith("share") else significant(value, 4)

    rows = [
        ("decided by", str(c["objective_of"])),
        ("reached", shown(c["objective"])),
        ("no placement is below", f"{shown(c['lower_bound'])} ({c['bound_kind']})"),
        ("gap", _percent(c["gap"], 3) + (" (proved best)" if c["gap"] <= 0.0 else "")),
        ("fullest GPU over the mean", f"{c['max_over_mean']:.4f}"),
        ("worst layer above its bound", _percent(c["worst_layer"], 3)),
    ]
    names = ("flow that changes node", "flow that changes GPU", "co-active pairs on one node")
    rows += [(name, _percent(c[key])) for name, key in zip(names, _COMPARED, strict=True) if c[key] is not None]
    if c["held_out"] is not None:
        rows.append(("gain on held-out counts", _gain(c["held_out"])))
    if (t := c["time"]) is not None:
        rows += [
            ("experts and exchanges, all layers",
             f"{seconds_text(t['before_range']['value'])} before, {seconds_text(t['after_range']['value'])} after"),
            ("gain in seconds", _gain(t["gain"])),
            ("step of one micro-batch",
             f"{seconds_text(t['step_before_s'])} before, {seconds_text(t['step_after']['value'])} after"),
        ]  # fmt: skip
        if t["moved_bytes"] is not None and t["move_s"] is not None:
            back = t["pays_back_after_steps"]
            pays = "never pays back" if back is None else f"pays back after {back:.1f} steps"
            rows.append(("weights to move", f"{bytes_text(t['moved_bytes'])} in {seconds_text(t['move_s'])}; {pays}"))
    if c["moved_experts"]:
        rows.append(("experts that move", f"{c['moved_experts']:,}"))
    rows.append(("solver, seed", f"{c['solver']}, {c['seed']}"))
    return rows + [("limit", str(text)) for text in c["limits"]]


def against_rows(data: Json) -> list[dict[str, str]]:
    """The answer beside contiguous, random and other planners' placements, as rows of a table."""
    c, layers = data["certificate"], data["layers"]
    ours = {"max_load": sum(each["max_load"] for each in layers) / len(layers)}
    ours |= {name: c[name] for name in _COMPARED if c[name] is not None}
    return [
        {"placement": who} | {
            name.replace("_", " "): "–" if name not in figures
            else f"{figures[name]:,.1f}" if name == "max_load" else _percent(figures[name])
            for name in ours
        }
        for who, figures in [("this answer", ours), *c["baselines"].items()]
    ]  # fmt: skip


def layer_rows(data: Json, most: int = 200) -> list[dict[str, str | float]]:
    """Layers with the largest gap first."""
    worst = sorted(data["layers"], key=lambda each: (-each["gap"], each["layer"]))[:most]
    return [
        {"layer": each["layer"], "max load": round(each["max_load"], 1), "bound": round(each["bound"], 1),
         "gap %": round(100 * each["gap"], 3), "bound by": each["bound_kind"]}
        for each in worst
    ]  # fmt: skip
