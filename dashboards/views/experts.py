"""Experts: how uneven they are, where to place them, and what is proved of the placement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from dashboards import figures_experts, frame, placement_rows, uploads, work_place
from dashboards import figures_placement as drawn
from dashboards.answers import Remembered, answer
from dashboards.frame_jobs import worked
from dashboards.work_place import AskedPlacement, asked_placement
from planner.placement.placefile import placement_from
from planner.placement.records import Placement

TITLE, ICON = "Experts", "hub"
PREFIX = "place-"  # of what the URL says of this view
KEPT = 4
EVEN = "balanced"
_FILES = {
    "loads": ("Counts", "layer,expert,count", "counts"),
    "transitions": ("Transitions", "layer,expert,next_expert,count", "counts"),
    "coactivation": ("Coactivation", "layer,expert_a,expert_b,count", "counts"),
    "previous": ("Placement in use", "a file of `moecast place --out`", "placement"),
}
_NUMBERS = {
    "gpus": ("GPUs of the expert-parallel group", "the scenario's EP"),
    "gpus_per_node": ("GPUs per node", "the scale-up domain"),
    "slots_per_gpu": ("Slots per GPU", "the fewest; more hold replicas"),
    "num_groups": ("Groups of experts", "1"),
    "max_moves": ("Moves at most", "any; with a placement in use"),
    "seed": ("Seed", "0"),
}
_CHOICES = {
    "traffic": ("Tokens travel", {"dispatch": "out and back", "chain": "layer to layer"}),
    "split": ("Shares of replicas", {"even": "even", "free": "free"}),
    "objective": ("Choose by", {"load": "the fullest GPU", "time": "seconds"}),
}


def _read(payload: str) -> AskedPlacement:
    return asked_placement(json.loads(payload))


_asked: Remembered[str, AskedPlacement] = Remembered(_read, KEPT)


def show(page: frame.Page) -> None:
    """Draw the view."""
    with frame.guard():
        _uneven(page)
    st.subheader("Place the experts", anchor=False)
    with frame.guard():
        files, options = _question()
        if "loads" not in files and page.knobs.get("routing", EVEN) == EVEN:
            st.caption(
                "Under even routing every placement is alike: choose a routing law at the side, or bring counts."
            )
            return
        payload = {"case": page.knobs.case(), "files": files, "options": options}
        asked = _asked(json.dumps(payload, sort_keys=True))
        instance = asked.instance
        st.caption(
            f"{instance.num_experts} experts in {instance.num_layers} MoE layers on {instance.gpus} GPUs of "
            f"{instance.num_nodes} {'node' if instance.num_nodes == 1 else 'nodes'}, {instance.slots_per_gpu} "
            f"{'slot' if instance.slots_per_gpu == 1 else 'slots'} each; counts: {instance.source}"
            + ("" if instance.transitions is None else ", with transitions")
            + ("" if instance.coactivation is None else ", with coactivation") + "."
        )  # fmt: skip
        if instance.slots_per_gpu == 1 and instance.num_nodes == 1:
            st.info(
                "Every GPU holds one expert and all are on one node: no placement can better that. Give 2 slots per "
                "GPU for replicas, or fewer GPUs.", icon=":material/lightbulb:",
            )  # fmt: skip
        data = worked("place", payload, "place", label="Place")
        if data is not None:
            _placed(page, asked, data)


def _uneven(page: frame.Page) -> None:
    """What uneven experts do to the scenario shown."""
    report = answer(page.knobs).report
    if report.imbalance is None:
        st.info(
            "Experts are even in this scenario. Choose a routing law at the side, or bring counts below.",
            icon=":material/balance:",
        )
        return
    frame.figure(figures_experts.cost_of_imbalance(report), figures_experts.cost_words(report), "cost", caption=True)
    if figures_experts.has_rank_load(report):
        words = figures_experts.rank_load_words(report)
        frame.figure(figures_experts.rank_load(report), words, "rank-load", caption=True)


# ---------------------------------------------------------------- the question


def _question() -> tuple[dict[str, str], dict[str, str]]:
    """(paths of the files brought, options as text), both from the URL."""
    tokens = {name: text for name in _FILES if (text := st.query_params.get(PREFIX + name))}
    with st.expander("Files: counts, transitions, coactivation, placement in use", expanded=bool(tokens)):
        for column, (name, (words, columns, kind)) in zip(st.columns(2) * 2, _FILES.items(), strict=True):
            with column:
                _file(name, words, columns, kind, tokens.get(name))
        st.caption("Without counts, those that the scenario's routing expects are placed.")
    chosen: dict[str, str] = {}
    with st.expander("Options of the placement", expanded=True):
        for column, (name, (words, usual)) in zip(st.columns(3) * 2, _NUMBERS.items(), strict=True):
            with column:
                chosen[name] = _typed(name, words, usual)
        for column, (name, (words, names)) in zip(st.columns(3), _CHOICES.items(), strict=True):
            with column:
                chosen[name] = frame.choice(words, list(names), PREFIX + name, names=names)
        left, middle, _ = st.columns(3)
        with left:
            chosen["seconds"] = _switched(
                "seconds", "Work out seconds too", "Event runs on this cluster, before and after."
            )
        with middle:
            chosen["held_out"] = _switched(
                "held_out", "Score on held-out counts", "Half of the counts are kept from the placement to score it on."
            )
    problems = {name: uploads.path(token) for name, token in tokens.items()}
    return {name: str(path) for name, path in problems.items()}, {k: v for k, v in chosen.items() if v}


def _file(name: str, words: str, columns: str, kind: str, token: str | None) -> None:
    found = st.file_uploader(
        f"{words} ({columns})", type=["json"] if kind == "placement" else ["csv"], key=f"file-{PREFIX}{name}",
        max_upload_size=uploads.MAX_FILE_BYTES // 2**20,
    )  # fmt: skip
    if found is not None and st.session_state.get(f"taken-{PREFIX}{name}") != found.file_id:
        with frame.guard():
            st.query_params[PREFIX + name] = uploads.add(kind, found.name, found.getvalue())
            st.session_state[f"taken-{PREFIX}{name}"] = found.file_id
            st.rerun()
    if token and st.button(f"Leave out {uploads.shown(token)}", key=f"drop-{name}", icon=":material/close:"):
        st.query_params.pop(PREFIX + name, None)
        st.rerun()


def _typed(name: str, words: str, usual: str) -> str:
    """A number as text; the URL holds it."""
    key = PREFIX + name
    now = st.query_params.get(key, "")
    st.session_state[f"typed-{key}"] = now
    st.text_input(words, key=f"typed-{key}", placeholder=usual, max_chars=12, on_change=partial(_keep, key))
    return str(now)


def _switched(name: str, words: str, tip: str) -> str:
    key = PREFIX + name
    now = st.query_params.get(key, "")
    st.session_state[f"typed-{key}"] = bool(now)
    st.toggle(words, key=f"typed-{key}", help=tip, on_change=partial(_keep, key))
    return "yes" if now else ""


def _keep(key: str) -> None:
    """Write what was typed or switched to the URL."""
    value = st.session_state[f"typed-{key}"]
    text = "yes" if value is True else str(value or "").strip()
    if text:
        st.query_params[key] = text
    else:
        st.query_params.pop(key, None)


# ---------------------------------------------------------------- the answer


def _placed(page: frame.Page, asked: AskedPlacement, data: Mapping[str, Any]) -> None:
    instance, after = asked.instance, placement_from(data, where="placement")[0]
    before = drawn.start_of(instance, asked.previous)
    if data["stopped"] != "done":
        st.warning("Stopped early: layers that were not reached are balanced greedily.", icon=":material/front_hand:")
    _tiles(asked, before, after, data)
    frame.figure(drawn.load_before_after(instance, before, after), drawn.load_words(instance, before, after), "load",
                 caption=True)  # fmt: skip
    frame.figure(drawn.traffic_before_after(instance, before, after), drawn.traffic_words(instance, before, after),
                 "nodes", caption=True)  # fmt: skip
    _if_known(drawn.fan_out_before_after(instance, before, after, asked.top_k),
              drawn.fan_out_words(instance, before, after, asked.top_k), "fan-out")  # fmt: skip
    _if_known(drawn.replicas(instance, after), drawn.replicas_words(instance, after), "replicas")
    _proof(data)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    frame.download("Placement (placement.json)", text, "placement.json", "application/json", "placement")
    _use(page, instance.gpus, text)


def _if_known(figure: go.Figure, words: str, key: str) -> None:
    """The figure, or only the words where there is nothing to draw."""
    if figure.data:
        frame.figure(figure, words, key, caption=True)
    else:
        st.caption(f"{figure.layout.title.text}: {words}")


def _tiles(asked: AskedPlacement, before: Placement, after: Placement, data: Mapping[str, Any]) -> None:
    instance = asked.instance
    load = [float(drawn.over_mean(instance, p).max(axis=1).mean()) for p in (before, after)]
    moved = [1.0 - float(drawn.traffic_between(instance, p).trace()) for p in (before, after)]
    change = load[1] / load[0] - 1.0
    c = data["certificate"]
    of = "node" if instance.num_nodes > 1 else "GPU"
    what = "the placement in use" if asked.previous is not None else "contiguous experts"
    frame.tiles([
        frame.Tile(name="fullest GPU over the mean", value=f"{load[1]:.3f}", note=f"{load[0]:.3f} with {what}",
                   delta=f"{change:+.1%}" if abs(change) >= 5e-4 else "as before",
                   better=None if abs(change) < 5e-4 else change < 0),
        frame.Tile(name="gap to the bound", value=f"{100 * c['gap']:.3f} %", note=str(c["bound_kind"])),
        frame.Tile(name=f"choices that change {of}", value=f"{moved[1]:.1%}", note=f"{moved[0]:.1%} before"),
        frame.Tile(name="slots for replicas", value=f"{instance.extra_slots:,}", note="of a layer"),
    ])  # fmt: skip


def _proof(data: Mapping[str, Any]) -> None:
    st.markdown("**Certificate**")
    frame.table(("what", "figure"), placement_rows.certificate_rows(data), left=("figure",))
    st.markdown("**Against other placements**")
    rows = placement_rows.against_rows(data)
    frame.table(list(rows[0]), [list(row.values()) for row in rows])
    with st.expander("Layers, largest gap first", icon=":material/layers:"):
        st.dataframe(placement_rows.layer_rows(data), hide_index=True)


def _use(page: frame.Page, gpus: int, text: str) -> None:
    """Put the placement into the scenario where it fits."""
    fits = gpus == work_place.default_gpus(page.knobs.values) and page.knobs.get("ep") == str(gpus)
    tip = "Simulates the step with it." if fits else f"The scenario's EP must be {gpus}, the GPUs of the placement."
    if st.button("Use in the scenario", icon=":material/place_item:", disabled=not fits, help=tip):
        frame.set_knobs({"placement": uploads.add("placement", "placement.json", text.encode())})
        st.rerun()
