"""docs/accuracy.md as text: scores, baselines, left-out errors, worst cases, what is fitted."""

from __future__ import annotations

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from calibration.accuracy_groups import rank_section, regret_section, setup_section, sure_section
from calibration.accuracy_intervals import interval_sections
from calibration.accuracy_rows import MADE, left_table, percent, table, value_text
from calibration.baseline import constant_mfu
from calibration.first_tests import first_section
from calibration.mechanisms import worst_section
from calibration.parameters import REFERENCE_HOST, parameter, value_of
from calibration.score import balanced_accuracy, by, cases_of, errors, mean_over, rank_agreement, told_apart
from calibration.validate import Row
from hwprofiles import catalogue
from hwprofiles.factors import factors

if TYPE_CHECKING:
    from calibration.accuracy import Scored

RUNS = "training_runs.csv"
FOLDING = "parallel_folding.csv"
SPEEDS = ("step_s", "tokens_per_s_gpu")
TWIN = "The same with tables to sort and filter, in one file: [accuracy.html](accuracy.html)"
CLASSES: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("MoE", lambda r: r.group.get("arch") == "moe"),
    ("dense, 1B and more", lambda r: r.group.get("class") == "dense"),
    ("all dense", lambda r: r.group.get("arch") == "dense"),
    ("all", lambda r: True),
)


def page(scored: Scored) -> str:
    """The whole page."""
    cases = cases_of(scored.rows[RUNS])
    paired = [row for file in (RUNS, FOLDING) for row in scored.rows.get(file, ())]
    parts = [
        "# Accuracy", MADE,
        "Made by `make accuracy` from the published runs in `calibration/published`; not edited by hand. Row by row: "
        "[accuracy-rows.md](accuracy-rows.md). "
        f"{TWIN}. The error of a case is predicted / measured - 1 of tokens/s per GPU: "
        "positive is predicted too fast. One case per configuration and trainer release (median of its rows); figures "
        "derived from printed TFLOP/s and rows in doubt are not counted in errors. Cells a source does not state are "
        "filled by planning before any measured column is read.",
        *_headline(scored, cases), *_leave_out(scored), *first_section(paired), *_other_files(scored),
        *_memory(scored), *scored.kernels, *_groups(scored, cases), *worst_section(cases, scored.rows[RUNS]),
        *_not_scored(scored), *_parameters(scored), *interval_sections(scored),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _scores(name: str, cases: Sequence[Row]) -> list[str]:
    e = errors(cases)
    return [
        name, str(e["cases"]), percent(e["mape"]), percent(e["median_ape"]), percent(e["p90_ape"]),
        percent(e["bias"], sign=True), percent(mean_over(cases, "model")), percent(mean_over(cases, "source")),
        percent(e["coverage"]),
    ]  # fmt: skip


SCORES = ("class", "cases", "MAPE", "median", "p90", "bias", "mean over models", "mean over sources", "in interval")


def _headline(scored: Scored, cases: Sequence[Row]) -> list[str]:
    ranked = cases_of(scored.rows[RUNS], ranked=True)
    by_precision = constant_mfu(cases, scored.ideal, ("gpu", "precision"))
    by_class = constant_mfu(cases, scored.ideal, ("gpu", "precision", "arch"))
    base_rows = []
    for name, mine in CLASSES:
        picked = [[c for c in group if mine(c)] for group in (cases, by_precision, by_class)]
        base_rows.append([name, *(percent(errors(p)[k]) for k in ("mape", "median_ape") for p in picked)])
    apart = told_apart(ranked)
    taus = {
        "all rows without doubt (TFLOP/s-derived ones too)": (
            ranked, constant_mfu(ranked, scored.ideal, ("gpu", "precision", "arch")),
        ),
        "exact rows alone": (cases, by_class),
        "the first, runs with equal inputs as one": (
            apart, constant_mfu(apart, scored.ideal, ("gpu", "precision", "arch")),
        ),
    }  # fmt: skip
    tau_rows = []
    for name, (ours, base) in taus.items():
        mine_tau, base_tau = rank_agreement(ours), rank_agreement(base)
        tau_rows.append([name, mine_tau["groups"], f"{mine_tau['mean_tau']:.2f}", f"{base_tau['mean_tau']:.2f}"])
    return [
        "## Published training runs",
        table(SCORES, (_scores(name, [c for c in cases if mine(c)]) for name, mine in CLASSES)),
        "`in interval`: share of measurements within the predicted 80 % interval. These runs are also the ones the "
        "few whole-run parameters were fitted to; errors on what was left out of the fit follow below.",
        *sure_section(cases, CLASSES),
        "![Predicted against measured tokens/s per GPU](images/parity.svg)",
        "### Against a constant MFU",
        "The baseline guesses one model-FLOP utilisation per GPU and precision (and, more generously, per class), the "
        "best constant for these very cases: it is fitted in-sample, to their measured values.",
        table(
            ("class", "MAPE", "constant per GPU, precision", "per GPU, precision, class", "median",
             "constant per GPU, precision", "per GPU, precision, class"),
            base_rows,
        ),
        "### Rank agreement",
        "Mean Kendall tau within groups of equal model, GPU, GPU count and sequence with at least three cases: does "
        "the prediction order the layouts and recipes as the measurement did? A group whose predictions are all "
        "equal counts 0. Runs that differ in nothing the simulator is told have one prediction; in the last row they "
        "are one case, with the median of what they measured.",
        table(("cases", "groups", "mean tau", "constant MFU per GPU, precision, class"), tau_rows),
        *rank_section(ranked),
        *regret_section(ranked),
    ]  # fmt: skip


def _leave_out(scored: Scored) -> list[str]:
    names = {
        "nothing": "nothing (refitted on all)", "model": "one model at a time", "gpu": "one GPU at a time",
        "release": "one trainer release at a time",
    }  # fmt: skip
    rows = []
    for key, name in names.items():
        line = [name]
        for _, mine in CLASSES[:3]:
            e = errors([c for c in scored.left_out[key] if mine(c)])
            line += [percent(e["mape"]), percent(e["median_ape"])]
        rows.append(line)
    head = ["left out of the fit", *(f"{name} {kind}" for name, _ in CLASSES[:3] for kind in ("MAPE", "median"))]
    return [
        "### Left out of the fit",
        "The whole-run parameters (listed at the end of the page) are refitted without a group, and the group is "
        "then simulated with them. The refit reads each parameter's effect from four simulated values and the shipped "
        "one, adding effects in the logarithm; the predictions themselves are full simulations. A device left out "
        "takes the mean clock of the others. The filled plans, the model's structure and its constants were not chosen "
        "anew, so what was learned about these runs while building it remains: a run nobody has seen may be worse.",
        table(head, rows),
    ]


def as_step_time(row: Row) -> Row:
    """The row with the error of its step time, which is positive where the prediction is too slow."""
    if row.measure == "step_s" or row.error is None:
        return row
    return replace(row, error=1.0 / (1.0 + row.error) - 1.0)


def _other_files(scored: Scored) -> list[str]:
    names = {
        FOLDING: "MoE on 64 to 1,024 H100, folded and not (figures derived from printed MFU)",
        "vtrain_measured_multi.csv": "GPT on several nodes of A100 (vTrain)",
        "vtrain_measured_single.csv": "GPT on one node of A100 (vTrain: composed from profiles of one layer)",
        "calculon_megatron_a100_time.csv": "Megatron 22B to 1T on A100, 2022",
        "megatron_b200_one_node.csv": "cut-down models on 8 B200, bf16, nothing overlapped",
    }
    rows = []
    for file, name in names.items():
        mine = [as_step_time(r) for r in scored.rows.get(file, ()) if r.measure in SPEEDS and r.error is not None]
        if mine:
            e = errors(mine)
            text = [percent(e[k]) for k in ("mape", "median_ape", "p90_ape")]
            rows.append([name, str(len(mine)), *text, percent(e["bias"], sign=True), percent(e["coverage"])])
    out = [
        "## Other published step times",
        "No whole-run parameter is fitted to these files, but three numbers to the one-node profiles (below), and "
        "`clock_16bit` of B200 to the runs on one B200 node that have no tensor parallelism. Errors are of step time: "
        "positive is predicted too slow.",
        table(("runs", "rows", "MAPE", "median", "p90", "bias", "in interval"), rows),
    ]
    single = [r for r in scored.rows.get("vtrain_measured_single.csv", ()) if r.error is not None]
    if single:
        groups = sorted(by(single, "n_gpus").items(), key=lambda item: int(item[0]))
        out.append(
            "The one-node times of vTrain are sums, not wall clocks: within equal hidden size, micro-batch and degrees "
            "they are exactly linear in layers and micro-batches, and a layer takes the same time at every dp and pp. "
            "1,440 rows are 32 profiles of one layer, traced with a profiler attached, put together by their authors' "
            "tool; they say little about a whole step. They are read as what they are: nothing recomputed (with full "
            "recompute the profile of hidden size 2048, micro-batch 4 and tp 1 would do its products and its least "
            "traffic at 82 % of both datasheet peaks), the tool's unpadded vocabulary of 50,257, launches under a "
            "tracing profiler. How much the last two cost, "
            "`traced_launch` and `unaligned_gemm`, is fitted to these very rows, three numbers for 32 profiles."
        )
        out.append(table(
            ("one node of A100: GPUs used", "rows", "MAPE", "bias"),
            ([n, e["cases"], percent(e["mape"]), percent(e["bias"], sign=True)] for n, e in groups),
        ))  # fmt: skip
    return out


def _memory(scored: Scored) -> list[str]:
    rows = [r for group in scored.rows.values() for r in group if r.predicted is not None and r.measured is not None]
    out = ["## Memory", *_peaks([r for r in rows if r.measure == "peak_bytes"])]
    out += _feasible([r for r in rows if r.measure == "fits"])
    ran = [r for r in scored.rows[RUNS] if r.status == "ok" and r.peak_bytes is not None]
    over = " exceeds the device"
    wrong = [f"{r.id} ({r.group['model']}, {r.reason.removesuffix(over)})" for r in ran if r.reason.endswith(over)]
    out.append(
        f"Every published training run did fit; {len(ran) - len(wrong)} of {len(ran)} are predicted to. Not so: "
        f"{', '.join(wrong) or 'none'}."
    )
    return out


def _peaks(rows: Sequence[Row]) -> list[str]:
    counted = [r for r in rows if r.scored]
    scores = [
        [name, e["cases"], percent(e["mape"]), percent(e["bias"], sign=True)]
        for name, e in by(counted, "source").items()
    ]
    cells = [
        [
            r.id.removesuffix(" (peak memory)"), r.plan, value_text(r, r.measured), value_text(r, r.predicted),
            percent(r.error, sign=True), "yes" if r.scored else "no",
        ]
        for r in rows
    ]  # fmt: skip
    head = ("run", "plan", "measured", "predicted", "error", "counted")
    return [
        "### Peak memory",
        "Of the stage that needs most. No parameter is fitted to these rows, but the memory formulas were checked "
        "against them while they were written, and the number of dense layers in the cut-down DeepSeek-V3 of the "
        "one-node rows, which the source does not state, follows from their memory: not a test on unseen rows. "
        "Predicted is what is allocated; torchtitan's log prints what its caching allocator has reserved, fragments "
        "included, so that its rows lie above.",
        table(("source", "rows", "MAPE", "bias"), scores),
        left_table(head, cells),
    ]


def _feasible(rows: Sequence[Row]) -> list[str]:
    counted = [r for r in rows if r.scored]
    out = ["### Fits or out of memory"]
    if counted:
        b = balanced_accuracy(counted)
        right = sum(r.predicted == r.measured for r in counted) / len(counted)
        out.append(
            "Rows that state layout, sequence and micro-batch count: "
            f"{b['fits']} that fit and {b['oom']} that ran out of memory. "
            + (f"Balanced accuracy {b['balanced_accuracy']:.2f}." if b["balanced_accuracy"] is not None else
               f"Right: {percent(right)}; with one outcome alone this is no balanced accuracy.")
        )  # fmt: skip
    cells = [
        [r.id, r.plan, value_text(r, r.measured), value_text(r, r.predicted), "yes" if r.scored else "no"] for r in rows
    ]
    return [*out, left_table(("row", "plan", "outcome", "predicted", "counted"), cells)]


def _groups(scored: Scored, cases: Sequence[Row]) -> list[str]:
    base = {c.key: c for c in constant_mfu(cases, scored.ideal, ("gpu", "precision"))}
    out = [
        "## By group",
        "Baseline: the constant MFU per GPU and precision (a case alone in its group is met exactly by it).",
    ]
    for field, title in (("model", "model"), ("gpu", "GPU"), ("release", "trainer release"), ("source", "source")):
        groups: dict[str, list[Row]] = defaultdict(list)
        for case in cases:
            groups[case.group.get(field, "")].append(case)
        rows = []
        for name in sorted(groups):
            e, b = errors(groups[name]), errors([base[c.key] for c in groups[name]])
            rows.append([
                name, e["cases"], percent(e["mape"]), percent(e["median_ape"]), percent(e["bias"], sign=True),
                percent(e["coverage"]), percent(b["mape"]),
            ])  # fmt: skip
        head = (title, "cases", "MAPE", "median", "bias", "in interval", "baseline MAPE")
        out += [f"### By {title}", table(head, rows)]
    return [*out, *setup_section(cases)]


STATUSES = ("undetermined", "unsupported", "infeasible")


def _not_scored(scored: Scored) -> list[str]:
    counts = [
        [
            file, len(rows), sum(r.status == "ok" for r in rows), sum(r.status == "ok" and r.scored for r in rows),
            *(sum(r.status == status for r in rows) for status in STATUSES),
        ]
        for file, rows in scored.rows.items()
    ]  # fmt: skip
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for file, rows in scored.rows.items():
        for row in rows:
            if row.status != "ok":
                reason = row.reason.removeprefix(f"{row.id}: ")
                groups[(file, row.status, re.split(r"[.;]? (?:Known|choose|Did you)", reason)[0])].append(row.id)
    rows_ = [[f, s, reason, len(ids), ", ".join(ids)] for (f, s, reason), ids in sorted(groups.items())]
    doubt = sum(1 for r in scored.rows[RUNS] if r.status == "ok" and not r.ranked)
    inexact = sum(1 for r in scored.rows[RUNS] if r.status == "ok" and r.ranked and not r.scored)
    return [
        "## Rows without a prediction",
        "`undetermined`: tp, pp, ep and micro-batch are all unknown, or the sequence length is; decided by that rule, "
        "never by the error. `unsupported`: the model or device is not covered, or a cell the prediction needs is "
        "missing. `infeasible`: "
        "no layout obeys the rules with the stated cells.",
        table(("file", "rows", "predicted", "counted in errors", *STATUSES), counts),
        left_table(("file", "status", "reason", "rows", "which"), rows_),
        f"Predicted but not counted in errors: {doubt} rows in doubt, {inexact} whose tokens/s follow from printed "
        "TFLOP/s (these count for rank agreement).",
    ]


def _parameters(scored: Scored) -> list[str]:
    (everything,) = scored.refits["nothing"].values()
    device = {factors_of: factors(factors_of) for factors_of in sorted(n.split(".")[1] for n in everything if "." in n)}
    rows = []
    for name in sorted(everything):
        value = value_of(name, device[name.split(".")[1]] if "." in name else next(iter(device.values())))
        without = [v[name] for v in scored.refits["model"].values()]
        known = parameter(name)
        rows.append([
            f"`{name}`", known.what, f"{value:.4g}", f"{everything[name]:.4g}",
            f"{min(without):.4g} to {max(without):.4g}", f"{known.prior:g} (factor {math.exp(known.spread):.2g})",
            f"{known.low:g} to {known.high:g}" + (" (at its bound)" if value in (known.low, known.high) else ""),
        ])  # fmt: skip
    measured = {catalogue.device(n).measured for n in catalogue.names("devices")}
    unfitted = [f"{f} {factors(f).clock:g}" for f in sorted(measured - set(device) - {""})]
    return [
        "## What is fitted to whole runs",
        f"{len(rows)} parameters: a sustained clock per device, the speed of its nodes' launching thread over that of "
        f"{REFERENCE_HOST} nodes, and {sum('.' not in n for n in everything)} that all devices share (host times in "
        "seconds); no factor per model, release, framework or row. Beside the shipped value: the refit of this page on "
        "all cases, its range when one model at a time is left out, and the prior, the value it would take without any "
        "whole run, with one standard deviation of its logarithm as a factor. A value at its bound is where physics, "
        "not the runs, stopped the fit: the runs would take more.",
        left_table(
            ("parameter", "what", "shipped", "refitted on all", "refitted without one model", "prior", "bounds"), rows
        ),
        "Clocks without a run to fit them, assumed: " + (", ".join(unfitted) or "none") + ".",
        "Everything else is measured on kernels and collectives, or assumed, and was not fitted by this command: "
        "`hwprofiles/fitted/common.toml`, with its own remarks. Not blind, though: the share of the NIC that "
        "all-to-all reaches "
        "(between two measured extremes) and the counts of host steps and passes in `sim/build/moe.py` and "
        "`sim/cost` (per expert, per parameter tensor, per synchronisation, of an unfused activation) were settled by "
        "hand with these runs in view.",
        left_table(("constant", "value", "rests on"), _constants(set(everything))),
    ]


def _constants(fitted: set[str]) -> list[tuple[str, str, str]]:
    text = (resources.files("hwprofiles") / "fitted" / "common.toml").read_text(encoding="utf-8")
    said = {m[1]: m[2] for m in re.finditer(r"(?m)^(\w+)\s*=[^#\n]*#\s*(.*)$", text)}
    out = []

    def add(prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                if key != "source":
                    add(f"{prefix}{key}.", value)
            elif key not in fitted:
                out.append((f"`{prefix}{key}`", f"{value:g}", said.get(key, "")))

    add("", tomllib.loads(text))
    return out
