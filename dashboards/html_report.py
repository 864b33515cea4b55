"""A report as one HTML file: no network, no other files; plotly.js stands inside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from dashboards import figures, figures_experts, figures_links, figures_memory
from dashboards.plan_rows import link_rows, ranks_text, rejected_rows, room_text, search_line
from dashboards.style import class_name, gib_text, interval_text, ordered, seconds_text, share_text, significant
from sim.report import Report

RISKY = 0.01  # a chance of out-of-memory that a long run will meet
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1f2937; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 16px; border-top: 1px solid #e5e7eb; }
p.lead { font-size: 16px; margin: 0 0 20px; color: #4b5563; }
figure { margin: 0; }
p.note, figcaption { font-size: 14px; color: #4b5563; margin: 4px 0 8px; max-width: 100ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px; }
.card { border: 1px solid #e5e7eb; border-radius: 8px; padding: 12px 14px; }
.card b { display: block; font-size: 23px; line-height: 1.25; font-weight: 600; }
.card span { display: block; font-size: 13px; color: #4b5563; }
.bad { border-color: #b91c1c; background: #fef2f2; }
.alarm { border: 1px solid #b91c1c; background: #fef2f2; border-radius: 8px; padding: 12px 16px; margin: 16px 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
ul { padding-left: 20px; margin: 6px 0; font-size: 14px; }
code { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; font-size: 0.94em; }
"""


def write_report(
    report: Report,
    path: str | Path,
    *,
    records: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
) -> None:
    """Write the page. `records` and `search` are the parts of the JSON of `moecast plan`.

    Raises OSError when `path` cannot be written.
    """
    Path(path).write_text(report_html(report, records=records, search=search), encoding="utf-8")


def report_html(
    report: Report,
    *,
    records: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
) -> str:
    """The whole page as text."""
    title = f"{report.model} on {report.devices:,} devices of {report.cluster}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">Plan <code>{escape(report.plan.label())}</code>, {report.num_micro_batches:,} '
        f"micro-batches per step, {escape(report.software)}{_ranks(report)}</p>",
        _oom(report),
        _cards(report),
        "<h2>Where the time goes</h2>",
        '<p class="note">Seconds of the slowest pipeline stage by class; they add up to the step.</p>',
        figure_html(figures.where_time_goes(report), "time", time_words(report), titled=False),
        "<h2>Timeline</h2>",
        '<p class="note">One row per pipeline stage and stream; numbers are micro-batches. '
        "Drag to zoom, double-click to return.</p>",
        figure_html(figures.timeline(report), "timeline", f"Gantt chart of one step, {_stages(report)}."),
        "<h2>Memory</h2>",
        figure_html(
            figures_memory.memory_over_time(report), "memory-time", f"Memory through the step: {memory_words(report)}"
        ),
        figure_html(figures_memory.memory_by_tag(report), "memory-tags", f"Memory at the peak: {memory_words(report)}"),
        _experts(report),
    ]
    if records:
        parts += [
            "<h2>Plans</h2>",
            _search(search),
            figure_html(_plans(records, report), "plans", "Table of plans, best first.", titled=False),
        ]
    parts += [_links(report), _rests_on(report)]
    return page(title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page around its parts, with the library that draws inside it."""
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n"
        f'<script type="text/javascript">{get_plotlyjs()}</script>\n'
        "</head><body><main>\n" + "\n".join(part for part in parts if part) + "\n</main></body></html>\n"
    )


# The upload button of newer plotly versions would be the page's one way to reach the network.
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
}


def figure_html(figure: go.Figure, name: str, words: str, *, titled: bool = True, caption: bool = False) -> str:
    """A figure as a div with what it shows in words, also to be seen with `caption`.

    A fixed id keeps the page the same byte for byte.
    """
    if not titled:
        figure = go.Figure(figure).update_layout(title=None, margin={"t": 40})
    drawn = plotly.io.to_html(
        figure, full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=_CONFIG
    )  # fmt: skip
    if caption:
        text = escape(words).replace(" %", "&nbsp;%")
        label, below = f'aria-labelledby="words-{name}"', f'<figcaption id="words-{name}">{text}</figcaption>'
    else:
        label, below = f'aria-label="{escape(words)}"', ""
    return f"<figure {label}>{drawn}{below}</figure>"


def time_words(report: Report) -> str:
    """What `figures.where_time_goes` shows."""
    return "Seconds of the slowest stage: " + ", ".join(
        f"{class_name(name)} {seconds_text(report.breakdown[name])}" for name in ordered(report.breakdown)
    )


def _stages(report: Report) -> str:
    return f"{report.plan.pp} pipeline stages, {report.num_micro_batches:,} micro-batches"


def memory_words(report: Report) -> str:
    """What the figures of memory show."""
    fullest = f"{gib_text(report.peak_mem_bytes)} of {room_text(report)} on the fullest stage"
    return f"{fullest}, {_stages(report)}."


def _plans(records: Sequence[Mapping[str, Any]], report: Report) -> go.Figure:
    return figures.plan_table(records, report.usable_mem_bytes)


def _card(name: str, value: str, note: str = "", bad: bool = False) -> str:
    small = f"<span>{escape(note)}</span>" if note else ""
    return f'<div class="card{" bad" if bad else ""}"><span>{escape(name)}</span><b>{escape(value)}</b>{small}</div>'


def _range(low: float, high: float, unit: str = "") -> str:
    if low >= high:
        return ""
    return f"80 % interval {significant(low)} to {significant(high)}{unit}"


def _cards(report: Report) -> str:
    step, rate, mfu = report.step_s, report.tokens_per_s_per_gpu, report.mfu
    scale, unit = (1.0, "s") if step.value >= 1 else (1e3, "ms")
    exposed_s = sum(report.exposed_comm_s.values())
    cards = [
        _card("step time", seconds_text(step.value), _range(step.low * scale, step.high * scale, f" {unit}")),
        _card("tokens/s per GPU", significant(rate.value), _range(rate.low, rate.high)),
        _card("model FLOP utilisation", f"{mfu.value:.1%}", _range(100 * mfu.low, 100 * mfu.high, " %")),
        _card("TFLOP/s per GPU", significant(report.tflops_per_gpu)),
        _card("peak memory", gib_text(report.peak_mem_bytes), _peak_note(report), bad=not report.fits),
        _card("pipeline bubble", f"{report.bubble_fraction:.1%}", "of the step"),
        _card("exposed communication", seconds_text(exposed_s), f"{exposed_s / step.value:.1%} of the step"),
    ]  # fmt: skip
    if report.anchored is not None:
        runs = len(report.anchored.anchors)
        said = f"{runs} own {'run' if runs == 1 else 'runs'}; {report.anchored.share:.0%} of the interval's width left"
        cards.append(_card("moved by anchors", f"{report.anchored.factor - 1.0:+.1%}", said))
    if report.usd_per_step is not None:
        cards.append(_card("cost of a step", f"{significant(report.usd_per_step)} USD"))
    if (found := report.imbalance) is not None:
        even = f"over {seconds_text(found.balanced_step_s)} with even experts"
        cards.append(_card("cost of imbalance", figures_experts.signed(found.cost_share), even))
        risk = share_text(found.oom_probability)
        cards.append(_card("chance of out-of-memory", risk, "of steps, any rank", bad=found.oom_probability >= RISKY))
    return f'<div class="cards">{"".join(cards)}</div>'


def _ranks(report: Report) -> str:
    said = ranks_text(report.ranks)
    return f", {escape(said)}" if said else ""


def _peak_note(report: Report) -> str:
    """What there is to fit in, and the interval of the peak."""
    of, peak = f"of {room_text(report)}", report.peak_mem
    return of if peak is None else f"{of}; {_range(peak.low / 2**30, peak.high / 2**30, ' GiB')}"


def _oom(report: Report) -> str:
    oom = report.out_of_memory
    if oom is None:
        return ""
    return (
        f'<div class="alarm"><b>This plan does not fit.</b> Stage {oom.lane} needs {gib_text(oom.need_bytes)} and has '
        f"{gib_text(oom.have_bytes)}; the largest part is <code>{escape(oom.tag)}</code>.</div>"
    )


def _search(search: Mapping[str, Any] | None) -> str:
    if not search:
        return ""
    rows = "".join(f"<tr><td>{n:,}</td><td>{escape(why)}</td></tr>" for why, n in rejected_rows(search)[:12])
    table = f"<table><tr><th>rejected</th><th>reason</th></tr>{rows}</table>" if rows else ""
    return f'<p class="note">{escape(search_line(search))}</p>{table}'


def _experts(report: Report) -> str:
    """What uneven experts do; nothing where experts are even."""
    if report.imbalance is None:
        return ""
    parts = ["<h2>Uneven experts</h2>"]
    parts.append(figure_html(figures_experts.cost_of_imbalance(report), "imbalance", figures_experts.cost_words(report),
                         titled=False, caption=True))  # fmt: skip
    if figures_experts.has_rank_load(report):
        words = figures_experts.rank_load_words(report)
        parts.append(figure_html(figures_experts.rank_load(report), "rank-load", words, caption=True))
    if figures_links.has_traffic(report):
        parts.append(figure_html(figures_links.traffic_matrix(report), "traffic", figures_links.traffic_words(report),
                             caption=True))  # fmt: skip
    return "\n".join(parts)


def _links(report: Report) -> str:
    """Totals of every link and, with a trace, how full they are through the step."""
    if not report.link_use:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(moved)}</td><td>{escape(busy)}</td></tr>"
        for name, moved, busy in link_rows(report)
    )
    head = "<tr><th>link</th><th>moved per device and step</th><th>mean use (worst stage)</th></tr>"
    parts = [f"<h2>Links</h2><table>{head}{rows}</table>"]
    if figures_links.has_use(report):
        words = figures_links.link_use_words(report)
        parts.append(figure_html(figures_links.link_use(report), "link-use", words, caption=True))
    return "\n".join(parts)


def _rests_on(report: Report) -> str:
    def items(lines: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"

    out = "<h2>What these numbers rest on</h2>"
    out += f'<p class="note">Step time {escape(interval_text(report.step_s, 1.0, "s"))}; worst evidence first.</p>'
    out += items(report.provenance or ("not stated",))
    if report.warnings:
        out += f"<h2>Warnings</h2>{items(report.warnings)}"
    return out
