"""What-if: one scenario, its numbers with intervals, where its time goes, and what a pinned baseline says to that."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from dashboards import figures, figures_compare, figures_memory, frame
from dashboards.answers import Answer, answer, side_of
from dashboards.html_report import memory_words, time_words
from dashboards.side_numbers import Change, differences
from dashboards.style import gib_text, seconds_text, share_text, significant
from hwprofiles.errors import UserError
from planner.compare import Side
from sim.report import Estimate, Report

TITLE, ICON = "What-if", "tune"
RISKY = 0.01  # a chance of out-of-memory that a long run will meet


def show(page: frame.Page) -> None:
    """Draw the view."""
    base = _baseline(page)
    found = answer(page.knobs)
    report = found.report
    st.subheader(frame.plain(f"{report.model} on {report.devices:,} devices of {report.cluster}"), anchor=False)
    st.caption(
        f"Plan **{report.plan.label()}**, {report.num_micro_batches:,} micro-batches per step, "
        + frame.plain(report.software)
        + ("" if base is None else frame.plain(f". Baseline: {base.knobs.label()}"))
    )
    frame.misfit(report)
    now = side_of(found, "now")
    before = None if base is None else side_of(base, "baseline")
    frame.tiles(_tiles(report, {} if before is None else differences(now, before)))
    _time(report, now, before)
    _memory(report, now, before, base)
    _rests_on(found)


def _baseline(page: frame.Page) -> Answer | None:
    """The pinned scenario; one that cannot be answered is named and left out."""
    if page.baseline is None:
        return None
    try:
        return answer(page.baseline)
    except UserError as error:
        st.warning("The pinned baseline cannot be answered:", icon=":material/keep_off:")
        frame.problem(error)
        return None


def _time(report: Report, now: Side, before: Side | None) -> None:
    if before is None:
        frame.figure(figures.where_time_goes(report), time_words(report), "time")
        return
    sides = [before, now]
    frame.figure(figures_compare.time_side_by_side(sides), figures_compare.time_words(sides), "time")
    frame.figure(figures_compare.time_changes(sides), figures_compare.changes_words(sides), "time-changes")
    frame.figure(figures_compare.intervals(sides), figures_compare.intervals_words(sides), "intervals")


def _memory(report: Report, now: Side, before: Side | None, base: Answer | None) -> None:
    sides = [now] if before is None else [before, now]
    frame.figure(figures_compare.memory(sides), figures_compare.memory_words(sides), "memory")
    frame.figure(figures_memory.memory_by_tag(report), memory_words(report), "memory-tags")
    if base is not None:
        words = figures_memory.memory_changes_words(report, base.report)
        frame.figure(figures_memory.memory_tag_changes(report, base.report), words, "memory-tag-changes", caption=True)


def _range(estimate: Estimate, scale: float, unit: str) -> str:
    if estimate.low >= estimate.high:
        return "no interval"
    return f"80 %: {significant(estimate.low * scale)} to {significant(estimate.high * scale)}{unit}"


def _tiles(report: Report, changes: Mapping[str, Change]) -> list[frame.Tile]:
    """The numbers; `changes`: against the baseline, by the names of `side_numbers.MEASURES`."""
    step, rate, mfu = report.step_s, report.tokens_per_s_per_gpu, report.mfu
    scale, unit = (1.0, " s") if step.value >= 1 else (1e3, " ms")
    exposed_s = sum(report.exposed_comm_s.values())

    def tile(name: str, value: str, note: str = "", *, bad: bool = False) -> frame.Tile:
        change = changes.get(name)
        delta = "" if change is None else "as the baseline" if change.text == "same" else f"{change.text} vs. baseline"
        better = None if change is None else change.better
        return frame.Tile(name=name, value=value, note=note, bad=bad, delta=delta, better=better)

    shown = [
        tile("step time", seconds_text(step.value), _range(step, scale, unit)),
        tile("tokens/s per GPU", significant(rate.value), _range(rate, 1.0, "")),
        tile("tokens/s", significant(rate.value * report.devices), "all GPUs"),
        tile("model FLOP utilisation", f"{mfu.value:.1%}", _range(mfu, 100.0, " %")),
        tile("peak memory", gib_text(report.peak_mem_bytes), f"of {gib_text(report.usable_mem_bytes)} usable",
             bad=not report.fits),
        tile("pipeline bubble", f"{report.bubble_fraction:.1%}", "of the step"),
        tile("exposed communication", seconds_text(exposed_s), f"{exposed_s / step.value:.1%} of the step"),
    ]  # fmt: skip
    if report.usd_per_step is not None:
        shown.append(tile("USD per step", f"${significant(report.usd_per_step)}"))
        usd = report.usd_per_step / (rate.value * report.devices * step.value) * 1e9
        shown.append(tile("USD per 1e9 tokens", f"${significant(usd)}"))
    if (uneven := report.imbalance) is not None:
        risk = uneven.oom_probability
        even = f"over {seconds_text(uneven.balanced_step_s)} with even ones"
        shown.append(frame.Tile(name="cost of uneven experts", value=f"{uneven.cost_share:+.1%}", note=even))
        shown.append(
            frame.Tile(name="chance of out-of-memory", value=share_text(risk), note="of steps, any rank",
                       bad=risk >= RISKY)
        )  # fmt: skip
    return shown


def _rests_on(found: Answer) -> None:
    with st.expander("What these numbers rest on", icon=":material/verified:"):
        frame.table(("worst evidence first",), [(line,) for line in found.report.provenance or ("not stated",)])
    if found.report.warnings:
        with st.expander(f"Warnings ({len(found.report.warnings)})", icon=":material/warning:"):
            frame.table(("warning",), [(line,) for line in found.report.warnings])
