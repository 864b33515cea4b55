"""What-if: one scenario, its numbers with intervals, where its time goes, and what a pinned baseline says to that."""

from __future__ import annotations

import streamlit as st

from dashboards import figures, figures_memory, frame
from dashboards.answers import Answer, answer
from dashboards.html_report import memory_words, time_words
from dashboards.style import gib_text, seconds_text, share_text, significant
from sim.report import Estimate, Report

TITLE, ICON = "What-if", "tune"
RISKY = 0.01  # a chance of out-of-memory that a long run will meet


def show(page: frame.Page) -> None:
    """Draw the view."""
    found = answer(page.knobs)
    base = None if page.baseline is None else answer(page.baseline)
    report = found.report
    st.subheader(f"{report.model} on {report.devices:,} devices of {report.cluster}", anchor=False)
    st.caption(
        f"Plan **{report.plan.label()}**, {report.num_micro_batches:,} micro-batches per step, {report.software}"
        + ("" if base is None else f"; baseline {base.report.plan.label()} on {base.report.devices:,} devices")
    )
    if (oom := report.out_of_memory) is not None:
        st.error(
            f"This plan does not fit: stage {oom.lane} needs {gib_text(oom.need_bytes)} and has "
            f"{gib_text(oom.have_bytes)}; the largest part is {oom.tag}.", icon=":material/memory:",
        )  # fmt: skip
    frame.tiles(_tiles(report, None if base is None else base.report))
    left, right = st.columns([3, 2], gap="medium")
    with left:
        frame.figure(figures.where_time_goes(report), time_words(report), "time")
    with right:
        frame.figure(figures_memory.memory_by_tag(report), memory_words(report), "memory")
    _rests_on(found)


def _range(estimate: Estimate, scale: float, unit: str) -> str:
    if estimate.low >= estimate.high:
        return "no interval"
    return f"80 %: {significant(estimate.low * scale)} to {significant(estimate.high * scale)}{unit}"


def _delta(now: float, base: float | None, *, less: bool) -> tuple[str, bool | None]:
    """(change in percent, whether it is for the better) against the baseline."""
    if base is None or not base:
        return "", None
    change = now / base - 1.0
    if abs(change) < 5e-4:
        return "as the baseline", None
    return f"{change:+.1%} against the baseline", (change < 0) == less


def _tiles(report: Report, base: Report | None) -> list[frame.Tile]:
    step, rate, mfu = report.step_s, report.tokens_per_s_per_gpu, report.mfu
    scale, unit = (1.0, " s") if step.value >= 1 else (1e3, " ms")
    exposed_s = sum(report.exposed_comm_s.values())

    def tile(name: str, value: str, note: str, now: float, before: float | None, *, less: bool, bad: bool = False
             ) -> frame.Tile:  # fmt: skip
        delta, better = _delta(now, before, less=less)
        return frame.Tile(name=name, value=value, note=note, bad=bad, delta=delta, better=better)

    def of(read: object) -> float | None:
        return None if base is None else read(base)  # type: ignore[operator]

    shown = [
        tile("step time", seconds_text(step.value), _range(step, scale, unit), step.value, of(lambda r: r.step_s.value),
             less=True),
        tile("tokens/s per GPU", significant(rate.value), _range(rate, 1.0, ""), rate.value,
             of(lambda r: r.tokens_per_s_per_gpu.value), less=False),
        tile("tokens/s, all GPUs", significant(rate.value * report.devices), "", rate.value * report.devices,
             of(lambda r: r.tokens_per_s_per_gpu.value * r.devices), less=False),
        tile("model FLOP utilisation", f"{mfu.value:.1%}", _range(mfu, 100.0, " %"), mfu.value,
             of(lambda r: r.mfu.value), less=False),
        tile("peak memory", gib_text(report.peak_mem_bytes), f"of {gib_text(report.usable_mem_bytes)} usable",
             report.peak_mem_bytes, of(lambda r: r.peak_mem_bytes), less=True, bad=not report.fits),
        tile("pipeline bubble", f"{report.bubble_fraction:.1%}", "of the step", report.bubble_fraction,
             of(lambda r: r.bubble_fraction), less=True),
        tile("exposed communication", seconds_text(exposed_s), f"{exposed_s / step.value:.1%} of the step", exposed_s,
             of(lambda r: sum(r.exposed_comm_s.values())), less=True),
    ]  # fmt: skip
    if report.usd_per_step is not None:
        usd = report.usd_per_step
        shown.append(tile("cost of a step", f"${significant(usd)}", "", usd, of(lambda r: r.usd_per_step), less=True))
    if (uneven := report.imbalance) is not None:
        risk = uneven.oom_probability
        shown.append(frame.Tile(name="cost of uneven experts", value=f"{uneven.cost_share:+.1%}",
                                note=f"over {seconds_text(uneven.balanced_step_s)} with even ones"))  # fmt: skip
        shown.append(frame.Tile(name="chance of out-of-memory", value=share_text(risk), note="of steps, any rank",
                                bad=risk >= RISKY))  # fmt: skip
    return shown


def _rests_on(found: Answer) -> None:
    with st.expander("What these numbers rest on", icon=":material/verified:"):
        frame.table(("worst evidence first",), [(line,) for line in found.report.provenance or ("not stated",)])
    if found.report.warnings:
        with st.expander(f"Warnings ({len(found.report.warnings)})", icon=":material/warning:"):
            frame.table(("warning",), [(line,) for line in found.report.warnings])
