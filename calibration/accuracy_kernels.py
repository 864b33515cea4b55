"""The section "Kernels and closed loop" of docs/accuracy.md: how well kernels are fitted, and how well they add up.

Errors of the kernel fits stand in the fitted files of each shipped device; the closed loop is run anew over the rows
that lie in `calibration/measured/<device>` (rows.csv, environment.json), whatever folders there are.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.accuracy_rows import left_table, percent, table
from calibration.check import Checked, Verdict, check
from hwprofiles import catalogue
from hwprofiles.folders import fitted_file

FAMILIES = ("gemm", "attention", "grouped")
IN_SAMPLE = ("nothing", "in_sample")
MEASURED = Path(__file__).resolve().parent / "measured"
# Devices a figure is promised for: the part of a folder's name that tells them, and how the page calls them.
WANTED = {"h200": "NVIDIA H200"}
AIM = (0.06, 0.18)  # median and 90th percentile of what was left out of a kernel fit
AIM_UNEVEN = 0.10
NAMES = {
    "block": "blocks, time",
    "block_ranks": "of these, over several ranks",
    "step": "training steps, time",
    "step_ranks": "of these, over several ranks",
    "memory": "peak memory",
}
LEFT = {
    "nothing": "nothing (in-sample)", "in_sample": "nothing (in-sample)", "pair": "whole (n, k) pairs",
    "config": "whole head configurations", "batch_heads": "batch x heads", "model": "whole models",
    "top_decade": "top decade of rows or length",
}  # fmt: skip


def kernel_section(measured: Path = MEASURED) -> list[str]:
    """Paragraphs and tables; `measured`: where folders of measured rows lie (it need not exist)."""
    return ["## Kernels and closed loop", *_kernels(), *_loop(folders(measured))]


def folders(measured: Path) -> list[Path]:
    """Folders with measured rows, by name."""
    return sorted(path.parent for path in measured.glob("*/rows.csv"))


def _kernels() -> list[str]:
    devices = sorted({catalogue.device(name).measured for name in catalogue.names("devices")} - {""})
    rows = []
    for device in devices:
        for family in FAMILIES:
            for left, kind, e in kernel_errors(device, family):
                what = LEFT.get(left, left.replace("_", " "))
                errors = [e["cases"], percent(e["median"]), percent(e["p90"])]
                rows.append([device, family, kind, what, *errors, "yes" if aim_met(left, e) else "no"])
    return [
        "### Kernels",
        "Errors of the fitted kernel forms against the measured kernels of each shipped device (absolute relative "
        "error of a time), in-sample and with whole groups left out of the fit. `top decade`: the largest tenth of the "
        "rows or lengths, predicted from the rest. These tables hold forward kernels: on shipped devices the backward "
        "pass is assumed (but for the attention core at one length of one device), and every result says so.",
        "The aim on every device, for 256 rows or tokens and more: median 6 %, p90 18 %; uneven grouped GEMM: "
        "median 10 %. GEMM: `pair` leaves whole (n, k) out, `all` is all measured dtypes together, mxfp8 is put "
        "together from the fp8 kernels and not scored. Attention: `config` leaves (heads, key/value heads) out; "
        "`core` is gqa and mha together. Grouped GEMM: `model` leaves whole models out, `full experts` are those "
        "with 256 rows an expert, `steady` those whose library did not fall back to a slow kernel, `tokens` means "
        "by tokens entering; `uneven counted` has recorded loads, `setting` leaves whole (expert-parallel size, "
        "distribution) out, `stated` only states its power law.",
        table(("device", "family", "kind", "left out", "points", "median", "p90", "aim met"), rows),
    ]


def aim_met(left: str, e: Mapping[str, Any]) -> bool:
    """Whether errors are within `AIM`, those of uneven loads within `AIM_UNEVEN`."""
    if "uneven" in left:
        return float(e["median"]) <= AIM_UNEVEN
    return float(e["median"]) <= AIM[0] and float(e["p90"]) <= AIM[1]


def kernel_errors(device: str, family: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(left out, kind, errors) of the fitted file of one device; nothing where it has none."""
    file = fitted_file(device, f"{family}.toml")
    if not file.is_file():
        return
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    listed = data.get("errors") or data.get(family, {}).get("errors")
    if isinstance(listed, list):
        yield from ((str(e["left_out"]), str(e["kind"]), e) for e in listed)
        return
    for kind, section in data.items():
        if isinstance(section, dict) and kind != "source":
            yield from ((left, kind, e) for left, e in section.get("errors", {}).items())


def _loop(found: Sequence[Path]) -> list[str]:
    out = [
        "### Closed loop",
        "A profile fitted to microbenchmarks alone predicts the MoE blocks and training steps measured on the same "
        "device (`moecast calibrate check`); the raw rows lie in `calibration/measured`.",
    ]
    rows: list[list[str]] = []
    details: list[str] = []
    for folder in found:
        result = check(folder)
        rows += [_verdict(result, v) for v in result.verdicts()]
        details += _by_kind(result)
    if rows:
        head = ("device", "of", "points", "mean error", "target", "met")
        out.append(left_table(head, rows))
    out += [f"{name}: not measured (no GPU was available)." for key, name in WANTED.items() if not _has(found, key)]
    return out + details


def _has(found: Sequence[Path], key: str) -> bool:
    return any(key in folder.name.lower() for folder in found)


def _verdict(result: Checked, v: Verdict) -> list[str]:
    target = "–" if v.target is None else percent(v.target)
    met = {True: "yes", False: "no", None: "–"}[v.met]
    return [result.device, NAMES[v.name], str(v.count), percent(v.mean if v.count else None), target, met]


def _by_kind(result: Checked) -> list[str]:
    rows = [
        [what, s.name, s.count, percent(s.mean), percent(s.median), percent(s.bias, sign=True)]
        for what, summaries in (("time", result.times()), ("peak memory", result.memory()))
        for s in summaries
    ]
    assumed = [note for note in result.provenance if "assumed" in note or "extrapolated" in note]
    return [
        f"By op, {result.device}; bias: positive is predicted too slow or too large. "
        + (
            f"Not measured there: {'; '.join(assumed)}."
            if assumed
            else "Forward and backward rest on measured kernels."
        ),
        left_table(("of", "op and part", "points", "mean", "median", "bias"), rows),
    ]
