"""Compare: scenarios and plan files side by side; the first is the baseline, and the URL holds them all."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboards import figures_compare, frame, sides, uploads
from dashboards.answers import answer
from dashboards.figures_compare import MAX_SIDES, names_of
from dashboards.state import Knobs
from hwprofiles.errors import UserError
from planner.compare import Side

TITLE, ICON = "Compare", "compare_arrows"
SCENARIO, FILE = "s", "p"  # keys of the URL: scenarios as queries, plan files as tokens of uploads
MAX_TEXT = 4_000


def show(page: frame.Page) -> None:
    """Draw the view."""
    st.subheader("Side by side", anchor=False)
    listed = [Knobs.of_query(text).completed() for text in _listed(SCENARIO)]
    files = _listed(FILE)
    _buttons(page, listed)
    drawn = _sides(page, listed, files)
    if not drawn:
        return
    _legend(page, drawn, listed, files)
    some = [side for side, _ in drawn]
    if len(some) == 1:
        st.info("One scenario alone: change a knob on the left and add it, pin a baseline, or upload a plan file.",
                icon=":material/add_circle:")  # fmt: skip
    frame.table(("figure", *(f"{chr(65 + i)}" for i in range(len(some)))), sides.figure_rows(some))
    if len(some) > 1:
        st.caption("★ best of the row; in brackets the change against A.")
        rows = sides.differing(some)
        st.markdown("##### What differs in question and plan")
        if rows:
            letters = [chr(65 + i) for i in range(len(some))]
            frame.table(("field", *letters), [(_field(name), *texts) for name, texts in rows], left=letters)
        else:
            st.caption("Nothing: all ask and choose the same.")
    for name, draw, words in FIGURES:
        if len(some) > 1 or name != "changes":
            frame.figure(draw(some), words(some), f"compare-{name}", caption=name == "changes")


FIGURES = (
    ("time", figures_compare.time_side_by_side, figures_compare.time_words),
    ("changes", figures_compare.time_changes, figures_compare.changes_words),
    ("intervals", figures_compare.intervals, figures_compare.intervals_words),
    ("memory", figures_compare.memory, figures_compare.memory_words),
)


def _field(name: str) -> str:
    return name.upper() if name in ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp") else name.replace("_", " ")


# ---------------------------------------------------------------- what stands in the URL


def _listed(key: str) -> list[str]:
    """The texts of a key of the URL that may stand more than once."""
    return [text[:MAX_TEXT] for text in st.query_params.get_all(key)][:MAX_SIDES]


def _write(key: str, texts: list[str]) -> None:
    """List these in the URL; the scenario of the knobs stays."""
    frame.write_query(frame.read_page().knobs, **{key: None})
    if texts:
        st.query_params[key] = list(dict.fromkeys(texts))
    st.rerun()


def _buttons(page: frame.Page, listed: list[Knobs]) -> None:
    left, middle, right = st.columns([1.3, 1.3, 2], vertical_alignment="bottom")
    full = len(listed) >= MAX_SIDES - 2
    there = page.knobs in listed
    if left.button("Add this scenario", icon=":material/add:", type="primary", disabled=full or there, width="stretch",
                   help="Keeps the scenario of the knobs in the list, so that you can turn them further."):  # fmt: skip
        _write(SCENARIO, [*_listed(SCENARIO), page.knobs.query()])
    if middle.button("Remove all", icon=":material/delete_sweep:", width="stretch",
                     disabled=not listed and not _listed(FILE)):  # fmt: skip
        frame.write_query(page.knobs, **{SCENARIO: None})
        _write(FILE, [])
    with right.popover("Add a plan file (plan.json)", icon=":material/upload_file:", width="stretch"):
        found = st.file_uploader("Of `moecast plan --out` or `simulate --json`", type=list(uploads.KINDS["plan"]),
                                 key="compare-file", max_upload_size=uploads.MAX_FILE_BYTES // 2**20)  # fmt: skip
        rank = st.number_input("Which of its plans", 1, 100, 1, key="compare-rank")
        if found is not None and st.button("Add it", key="compare-add"):
            with frame.guard():
                token = uploads.add("plan", found.name, found.getvalue())
                text = token if rank == 1 else f"{token}#{rank}"
                sides.side_of_file(text)
                _write(FILE, [*_listed(FILE), text])


def _sides(page: frame.Page, listed: list[Knobs], files: list[str]) -> list[tuple[Side, Callable[[], None] | None]]:
    """Every side with what removes it (None: it is not in the list): baseline, list, files, and the knobs as they
    are. One that cannot be answered is told and left out."""
    asked: list[tuple[str, Knobs | str, Callable[[], None] | None]] = []
    if page.baseline is not None:
        asked.append(("baseline: ", page.baseline, None))
    for i, knobs in enumerate(listed):
        if knobs != page.baseline:
            asked.append(("", knobs, _remover(SCENARIO, i)))
    asked += [("", text, _remover(FILE, i)) for i, text in enumerate(files)]
    if page.knobs not in (page.baseline, *listed):
        asked.append(("now: ", page.knobs, None))
    out: list[tuple[Side, Callable[[], None] | None]] = []
    for prefix, what, remove in asked[:MAX_SIDES]:
        try:
            side = sides.side_of_file(what) if isinstance(what, str) else _scenario(prefix, what)
        except UserError as error:
            frame.problem(error)
            if remove is not None:
                st.button("Remove it", on_click=remove, key=f"remove-broken-{len(out)}-{prefix}-{hash(what)}")
            continue
        out.append((side, remove))
    return out


def _scenario(prefix: str, knobs: Knobs) -> Side:
    found = answer(knobs)
    return sides.side_of(found, f"{prefix}{found.report.plan.label()}")


def _remover(key: str, at: int) -> Callable[[], None]:
    def remove() -> None:
        texts = _listed(key)
        frame.write_query(frame.read_page().knobs, **{key: None})
        if left := texts[:at] + texts[at + 1 :]:
            st.query_params[key] = left

    return remove


def _legend(
    page: frame.Page, drawn: list[tuple[Side, Callable[[], None] | None]], listed: list[Knobs], files: list[str]
) -> None:
    """Who is who, and the button that removes each."""
    for i, (name, (side, remove)) in enumerate(zip(names_of([s for s, _ in drawn]), drawn, strict=True)):
        left, right = st.columns([6, 1], vertical_alignment="center")
        asked = side.asked
        machine = f"{asked.get('model', '')}, {asked.get('devices', '')} GPUs of {asked.get('cluster', '')}"
        left.text(f"{name} — {machine}"[:200])
        if remove is not None:
            right.button("Remove", key=f"remove-{i}", on_click=remove, width="stretch")
