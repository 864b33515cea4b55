"""Sensitivity: what a little more of everything gives, two knobs at once, and the sweep of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboards import figures_knobs, frame, frame_jobs, uploads
from dashboards.answers import answer
from dashboards.figures_knobs import Cell, Grid
from dashboards.knob_values import MOST, Turn, at_first, payload, turns
from dashboards.style import seconds_text, significant
from planner.elastic import Gain
from planner.study.uploaded import study_rows

TITLE, ICON = "Sensitivity", "stacked_bar_chart"
_FIRST = ("ep", "pp")
_ROWS = 200


def show(page: frame.Page) -> None:
    """Draw the view."""
    st.subheader("What moves the step", anchor=False)
    with frame.guard():
        found = answer(page.knobs)
        st.caption(f"Of the plan {found.scenario.plan.label()}: {seconds_text(found.report.step_s.value)} per step.")
        _tornado(page)
        st.divider()
        _map(page)
    st.divider()
    _study()


# ---------------------------------------------------------------- tornado


def _tornado(page: frame.Page) -> None:
    case = page.knobs.case()
    st.markdown("##### A tenth more, a tenth less")
    rates = frame_jobs.result_of("gains", "gains", {"case": case}, unasked=True)
    wanted = st.toggle("Also search with a tenth more memory, and with one more node", key="with-sizes",
                       help="Three searches for the best plan; on a large machine they take minutes.")  # fmt: skip
    sizes = frame_jobs.result_of("sizes", "sizes", {"case": case}, unasked=True) if wanted else None
    if rates is None:
        return
    more, less = ([Gain(**gain) for gain in rates[name]] for name in ("more", "less"))
    if sizes is not None:
        more = [*more, *(Gain(**gain) for gain in sizes["gains"])]
        st.caption(
            f"Memory and nodes: against the best plan of a search on the machine as it is, {sizes['label']}, "
            f"{seconds_text(sizes['step_s'])}."
        )
    frame.figure(figures_knobs.tornado(more, less), figures_knobs.tornado_words(more, less), "tornado", caption=True)
    with st.expander("The same as numbers"):
        frame.table(
            ("rate", "by", "tokens/s", "step", "elasticity", "note"), _gain_rows([*more, *less]), left=("note",)
        )


def _gain_rows(gains: Sequence[Gain]) -> list[tuple[str, ...]]:
    return [
        (
            gain.what, f"× {gain.factor:.3g}", "" if gain.gain is None else f"{gain.gain:+.2%}",
            "" if gain.step_s is None else seconds_text(gain.step_s, 4),
            "" if gain.elasticity is None else f"{gain.elasticity:+.3f}", gain.note or gain.label,
        )
        for gain in gains
    ]  # fmt: skip


# ---------------------------------------------------------------- two knobs


def _map(page: frame.Page) -> None:
    st.markdown("##### Two knobs at once")
    st.caption("Each combination is simulated with everything else as it is on the left.")
    offered = turns(answer(page.knobs))
    chosen: list[tuple[Turn, list[str]]] = []
    for column, axis, first in zip(st.columns(2), ("x", "y"), _FIRST, strict=True):
        with column:
            chosen.append(_axis(axis, first, offered))
    (x, xs), (y, ys) = chosen
    if x.key == y.key:
        st.info("Choose two different knobs.", icon=":material/swap_horiz:")
        return
    if not xs or not ys:
        st.info("Choose at least one value of each knob.", icon=":material/playlist_add:")
        return
    asked = payload(page.knobs, x, y, xs, ys)
    start = st.button(f"Simulate {len(xs) * len(ys)} combinations", icon=":material/play_arrow:", type="primary")
    result = frame_jobs.result_of("grid", "grid", asked, start=start)
    if result is None:
        return
    drawn = grid_of(result, x, y)
    st.caption("Click a number to turn both knobs to it.")
    clicked = frame.figure(figures_knobs.knob_map(drawn), figures_knobs.knob_map_words(drawn), "knob-map",
                           caption=True, select=True)  # fmt: skip
    _open(clicked, drawn, x, y)
    best = drawn.best
    if best is not None and st.button(f"Open the fastest: {x.words} {best.x}, {y.words} {best.y}",
                                      icon=":material/open_in_new:"):  # fmt: skip
        _turn_both(x, best.x, y, best.y)
    lost = [cell for cell in drawn.cells if cell.reason]
    if lost:
        with st.expander(f"Why {len(lost)} combinations are not possible"):
            frame.table((x.words, y.words, "why"), [(c.x, c.y, c.reason) for c in lost], left=("why",))


def _open(clicked: Sequence[Mapping[str, Any]], drawn: Grid, x: Turn, y: Turn) -> None:
    """Turn both knobs to what was clicked, once: what the visitor turns afterwards stands."""
    found = [cell for point in clicked if (cell := drawn.clicked(point.get("x"), point.get("y"))) is not None]
    at = (x.key, found[-1].x, y.key, found[-1].y) if found else None
    if at == st.session_state.get("map-clicked"):
        return
    st.session_state["map-clicked"] = at
    if at is not None:
        _turn_both(x, at[1], y, at[3])


def _turn_both(x: Turn, x_text: str, y: Turn, y_text: str) -> None:
    """Turn both knobs; the map that was simulated stays, as its values no longer follow from where the knobs stand."""
    for axis, turn in (("x", x), ("y", y)):
        st.query_params[f"map.{axis}"] = turn.key
        st.query_params[f"map.{axis}.values"] = st.session_state[f"values-{axis}-{turn.key}"]
    frame.set_knobs({turn.key: _value(turn, text) for turn, text in ((x, x_text), (y, y_text))})
    st.rerun()


def _axis(axis: str, first: str, offered: dict[str, Turn]) -> tuple[Turn, list[str]]:
    """The knob of an axis and the values to try; the knob stands in the URL."""
    keys = list(offered)
    said = st.query_params.get(f"map.{axis}", "")
    now = said if said in offered else first if first in offered else keys[0]
    slot = f"map-{axis}"
    st.session_state[slot] = now
    key = st.selectbox(f"Knob {'across' if axis == 'x' else 'up'}", keys, key=slot, on_change=_turned, args=(axis,),
                       format_func=lambda k: offered[k].words)  # fmt: skip
    turn = offered[key]
    texts = [choice.text for choice in turn.choices]
    query, state = f"map.{axis}.values", f"values-{axis}-{key}"
    chosen = [text for text in texts if text in st.query_params.get_all(query)][:MOST] or at_first(turn)
    st.session_state[state] = chosen
    values = st.multiselect(f"Values of {turn.words}", texts, key=state, max_selections=MOST, on_change=_valued,
                            args=(query, state))  # fmt: skip
    return turn, [text for text in texts if text in values]


def _turned(axis: str) -> None:
    values = {f"map.{axis}.values": None}
    frame.write_query(frame.read_page().knobs, **{f"map.{axis}": st.session_state[f"map-{axis}"]}, **values)


def _valued(query: str, state: str) -> None:
    """The values to try, as the visitor reads them, in the URL; none of them stands for those chosen at first."""
    if st.session_state[state]:
        st.query_params[query] = st.session_state[state]
    else:
        st.query_params.pop(query, None)


def _value(turn: Turn, text: str) -> str:
    value = next(choice.value for choice in turn.choices if choice.text == text)
    return value if isinstance(value, str) else repr(value)


def grid_of(result: dict[str, Any], x: Turn, y: Turn) -> Grid:
    """The result of the job with the words a reader sees in place of values."""
    names = [{str(c.value): c.text for c in turn.choices} for turn in (x, y)]
    cells = tuple(Cell(**cell | {"x": names[0][cell["x"]], "y": names[1][cell["y"]]}) for cell in result["cells"])
    xs, ys = (tuple(c.text for c in turn.choices if c.text in {getattr(cell, at) for cell in cells})
              for turn, at in ((x, "x"), (y, "y")))  # fmt: skip
    return Grid(x_name=x.words, y_name=y.words, xs=xs, ys=ys, cells=cells, here=(x.now, y.now))


# ---------------------------------------------------------------- study


def _study() -> None:
    st.markdown("##### The sweep of a study")
    st.caption("The database that `moecast sweep --db` wrote. It is read in memory and kept nowhere.")
    found = st.file_uploader("A study's database", type=list(uploads.KINDS["study"]), key="study-file",
                             max_upload_size=uploads.MAX_FILE_BYTES // 2**20)  # fmt: skip
    if found is None:
        return
    with frame.guard():
        rows = study_rows(found.getvalue(), where=uploads.safe_name(found.name))
        knobs, figures = figures_knobs.columns(rows)
        if not knobs or not figures:
            st.info("No case of this study has a figure.", icon=":material/table:")
            return
        columns = st.columns(3)
        x = columns[0].selectbox("Across", knobs, key="sweep-x", format_func=_words)
        best = figures.index("step_s") if "step_s" in figures else 0
        y = columns[1].selectbox("Figure", figures, index=best, key="sweep-y", format_func=_words)
        by = columns[2].selectbox("One line for each", ["", *(k for k in knobs if k != x)], key="sweep-by",
                                  format_func=lambda k: _words(k) or "no lines")  # fmt: skip
        frame.figure(figures_knobs.sweep(rows, x, y, by), figures_knobs.sweep_words(rows, x, y), "sweep", caption=True)
        with st.expander(f"The cases ({len(rows):,})"):
            headers = [*knobs, "status", y, "label"]
            cells = [tuple(_text(row.get(name)) for name in headers) for row in rows[:_ROWS]]
            frame.table([_words(h) for h in headers], cells, left=("status", "label"))
            if len(rows) > _ROWS:
                st.caption(f"... and {len(rows) - _ROWS:,} more")


def _words(column: str) -> str:
    return figures_knobs.column_words(column)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return significant(value, 4)
    return "" if value is None else str(value)
