"""One look for figures, pages and tables: classes of time, their colours, and numbers as text.

Nothing heavy is imported here, so the command line may use it for its tables too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sim.report import Estimate, Span, Trace

# Okabe-Ito hues: told apart by most colour-blind readers and on paper.
COLOURS: Mapping[str, str] = {
    "forward": "#0072B2",
    "backward": "#009E73",
    "paired": "#2A9DA5",
    "weight gradient": "#7FCDBB",
    "attention": "#56B4E9",
    "gemm": "#0072B2",
    "experts": "#009E73",
    "router": "#A6CEE3",
    "shared": "#44AA99",
    "unpermute": "#B2C7E0",
    "mlp": "#4477AA",
    "ends": "#332288",
    "memory-bound": "#8DA0CB",
    "recompute": "#66A61E",
    "tp": "#E69F00",
    "cp": "#F0C808",
    "ep": "#D55E00",
    "etp": "#B45309",
    "link contention": "#F59E9E",
    "dp": "#CC79A7",
    "pp": "#882255",
    "communication": "#E69F00",
    "host": "#6B7280",
    "offload": "#0E7C86",
    "bubble": "#D1D5DB",
    "optimizer": "#6A3D9A",
    "step overhead": "#A0522D",
    "other": "#94A3B8",
    "steady state": "#8FB4CE",
}

# Reading order of a breakdown: work, then what waits for the network, then what is idle.
CLASS_ORDER = (
    "attention", "gemm", "experts", "memory-bound", "recompute", "host",
    "tp", "cp", "ep", "etp", "dp", "pp", "link contention", "offload", "bubble", "optimizer", "step overhead",
)  # fmt: skip

CLASS_NAMES: Mapping[str, str] = {
    "gemm": "dense GEMM",
    "experts": "expert GEMM",
    "memory-bound": "memory-bound ops",
    "host": "host launches",
    "tp": "exposed TP communication",
    "cp": "exposed CP communication",
    "ep": "exposed EP communication",
    "etp": "exposed ETP communication",
    "dp": "exposed DP communication",
    "pp": "exposed PP communication",
    "offload": "waiting for the host link",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer step",
}

# What the legend of a timeline says of a class, and its rows of a stream.
SPAN_NAMES: Mapping[str, str] = {
    "bubble": "idle (bubble)",
    "steady state": "steady state, folded",
    "pp": "pipeline send",
    "dp": "gradients and parameters",
    "tp": "TP communication",
    "cp": "CP communication",
    "ep": "EP communication",
    "etp": "ETP communication",
    "router": "router and permute",
    "shared": "shared experts",
    "mlp": "dense FFN",
    "ends": "embedding, head, loss",
}
STREAMS: Mapping[str, str] = {"pp": "sends", "dp": "gradients"}

_SPAN_WORDS = (
    ("pair", "paired"),
    ("wgrad", "weight gradient"),
    ("weight grad", "weight gradient"),
    ("recompute", "recompute"),
    ("grad_sync", "dp"),
    ("grad", "dp"),
    ("param", "dp"),
    ("reduce", "dp"),
    ("gather", "dp"),
    ("p2p", "pp"),
    ("send", "pp"),
    ("optim", "optimizer"),
    ("fixed", "step overhead"),
    ("overhead", "step overhead"),
    ("forward", "forward"),
    ("backward", "backward"),
)
_SHORT_KINDS = {"f": "forward", "b": "backward", "w": "weight gradient", "fb": "paired"}


def span_class(span: Span) -> str:
    """Class of a span ("forward", "backward", "pp", "dp", "optimizer", ...), from its kind, then its name."""
    for text in (span.kind.lower(), span.name.lower()):
        if text in COLOURS:
            return text
        if text in _SHORT_KINDS:
            return _SHORT_KINDS[text]
        for word, group in _SPAN_WORDS:
            if word in text:
                return group
    return "other"


def direction(span: Span) -> str:
    """The pass a span belongs to, "forward" or "backward"; of the layers' parts by name (F3 ..., B3 ...); else ""."""
    group = span_class(span)
    if group in ("forward", "backward"):
        return group
    if span.micro_batch < 0 or span.stream != "compute" or span.kind == "p2p":
        return ""
    return {"F": "forward", "B": "backward"}.get(span.name[:1], "")


def drawn_s(trace: Trace) -> float:
    """End of what a trace can show: its makespan, or its last span where periods were jumped over."""
    if not trace.periods_skipped:
        return trace.makespan_s
    return max((span.end_s for span in trace.spans), default=trace.makespan_s)


def ordered(classes: Iterable[str]) -> list[str]:
    """Classes in reading order; unknown ones last, by name."""
    rank = {name: i for i, name in enumerate(CLASS_ORDER)}
    return sorted(classes, key=lambda c: (rank.get(c, len(rank)), c))


def class_name(name: str) -> str:
    """A breakdown class in words."""
    return CLASS_NAMES.get(name, name)


def colour(name: str) -> str:
    """Colour of a class of time."""
    return COLOURS.get(name, COLOURS["other"])


def seconds_text(value_s: float, digits: int = 3) -> str:
    """Seconds with so many significant digits and a fitting unit: 12.3 s, 45.6 ms, 7.89 us."""
    if not math.isfinite(value_s):
        return "unknown"
    size = abs(value_s)
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if size * factor >= 0.9995 or unit == "us":
            return f"{significant(value_s * factor, digits)} {unit}"
    raise AssertionError("unreachable")


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponent form; thousands separated."""
    if not math.isfinite(value):
        return "unknown"
    if value == 0:
        return "0"
    # Round first: 0.9999 to three digits is 1.00, not 1.000.
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}"


def share_text(share: float) -> str:
    """A probability in percent; what rounds to nothing (or to certainty) without being so says so."""
    if 0.0 < share < 5e-4:
        return "below 0.1 %"
    if 0.9995 <= share < 1.0:
        return "above 99.9 %"
    return f"{100 * share:.1f} %"


def gib_text(value_bytes: float) -> str:
    """Bytes in GiB, one decimal."""
    return f"{value_bytes / 2**30:,.1f} GiB"


def bytes_text(value_bytes: float) -> str:
    """Bytes with a binary unit: 512 B, 1.50 MiB, 72.3 GiB."""
    if not math.isfinite(value_bytes):
        return "unknown"
    size = value_bytes
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{significant(size)} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def interval_text(estimate: Estimate, scale: float = 1.0, unit: str = "", digits: int = 3) -> str:
    """`12.3 s (11.0 to 13.9)`; without an interval only the value."""
    tail = f" {unit}" if unit and unit != "%" else unit
    value = significant(estimate.value * scale, digits) + tail
    if estimate.low >= estimate.high:
        return value
    low, high = (significant(x * scale, digits) for x in (estimate.low, estimate.high))
    return f"{value} ({low} to {high})"
