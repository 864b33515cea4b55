"""Plan: search the layouts of a question, see what each trades for what, open one, take it away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import figures_plans, frame, frame_jobs, plan_rows
from dashboards.opened import MANGLED, SHOWN, open_record
from dashboards.plan_points import MEASURES, PlanPoint, points_of
from dashboards.state import LAYOUT, Knobs
from dashboards.style import gib_text, seconds_text, significant
from dashboards.views import plan_exports
from hwprofiles.errors import UserError
from planner.goals import OBJECTIVES
from planner.question.asked import options_of
from planner.question.money import AskedPlan
from sim.mesh import DEFAULT_ORDER

TITLE, ICON = "Plan", "auto_awesome"
MAX_TEXT = 60
RUN = ("objective", "tokens", "max_gpus", "deadline", "budget", "price")
FAILURES = ("mtbf", "restart", "storage", "checkpoint_cost", "checkpoint_interval", "slow_share", "slow_factor")
_EXAMPLES = {
    "tokens": "15T", "max_gpus": "256", "deadline": "60 day", "budget": "2M", "price": "2.5 USD/h", "mtbf": "8000 h",
    "restart": "10 min", "storage": "200 GB/s", "checkpoint_cost": "30 s", "checkpoint_interval": "60 min",
    "slow_share": "0.001", "slow_factor": "1.1",
}  # fmt: skip
_AXES = ("time, memory", "time, usd", "memory, usd", "gpus, time", "gpus, usd", "gpus, memory")


def show(page: frame.Page) -> None:
    """Draw the view."""
    knobs = page.knobs
    st.subheader("The best plans of a question", anchor=False)
    st.caption(
        "Model, cluster, batch and routing are those on the left. The search is free in every choice of the layout "
        "that is not kept below; it simulates in order of a lower bound, so that it can prove its answer."
    )
    money = _goal()
    kept = _kept(knobs)
    payload = {"case": asked_of(knobs, kept).case(), "money": money}
    start = st.button("Search", icon=":material/search:", type="primary")
    start |= bool(st.session_state.pop("search", False))
    data = frame_jobs.result_of("plan", "plan", payload, start=start)
    if data is not None:
        st.session_state[SHOWN] = (payload, data)
    shown = st.session_state.get(SHOWN)
    if shown is None:
        return
    asked, data = shown
    if asked is None:
        st.info("This is the plan file that was loaded at the side. Search for an answer of today.",
                icon=":material/draft:")  # fmt: skip
    elif asked != payload:
        st.info("The question has changed since; this is the answer to the one before. Search again for the new one.",
                icon=":material/history:")  # fmt: skip
    try:
        _answer(knobs, data)
    except MANGLED as error:
        if asked is not None:  # ours, not of a stranger's file
            raise
        raise UserError(f"the plan file lacks or mangles a field ({type(error).__name__}); write it again with "
                        "`moecast plan --out`", where="plan file") from None  # fmt: skip


def asked_of(knobs: Knobs, kept: Sequence[str]) -> Knobs:
    """The knobs of a search: free in the layout but for what is kept, and for the plans to list."""
    return knobs.without(*(name for name in LAYOUT if name not in kept), "plan")


# ---------------------------------------------------------------- the question


def _goal() -> dict[str, str]:
    """What a whole run may take: typed here, held in the URL."""
    options = options_of(AskedPlan)
    found: dict[str, str] = {}
    columns = st.columns(3)
    for at, name in enumerate(RUN):
        with columns[at % 3]:
            _goal_field(name, options[name].text, found)
    with st.expander("Failures, checkpoints and slow nodes", icon=":material/heart_broken:"):
        columns = st.columns(3)
        for at, name in enumerate(FAILURES):
            with columns[at % 3]:
                _goal_field(name, options[name].text, found)
    return found


def _goal_field(name: str, text: str, found: dict[str, str]) -> None:
    now = st.query_params.get(f"goal.{name}", "")[:MAX_TEXT]
    key = f"goal-{name}"
    words = name.replace("_", " ").capitalize().replace("gpus", "GPUs").replace("Mtbf", "MTBF of a node")
    if name == "objective":
        st.session_state[key] = now if now in OBJECTIVES else OBJECTIVES[0]
        st.selectbox(words, OBJECTIVES, key=key, help=text, on_change=_typed, args=(name,))
        now = "" if st.session_state[key] == OBJECTIVES[0] else st.session_state[key]
    else:
        st.session_state[key] = now
        st.text_input(words, key=key, help=text, max_chars=MAX_TEXT, placeholder=f"such as {_EXAMPLES[name]}",
                      on_change=_typed, args=(name,))  # fmt: skip
    if now:
        found[name] = now


def _typed(name: str) -> None:
    text = str(st.session_state[f"goal-{name}"]).strip()[:MAX_TEXT]
    frame.write_query(frame.read_page().knobs, **{f"goal.{name}": None if text in ("", OBJECTIVES[0]) else text})


def _kept(knobs: Knobs) -> tuple[str, ...]:
    """Choices of the layout that the search must keep, of those that are set."""
    there = [name for name in LAYOUT if knobs.get(name)]
    said = [name for name in st.query_params.get("keep", "").split(",") if name in there]
    left, right = st.columns([2, 1])
    st.session_state["keep-layout"] = said
    with left:
        kept = st.multiselect(
            "Keep from the layout on the left", there, key="keep-layout", format_func=lambda n: f"{n} {knobs.get(n)}",
            placeholder="nothing: every choice is free", on_change=_keep,
        )  # fmt: skip
    with right:
        now = knobs.get("top", "5")
        st.session_state["knob-top"] = now
        st.selectbox("Plans to list", list(dict.fromkeys(("5", "10", "20", "40", now))), key="knob-top",
                     on_change=_list, help="More plans take more simulated steps to prove.",
                     accept_new_options=True)  # fmt: skip
    return tuple(kept)


def _keep() -> None:
    frame.write_query(frame.read_page().knobs, keep=",".join(st.session_state["keep-layout"]) or None)


def _list() -> None:
    frame.set_knobs({"top": st.session_state["knob-top"] or None})


# ---------------------------------------------------------------- the answer


def _answer(knobs: Knobs, data: Mapping[str, Any]) -> None:
    best, points = data["plans"][0], points_of(data)
    if said := stopped_words(data["search"]):
        st.warning(said, icon=":material/stop_circle:")
    usable = float(best["usable_mem_bytes"])
    frame.tiles(_tiles(data, points))
    st.caption(f"**{certificate(data)}**  {plan_rows.search_line(data['search'])}")
    for line in data["warnings"]:
        st.caption(f":material/warning: {frame.plain(line)}")
    st.markdown("##### What the plans trade")
    x, y = _axes(points)
    st.caption("Click a point to open its plan: the layout on the left becomes that of the point.")
    clicked = frame.figure(figures_plans.trade(points, x, y, usable), figures_plans.trade_words(points),
                           f"trade-{x}-{y}", select=True)  # fmt: skip
    st.caption(frame.plain(figures_plans.choices_words(points)))
    clicked = [*clicked, *frame.figure(figures_plans.choices(points), figures_plans.choices_words(points), "choices",
                                       select=True)]  # fmt: skip
    _open(knobs, data, clicked)
    st.markdown("##### Plans listed")
    headers, rows = plan_rows.plan_grid(data["plans"], usable)
    frame.table(headers, rows, left=("recompute", "schedule", "rank order"))
    _choose(knobs, data, points)
    plan_exports.show(knobs, data)
    _counts(data)
    st.markdown("##### What was ruled out")
    frame.figure(figures_plans.ruled_out(data), figures_plans.ruled_out_words(data), "ruled-out", caption=True)
    _why(data)


def stopped_words(search: Mapping[str, Any]) -> str:
    """What a search that was interrupted leaves, in words; empty for one that ended by itself."""
    if search.get("stopped") != "interrupted":
        return ""
    count, gap = int(search["simulated"]), float(search["gap"])
    ran = f"Search stopped after {count:,} simulated plan{'' if count == 1 else 's'}: these are the best of them."
    if search.get("certificate") == "void":
        return f"{ran} Nothing is proven of the rest."
    rest = (
        f"A plan up to {100 * gap:.1f} % faster may exist" if gap > 0 else "None of the rest is faster than the first"
    )
    return f"{ran} {rest}."


def certificate(data: Mapping[str, Any]) -> str:
    """What the search proves, in words."""
    from planner.explain import explain

    return explain(data).certificate.capitalize() + "."


def _tiles(data: Mapping[str, Any], points: Sequence[PlanPoint]) -> list[frame.Tile]:
    best = data["plans"][0]
    step, rate = best["step_s"], best["tokens_per_s_per_gpu"]
    front = sum(p.front for p in points)
    shown = [
        frame.Tile(name="best plan", value=str(best["label"]), note=f"on {data['inputs']['devices']:,} GPUs"),
        frame.Tile(name="step time", value=seconds_text(step["value"]),
                   note=f"80 %: {seconds_text(step['low'])} to {seconds_text(step['high'])}"),
        frame.Tile(name="tokens/s per GPU", value=significant(rate["value"]), note=f"MFU {best['mfu']['value']:.1%}"),
        frame.Tile(name="peak memory", value=gib_text(best["peak_mem_bytes"]),
                   note=f"of {gib_text(best['usable_mem_bytes'])} usable"),
        frame.Tile(name="plans to choose from", value=f"{len(points):,}", note=f"{front} on the Pareto front"),
    ]  # fmt: skip
    run = best.get("training")
    if run:
        days, usd = run["time_s"]["value"] / 86400, run["usd"]["value"]
        shown.append(
            frame.Tile(
                name="time to train", value=f"{significant(days)} days", note=f"{amount_text(run['tokens'])} tokens"
            )
        )
        shown.append(frame.Tile(name="price of the run", value=f"${usd:,.0f}", note=f"goodput {run['goodput']:.1%}"))
    elif (price := next((p.usd for p in points if p.best), None)) is not None:
        shown.append(frame.Tile(name="price", value=f"${significant(price)}", note="per 1e9 tokens"))
    return shown


def amount_text(tokens: float) -> str:
    """A number of tokens as one types it: 15T, 300B."""
    scale, unit = (1e12, "T") if tokens >= 1e12 else (1e9, "B") if tokens >= 1e9 else (1e6, "M")
    return f"{tokens / scale:,.4g}{unit}"


def _axes(points: Sequence[PlanPoint]) -> tuple[str, str]:
    several, priced = len({p.devices for p in points}) > 1, any(p.usd is not None for p in points)
    offered = [pair for pair in _AXES if (several or "gpus" not in pair) and (priced or "usd" not in pair)]

    def words(pair: str) -> str:
        x, _, y = pair.partition(", ")
        return f"{MEASURES[y].name} over {MEASURES[x].name}"

    chosen = frame.choice("Axes of the figure", offered, "axes", names={pair: words(pair) for pair in offered})
    x, _, y = chosen.partition(", ")
    return x, y


def _open(knobs: Knobs, data: Mapping[str, Any], clicked: Sequence[Mapping[str, Any]]) -> None:
    """Open what was clicked, once: what the visitor turns afterwards stands."""
    keys = [key for point in clicked if (key := _place(point.get("customdata"))) is not None]
    key = keys[-1] if keys else None
    if key == st.session_state.get("plan-clicked"):
        return
    st.session_state["plan-clicked"] = key
    if key is not None:
        _write(open_record(knobs, data, *key, layers=_layers(data)))


def _layers(data: Mapping[str, Any]) -> int:
    """Layers of the model of an answer."""
    return sum(data["plans"][0]["stages"])


def _place(customdata: Any) -> tuple[str, int] | None:
    """(part, index) that a figure gave a point."""
    values = list(customdata.values()) if isinstance(customdata, Mapping) else customdata
    if not isinstance(values, list | tuple) or len(values) != 2:
        return None
    part, index = values
    return (str(part), int(index)) if part in ("plans", "pareto") and isinstance(index, int | float) else None


def _write(knobs: Knobs) -> None:
    frame.write_query(knobs)
    st.rerun()


def _choose(knobs: Knobs, data: Mapping[str, Any], points: Sequence[PlanPoint]) -> None:
    """The same by keyboard: a list of all plans, and a button."""
    left, right, last = st.columns([4, 1.4, 1.4], vertical_alignment="bottom")
    names = [f"{significant(p.step_s, 4)} s · {p.label} · {p.recompute} · {p.devices:,} GPUs"
             + ("" if p.rank_order == DEFAULT_ORDER else f" · {p.rank_order}") for p in points]  # fmt: skip
    at = left.selectbox("Open a plan", range(len(points)), format_func=names.__getitem__, key="open-plan")
    if right.button("Open it", icon=":material/open_in_new:", width="stretch"):
        _write(open_record(knobs, data, points[at].part, points[at].index, layers=_layers(data)))
    if "what_if" in st.session_state.get("pages", {}):
        last.page_link(st.session_state["pages"]["what_if"], label="See it in What-if", icon=":material/tune:",
                       query_params=frame.query_here())  # fmt: skip


def _counts(data: Mapping[str, Any]) -> None:
    """The best plan of each count of GPUs, where several were tried; the certificate is of the chosen one's search."""
    counts = data.get("counts") or []
    if len(counts) < 2:
        return
    st.markdown("##### By number of GPUs")
    whole = bool((data["goal"] or {}).get("terms"))
    rows = []
    for count in counts:
        best = count["best"]
        if best is None:
            rows.append((f"{count['devices']:,}", "no plan", "", "", "", "", str(count["why"])[:80]))
            continue
        seconds = best["time_s"]
        time = "never" if seconds is None else f"{seconds / 86400:.4g} days" if whole else seconds_text(seconds)
        usd = "" if best["usd"] is None else f"${best['usd']:,.0f}" if whole else f"${significant(best['usd'])}"
        note = "chosen" if count["devices"] == data["inputs"]["devices"] else ""
        note = note if best["keeps"] else "beyond deadline or budget"
        rows.append((f"{count['devices']:,}", str(best["label"]), seconds_text(best["step_s"]), time, usd,
                     gib_text(best["peak_mem_bytes"]), note))  # fmt: skip
    headers = ("GPUs", "plan", "step", "to train" if whole else "time", "cost", "peak", "")
    frame.table(headers, rows, left=("plan", ""))


def _why(data: Mapping[str, Any]) -> None:
    from planner.explain import explain

    found = explain(data)
    with st.expander("Why this plan, and what came close", icon=":material/help:", expanded=True):
        if found.binding:
            frame.table(("what binds it",), [(line,) for line in found.binding])
        if found.near:
            rows = [(near.label, ", ".join(near.recompute) or "-", near.why) for near in found.near]
            frame.table(("close by", "recompute", "why not"), rows, left=("recompute", "why not"))
        if found.neighbours:
            rows = [(_change(n), str(n["what"]), _outcome(data, str(n["outcome"]))) for n in found.neighbours]
            frame.table(("one step aside", "what", "outcome"), rows, left=("what", "outcome"))


def _change(neighbour: Mapping[str, Any]) -> str:
    return str(neighbour["change"]).replace("micro_batch_seqs", "micro-batch")


def _outcome(data: Mapping[str, Any], name: str) -> str:
    """What came of a step aside: a rule by its text."""
    rule = (data.get("rules") or {}).get(name) or {}
    return f"against the rule: {rule['text']}" if rule.get("text") else name
