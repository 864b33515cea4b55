"""docs/accuracy.html: the page of docs/accuracy.md as one file that works offline, with tables to sort and filter.

The text is the Markdown page itself, so that no number can differ; added are the cases with their filters and the
parity plot inside the file. Nothing is loaded from elsewhere; without JavaScript all is there, unsorted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from calibration.accuracy_look import SCRIPT, STYLE
from calibration.accuracy_rows import percent, value_text
from calibration.parity import parity_svg
from calibration.score import cases_of
from calibration.validate import Row

if TYPE_CHECKING:
    from calibration.accuracy import Scored

RUNS = "training_runs.csv"
FILTERS = ("model", "gpu", "release", "precision", "class")
NAMES = {"gpu": "GPU", "class": "kind"}
COLUMNS = (
    "case", "model", "GPU", "GPUs", "measured", "predicted", "error", "80 % interval", "precision", "sequence",
    "release", "plan",
)  # fmt: skip
TALL = 14  # rows a table shows before it scrolls
LONG = 36  # characters of a cell that needs room


def html_page(scored: Scored) -> str:
    """The whole file. Same result of scoring, same bytes."""
    from calibration.accuracy_page import TWIN, page

    text = page(scored).replace(TWIN, "The same as plain text: [accuracy.md](accuracy.md)")
    blocks = [b for b in text.rstrip("\n").split("\n\n") if not b.startswith("<!--")]
    cases = sorted(cases_of(scored.rows[RUNS]), key=lambda c: c.id)
    title, *rest = blocks
    heads = [b for b in rest if re.match(r"##+ ", b)]
    body: list[str] = []
    for block in rest:
        body.append(_explorer(cases) if block.startswith("![") else _block(block))
    return "\n".join((
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<!-- Made by `make accuracy` (python -m calibration.accuracy) from calibration/published. Do not edit. -->",
        f"<title>{_inline(title[2:])}</title>", f"<style>{STYLE}</style></head><body>",
        _contents(heads), f"<main><h1>{_inline(title[2:])}</h1>", *body, "</main>",
        f"<script>{SCRIPT}</script></body></html>", "",
    ))  # fmt: skip


def slug(head: str) -> str:
    """The anchor of a heading, as for Markdown."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def _contents(heads: Sequence[str]) -> str:
    links = []
    for head in heads:
        marks, _, name = head.partition(" ")
        links.append(f'<a class="l{len(marks)}" href="#{slug(name)}">{_inline(name)}</a>')
    return "<nav>" + "\n".join(links) + "</nav>"


def _inline(text: str) -> str:
    """Code, bold and links of a line of Markdown; all else as it stands."""
    out = escape(text.replace("\\|", "|"), quote=False)
    out = re.sub(r"`([^`]+)`", r"<code>\1</code>", out)
    out = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", out)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', out)


def _block(block: str) -> str:
    head = re.match(r"(#+) (.*)", block)
    if head:
        level = len(head[1])
        return f'<h{level} id="{slug(head[2])}">{_inline(head[2])}</h{level}>'
    if block.startswith("| "):
        return _table(block)
    return f"<p>{_inline(block)}</p>"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _table(block: str) -> str:
    header, _, *rows = (_cells(line) for line in block.splitlines())
    return _made(header, rows)


def _made(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, extra: Sequence[str] = (), name: str = ""
) -> str:  # fmt: skip
    """A table that the script can sort and filter; columns of figures stand to the right. extra: attributes of each
    row."""
    number = [all(_figure(row[at]) for row in rows) for at in range(len(header))]

    def line(cells: Sequence[str], tag: str, more: str = "") -> str:
        made = [
            f"<{tag}{' class=n' if right else ' class=w' if len(cell) > LONG else ''}>{_inline(cell)}</{tag}>"
            for cell, right in zip(cells, number, strict=True)
        ]
        return f"<tr{more}>{''.join(made)}</tr>"

    body = [line(cells, "td", extra[i] if extra else "") for i, cells in enumerate(rows)]
    size = " tall" if len(rows) > TALL else ""
    return (
        f'<div class="table{size}"{f" id={name}" if name else ""}><table><thead>{line(header, "th")}</thead><tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def _figure(cell: str) -> bool:
    """Whether a cell starts with a number, or has none to show."""
    return bool(re.match(r"[+-]?\d|–$|$", cell))


def _explorer(cases: Sequence[Row]) -> str:
    """Choices, summary, parity plot and table of the cases."""
    choices = []
    for name in FILTERS:
        values = sorted({c.group.get(name, "") for c in cases})
        options = "".join(f"<option>{escape(v)}</option>" for v in values)
        label = NAMES.get(name, name)
        choices.append(f'<label>{label}<select data-f="{name}"><option value="">all</option>{options}</select></label>')
    rows, extra = [], []
    for case in cases:
        group = case.group
        spread = "–"
        if case.low is not None and case.high is not None:
            spread = f"{value_text(case, case.low)} to {value_text(case, case.high)}"
        rows.append([
            case.id, group.get("model", ""), group.get("gpu", ""), group.get("n_gpus", ""),
            value_text(case, case.measured), value_text(case, case.predicted), percent(case.error, sign=True), spread,
            group.get("precision", ""), group.get("seq_len", ""), group.get("release", ""), case.plan,
        ])  # fmt: skip
        said = "".join(f' data-{name}="{escape(group.get(name, ""))}"' for name in FILTERS)
        extra.append(f' data-case="{escape(case.id)}" data-error="{case.error or 0.0:.4f}"{said}')
    table = _made(COLUMNS, rows, extra=extra, name="cases")
    return (
        f'<h3 id="explore">Look at some of the {len(cases)} cases</h3>\n'
        f'<div class="choices">{"".join(choices)}<button id="clear" type="button">all</button></div>\n'
        f'<p id="shown"></p>\n<div class="plot">{parity_svg(cases)}</div>\n{table}'
    )
