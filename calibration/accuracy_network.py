"""The section "Network, dispatch and uneven experts" of docs/accuracy.md.

Errors of the fits stand in `hwprofiles/fitted/kernels` (collectives.toml; dispatch.toml, grouped.toml of a device)
and are quoted; penalties of power laws and the training trace are predicted anew, in seconds. Every table says what
its figures rest on, and whether the aim is met.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibration.accuracy_kernels import kernel_errors
from calibration.accuracy_rows import left_table, percent, table
from calibration.kernels import dispatch, imbalance, network
from calibration.kernels.network_fit import SCORED_BYTES
from calibration.training_trace import training_trace
from hwprofiles import catalogue
from hwprofiles.folders import fitted_file

# Aims: relative errors; order: share of pairs; exposed: seconds.
AIM_LEFT_OUT = (0.15, 0.40)  # collectives of a source left out: median, 90th percentile
AIM_IN_SAMPLE = 0.08
AIM_DISPATCH = 0.12
AIM_RECORDED = 0.10
AIM_PENALTY = 0.30
AIM_SPAN = 0.10
AIM_EXPOSED_S = 8e-3

Entry = Mapping[str, Any]


def network_section() -> list[str]:
    """Paragraphs and tables."""
    return [
        "## Network, dispatch and uneven experts",
        "What crosses links, and what routers do to ranks: absolute relative errors of times, with `aim met` beside "
        "every aim. Errors of fits are quoted from the fitted files; penalties and the trace are predicted by this "
        "command.",
        *_collectives(),
        *_dispatch(),
        *_uneven(),
        *_trace(),
    ]


def _said(met: bool | None) -> str:
    return {True: "yes", False: "no", None: "–"}[met]


# ---------------------------------------------------------------- collectives


def collective_errors() -> list[Entry]:
    """The list `errors` of fitted/kernels/collectives.toml."""
    data = tomllib.loads(fitted_file("", "collectives.toml").read_text(encoding="utf-8"))
    return list(data["errors"])


def _collectives() -> list[str]:
    known = {(e["left_out"], e["source"], e["op"]): e for e in collective_errors()}
    order = list(dict.fromkeys(e["left_out"] for e in collective_errors()))
    rows = []
    for name in order:
        e = known[name, "", "collectives"]
        own = known.get(("", name, "")) if name else known["", "", ""]
        met = e["median"] <= AIM_IN_SAMPLE if not name else within(e, AIM_LEFT_OUT)
        seen = ["–", "–"] if own is None else [percent(own["median"]), percent(own["p90"])]
        rows.append([
            {"": "nothing (in-sample)", "each source": "each source in turn"}.get(name, f"`{name}`"), e["cases"],
            span_text(e["gpus"]), "across nodes" if e["rate_read_off"] else "none", percent(e["median"]),
            percent(e["p90"]), *seen, _said(met),
        ])  # fmt: skip
    head = ("left out of the fit", "points", "GPUs", "port rate read off", "median", "p90", "in-sample median, all ops",
            "in-sample p90", "aim met")  # fmt: skip
    return [
        "### Collectives",
        "Fitted forms of collectives against measured NCCL times of at least 1 MiB (`hwprofiles/fitted/kernels/"
        "collectives.toml`). A source left out is left out whole, and then predicted; devices that nobody else "
        "measured cannot be. Aims: left out median 15 %, p90 40 %; in-sample median 8 %.",
        "`port rate read off`: rows across nodes whose source does not say what a port reaches take one rate per "
        "cluster from that source's own largest message, left out or not: it is the shape over sizes, counts and "
        "operations that is predicted for them, and the level of their largest messages is not. Rows inside one node "
        "have no such rate. The rows of `alcf-*` state no licence and are not shipped; their errors are.",
        _distrusted(),
        table(head, rows),
    ]


def within(e: Entry, aim: tuple[float, float]) -> bool:
    """Whether median and 90th percentile are within the aim."""
    return float(e["median"]) <= aim[0] and float(e["p90"]) <= aim[1]


def span_text(gpus: Sequence[int]) -> str:
    """Fewest to most devices."""
    return f"{gpus[0]}" if gpus[0] == gpus[1] else f"{gpus[0]} to {gpus[1]:,}"


def distrusted() -> dict[tuple[str, str], int]:
    """Shipped rows of at least 1 MiB that take no part in the fit, by source and op."""
    points = network.points()
    out = points[(points.bytes >= SCORED_BYTES) & ~points.fitted]
    counts = Counter(zip(out.source.astype(str), out.op.astype(str), strict=True))
    return dict(sorted(counts.items()))


def _distrusted() -> str:
    found = distrusted()
    listed = ", ".join(f"{n} {op} of `{source}`" for (source, op), n in found.items())
    return (
        f"Distrusted: {sum(found.values())} of the shipped rows stay out of every fit ({listed}): two-node rows whose "
        "ports depend on an unstated placement, and messages between two devices of a larger group. They are no part "
        "of the in-sample errors; where their source is left out, they count."
    )


# ---------------------------------------------------------------- dispatch


def dispatch_errors(device: str) -> Iterator[tuple[str, str, Entry]]:
    """(kernel, what was left out, errors) of dispatch.toml of one device; nothing where it has none."""
    file = fitted_file(device, "dispatch.toml")
    if not file.is_file():
        return
    for mode, phases in tomllib.loads(file.read_text(encoding="utf-8")).items():
        for phase, form in phases.items() if mode != "source" else ():
            yield from ((f"{mode}.{phase}", left, e) for left, e in form["errors"].items())


def left_text(left: str) -> tuple[str, bool]:
    """(what was left out in words, whether the aim is for it)."""
    kind, _, nodes = left.partition("_nodes_")
    words = {
        "in_sample": "nothing (in-sample)", "hidden": "whole hidden sizes", "tokens": "every second token count",
        "top_decade": "top decade of tokens",
    }  # fmt: skip
    if kind in words:
        return words[kind] + (f", {nodes} domain{'s' if nodes != '1' else ''}" if nodes else ""), True
    if left.startswith("other_source_"):
        return f"all: rows of another source, {left.removeprefix('other_source_')}", False
    flag, _, how = re.sub(r"_(tokens|as_clear)$", r" \1", left).partition(" ")
    how = {"": "NIC rate read off them", "tokens": "NIC rate read off every second token count",
           "as_clear": "NIC rate of fewer nodes"}[how]  # fmt: skip
    return f"flagged `{flag}`, {how}", False


def _dispatch() -> list[str]:
    rows = []
    flagged = []
    for device in dispatch.DEVICES:
        whole = {kernel: e for kernel, left, e in dispatch_errors(device) if left == "in_sample"}
        for kernel, left, e in dispatch_errors(device):
            if left == "in_sample_nodes_1" and e == whole[kernel]:
                continue  # one domain is all there is
            text, aimed = left_text(left)
            met = e["median"] <= AIM_DISPATCH if aimed else None
            rows.append([device, kernel, text, e["cases"], percent(e["median"]), percent(e["p90"]), _said(met)])
        points = dispatch.points(device)
        flagged += [
            f"{n} of {device} (`{flag}`)" for flag, n in points[points.flag != ""].groupby("flag").size().items()
        ]
    return [
        "### Expert dispatch",
        "Dispatch and combine of DeepEP, normal and low-latency, and of the rack-wide kernels of GB200, fitted per "
        "device (`hwprofiles/fitted/kernels/<device>/dispatch.toml`) on idle machines under uniform routing. From 64 "
        "tokens per rank on; low latency: all. Aim: median 12 %.",
        f"Rows over several domains come from one cluster. Distrusted rows, which stay out of the fit: "
        f"{', '.join(flagged) or 'none'}; their errors are shown with a NIC rate read off them and are not aimed at. "
        "`another source`: another library's all-to-all under these forms, the multiprocessors it takes assumed; "
        "shown as a warning that forms do not carry over.",
        table(("device", "kernel", "left out", "points", "median", "p90", "aim met"), rows),
    ]


# ---------------------------------------------------------------- uneven experts


def recorded_errors() -> Iterator[tuple[str, str, Entry]]:
    """(device, dtype, errors) of grouped GEMM under recorded loads."""
    for device in sorted({catalogue.device(name).measured for name in catalogue.names("devices")} - {""}):
        for left, kind, e in kernel_errors(device, "grouped"):
            if left == "uneven_counted":
                yield device, kind, e


def _uneven() -> list[str]:
    recorded = [
        [device, kind, e["cases"], percent(e["median"]), percent(e["p90"]), _said(e["median"] <= AIM_RECORDED)]
        for device, kind, e in recorded_errors()
    ]
    laws = []
    for device in dispatch.DEVICES:
        s = imbalance.score(device)
        laws.append([
            device, s.penalty.cases, percent(s.penalty.median), percent(s.penalty.p90),
            _said(s.penalty.p90 <= AIM_PENALTY), f"{percent(s.order)} of {s.pairs}",
            f"{percent(s.clear_order)} of {s.clear_pairs}", _said(s.clear_order == 1.0),
        ])  # fmt: skip
    noise = f"{100 * imbalance.NOISE:.0f} %"
    return [
        "### Uneven experts",
        "Grouped GEMM whose loads of every expert were recorded with the time (`hwprofiles/fitted/kernels/<device>/"
        "grouped.toml`). Aim: median 10 %.",
        table(("device", "dtype", "points", "median", "p90", "aim met"), recorded),
        "Whole MoE layers under a stated power law at expert-parallel sizes 8, 32 and 64, nothing fitted to them: "
        "penalty is time over that of balanced routing at the same size. The rows state a law, not loads; the mean of "
        "drawn loads stands for them. Aims: p90 of the penalty's error within 30 %, and a larger penalty at the larger "
        f"size wherever that was measured. `clear` pairs were measured more than {noise} apart; the order of the "
        "others is chance, as each row is few draws, so the aim is for the clear ones.",
        table(
            ("device", "points", "penalty median", "p90", "penalty aim met", "orders right", "clear orders right",
             "order aim met"),
            laws,
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------- training trace


def _trace() -> list[str]:
    found = training_trace()

    def ms(seconds: float) -> str:
        return f"{seconds * 1e3:.1f} ms"

    rows = [
        ["span", ms(found.span_s), ms(found.measured_span_s), percent(found.span_error, sign=True), "within 10 %",
         _said(abs(found.span_error) <= AIM_SPAN)],
        ["exposed communication", ms(found.exposed_s), ms(found.measured_exposed_s), "–",
         f"below {ms(AIM_EXPOSED_S)}", _said(found.exposed_s < AIM_EXPOSED_S)],
    ]  # fmt: skip
    return [
        "### DeepSeek-V3 training trace",
        "One overlapped pair of a forward and a backward chunk, four MoE layers each, on H800 with expert parallelism "
        "over 64 and forced balance (`calibration/published/training_trace.toml`). No parameter is fitted to its "
        "times, but the multiprocessors DeepEP takes and one end of the NIC's share of a dispatch were read off the "
        "same trace. Exposed is what the span has beyond computation: 0 says that computation alone is predicted to "
        "set the pace, so it does not check how much of the communication would be exposed.",
        left_table(("of", "predicted", "measured", "error", "aim", "aim met"), rows),
    ]
