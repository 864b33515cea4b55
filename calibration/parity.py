"""The parity plot as SVG: predicted against measured tokens/s per GPU, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from calibration.validate import Row

SIZE, MARGIN = 520, 62
COLOURS = {"moe": "#d55e00", "dense": "#0072b2", "dense below 1B": "#8c8c8c"}  # Okabe-Ito: told apart by most eyes
NAMES = {"moe": "MoE", "dense": "dense, 1B and more", "dense below 1B": "dense below 1B"}


def parity_svg(cases: Sequence[Row]) -> str:
    """One dot per case; the diagonal is exact, the band 20 % either way. Same cases, same bytes."""
    points = sorted(
        (c.group.get("class", ""), c.measured, c.predicted, c.group.get("model", ""), c.group.get("gpu", ""), c.id)
        for c in cases
        if c.measured is not None and c.predicted is not None
    )
    values = [v for _, m, p, *_ in points for v in (m, p)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    span = SIZE - 2 * MARGIN

    def x(value: float) -> float:
        return MARGIN + span * (math.log10(value) - low) / (high - low)

    def y(value: float) -> float:
        return SIZE - x(value)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" font-family="sans-serif" font-size="12">',
        "<title>Predicted against measured tokens per second and GPU of published training runs</title>",
        f'<rect width="{SIZE}" height="{SIZE}" fill="white"/>',
        f'<clipPath id="inside"><rect x="{MARGIN}" y="{MARGIN}" width="{span}" height="{span}"/></clipPath>',
    ]
    a, b = 10.0**low, 10.0**high
    corners = ((a, a * 0.8), (b, b * 0.8), (b, b * 1.2), (a, a * 1.2))
    band = " ".join(f"{x(m):.1f},{y(p):.1f}" for m, p in corners)
    out.append(f'<polygon points="{band}" fill="#eeeeee" clip-path="url(#inside)"/>')
    for power in range(low, high + 1):
        at, label = 10.0**power, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"
        out += [
            _line(x(at), MARGIN, x(at), SIZE - MARGIN, "#dddddd"),
            _line(MARGIN, y(at), SIZE - MARGIN, y(at), "#dddddd"),
            _text(x(at), SIZE - MARGIN + 16, label),
            _text(MARGIN - 6, y(at) + 4, label, anchor="end"),
        ]
    out.append(_line(x(a), y(a), x(b), y(b), "#666666"))
    for kind, measured, predicted, model, gpu, ident in points:
        said = f"{ident}: {model} on {gpu}, measured {measured:,.0f}, predicted {predicted:,.0f}"
        out.append(
            f'<circle cx="{x(measured):.1f}" cy="{y(predicted):.1f}" r="3.2" data-case="{escape(ident)}" '
            f'fill="{COLOURS.get(kind, "#000000")}" fill-opacity="0.65"><title>{escape(said)}</title></circle>'
        )
    for i, kind in enumerate(k for k in COLOURS if any(p[0] == k for p in points)):
        top = MARGIN + 16 + 18 * i
        out.append(f'<circle cx="{MARGIN + 14}" cy="{top}" r="4" fill="{COLOURS[kind]}"/>')
        out.append(_text(MARGIN + 24, top + 4, NAMES[kind], anchor="start"))
    middle = SIZE / 2
    out += [
        _text(middle, SIZE - 18, "measured, tokens/s per GPU"),
        f'<g transform="rotate(-90 16 {middle:.0f})">{_text(16, middle, "predicted, tokens/s per GPU")}</g>',
        _text(middle, 30, f"{len(points)} published cases; grey band: 20 % either way"),
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'
