"""What every view draws with: the page's state, figures in its theme with their words, tiles, errors, downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from dashboards import uploads
from dashboards.figures_base import themed
from dashboards.state import START, Knobs
from dashboards.style import gib_text
from hwprofiles.errors import UserError, error_text
from sim.report import Report

TOLD = "told"  # of the session: the problems that this run of the page has shown
BASELINE = "base"  # the key of a URL that holds the pinned scenario
_CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "",
           "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"]}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a view shows. baseline: the scenario that was pinned to compare with; dark: the visitor's theme."""

    knobs: Knobs
    baseline: Knobs | None
    dark: bool


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number people look for. delta: what it is against the baseline; better: whether less or more is."""

    name: str
    value: str
    note: str = ""
    bad: bool = False
    delta: str = ""
    better: bool | None = None


def read_page() -> Page:
    """The page of the visitor's URL."""
    query = {key: values[-1] for key in st.query_params if (values := st.query_params.get_all(key))}
    knobs = Knobs.of(query)
    base = query.get(BASELINE)
    return Page(
        knobs=knobs.completed() if knobs.pairs else Knobs.of(START),
        baseline=None if base is None else Knobs.of_query(base).completed(),
        dark=is_dark(),
    )  # fmt: skip


def is_dark() -> bool:
    """Whether the visitor looks at a dark page."""
    return getattr(st.context.theme, "type", "light") == "dark"


def write_query(knobs: Knobs, **others: str | None) -> None:
    """Write the scenario to the URL; keys that are no knob stay unless named (None removes one)."""
    kept = {key: st.query_params.get_all(key) for key in st.query_params if not Knobs.of({key: "x"}).pairs}
    for key, text in others.items():
        kept.pop(key, None)
        if text:
            kept[key] = [text]
    st.query_params.from_dict({**knobs.values, **kept})


def set_knobs(changes: Mapping[str, str | None]) -> None:
    """Change some knobs in the URL; the page follows on its next run."""
    write_query(read_page().knobs.with_(changes))


def pin(knobs: Knobs | None) -> None:
    """Make a scenario the baseline (None: none)."""
    write_query(read_page().knobs, **{BASELINE: None if knobs is None else knobs.query()})


def figure(
    drawn: go.Figure, words: str, key: str, *, caption: bool = False, select: bool = False
) -> Sequence[Mapping[str, Any]]:
    """A figure in the page's theme; `words` is what it says to those who cannot see it, and below it with `caption`.

    select: clicks on points are told; the points chosen are returned, as plotly gives them (`customdata`, ...).
    """
    state: Any = st.plotly_chart(
        themed(drawn, dark=is_dark()), theme=None, key=key, alt=words, config=_CONFIG,
        on_select="rerun" if select else "ignore", selection_mode=("points",),
    )  # fmt: skip
    if caption:
        st.caption(plain(words))
    return state["selection"]["points"] if select and state else []


def misfit(report: Report) -> None:
    """Say so where a plan does not fit in memory."""
    if (oom := report.out_of_memory) is not None:
        st.error(
            f"This plan does not fit: stage {oom.lane} needs {gib_text(oom.need_bytes)} and has "
            f"{gib_text(oom.have_bytes)}; the largest part is {plain(oom.tag)}.", icon=":material/memory:",
        )  # fmt: skip


def plain(text: str) -> str:
    """Text that Markdown shows as it is: a name from a visitor's file is no link and no picture."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~$:" else c for c in text)


def tiles(shown: Sequence[Tile]) -> None:
    """Tiles side by side, as many in a row as fit."""
    parts = []
    for tile in shown:
        note = f"<span>{escape(tile.note)}</span>" if tile.note else ""
        way = "" if tile.better is None else " better" if tile.better else " worse"
        delta = f'<em class="{way.strip()}">{escape(tile.delta)}</em>' if tile.delta else ""
        parts.append(
            f'<div class="tile{" bad" if tile.bad else ""}"><span>{escape(tile.name)}</span>'
            f"<b>{escape(tile.value)}</b>{delta}{note}</div>"
        )
    st.html(f'<div class="tiles">{"".join(parts)}</div>')


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> None:
    """A small table of texts; columns named in `left` (and the first) are words, the others numbers."""
    words = {headers[0], *left}

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="{"word" if name in words else "number"}">{escape(str(cell))}</{tag}>'
            for name, cell in zip(headers, row, strict=True)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    st.html(f'<div class="wide"><table class="plain"><tr>{cells(headers, "th")}</tr>{body}</table></div>')


def problem(error: UserError) -> None:
    """What is wrong, where and the remedy, as the command line prints it; the same words once a page."""
    told = st.session_state.get(TOLD)
    if told is not None:
        if (words := error_text(error)) in told:
            return
        told.add(words)
    st.html(f'<pre class="problem" role="alert">{escape(uploads.without_folders(error_text(error)))}</pre>')


@contextmanager
def guard() -> Iterator[None]:
    """Show a user error in place of what was to be drawn."""
    try:
        yield
    except UserError as error:
        problem(error)


def choice(label: str, options: Sequence[str], key: str, *, names: Mapping[str, str] | None = None, tip: str = ""
           ) -> str:  # fmt: skip
    """One of some options side by side, the first by default; the URL says which under `key`."""
    said = st.query_params.get(key)
    now = options[0] if said is None or said not in options else said
    state = f"choice-{key}"
    st.session_state[state] = now

    def turned() -> None:
        chosen = st.session_state[state]
        if chosen and chosen != options[0]:
            st.query_params[key] = chosen
        else:
            st.query_params.pop(key, None)

    st.segmented_control(
        label, list(options), key=state, format_func=lambda name: (names or {}).get(name, name), on_change=turned,
        required=True, help=tip or None,
    )  # fmt: skip
    return now


def download(
    label: str, data: str | bytes | Callable[[], str | bytes], file_name: str, mime: str, key: str
) -> None:  # fmt: skip
    """A button that hands out a file; a click does not run the page again. A function is called at the click."""
    st.download_button(
        label, data, file_name=file_name, mime=mime, key=key, on_click="ignore", icon=":material/download:"
    )


def query_here(**others: str | None) -> dict[str, Any]:
    """The URL's query, for links to other views."""
    query: dict[str, Any] = {key: st.query_params.get_all(key) for key in st.query_params}
    return {**query, **{k: v for k, v in others.items() if v}}


STYLE = """
<style>
.block-container { padding: 3.9rem 2.2rem 3rem; max-width: 1440px; }
section[data-testid="stSidebar"] { width: 330px !important; min-width: 330px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 10px; }
.tile { border: 1px solid rgba(127,127,127,.35); border-radius: 8px; padding: 10px 12px; }
.tile span { display: block; font-size: 13px; opacity: .78; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-weight: 600; }
.tile em { display: block; font-style: normal; font-size: 13px; font-weight: 600; }
.tile em.better { color: #0b7a5b; } .tile em.worse { color: #b45309; }
.tile.bad { border-color: #c2410c; background: rgba(194,65,12,.09); }
@media (prefers-color-scheme: dark) { .tile em.better { color: #34d399; } .tile em.worse { color: #fbbf24; } }
pre.problem { white-space: pre-wrap; border: 1px solid #c2410c; background: rgba(194,65,12,.09); border-radius: 8px;
  padding: 12px 14px; font-size: 14px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table.plain { border-collapse: collapse; font-size: 14px; width: 100%; }
table.plain th, table.plain td { padding: 5px 14px 5px 0; border-bottom: 1px solid rgba(127,127,127,.3); }
table.plain .word { text-align: left; } table.plain .number { text-align: right; font-variant-numeric: tabular-nums; }
</style>
"""
