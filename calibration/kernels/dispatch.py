"""Expert dispatch and combine: measured points, fit, errors on what the fit has not seen, and the file left behind.

    python -m calibration.kernels.dispatch DATE

Truth is every row of `hwprofiles/measured/<device>/alltoall.csv` that carries no flag. Rows of several domains
were measured on one cluster; those of 8 nodes are flagged congested: they are scored with a NIC rate of
their own, read off them, which the form does not use. Errors are stated for at least `SCORED_TOKENS` tokens per rank
(low latency: all), since fewer show the start-up only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.kernels.base import Errors, Floats, LeftOut, errors
from calibration.kernels.dispatch_fit import Chip, fit_named, fit_nic, predicted_s
from hwprofiles.catalogue import device
from hwprofiles.errors import UserError
from hwprofiles.factors import factors
from hwprofiles.forms.dispatch import FILE, MODES, form_of

FAMILY = "dispatch"
DEVICES = ("h100", "h200", "b200", "gb200")
SCORED_TOKENS = 64
OTHER = "normal_other"
OTHER_SMS = 24  # of TensorRT-LLM's rows, which do not state them: assumed
GROUP_LIMIT = 4  # of DeepEP's own benchmark, which routes to at most so many domains
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DispatchFit:
    """One mode and phase: fitted numbers, errors on its own rows, sizes they cover."""

    named: Mapping[str, Any]
    form: Any
    in_sample: Errors
    domain: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Fits of one device by (mode, phase); `congested`: NIC rate of the flagged rows by flag and phase."""

    device: str
    by_kernel: Mapping[tuple[str, str], DispatchFit]
    congested: Mapping[tuple[str, str], float]


def points(folder: str) -> pd.DataFrame:
    """Measured rows of a shipped device.

    Columns: device, kind (mode, or `OTHER`), phase, payload, flag, nodes, ep, hidden, topk, experts, sms, group_limit,
    tokens (per rank), time_s. Raises UserError for an unknown folder or one without such kernels.
    """
    path = resources.files("hwprofiles") / "measured" / folder / "alltoall.csv"
    if not path.is_file():
        raise UserError(f"no measured dispatch kernels of {folder!r}: there is no {path}", where="measured")
    with path.open(encoding="utf-8") as file:
        wide = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"flag": str})
    sizes = [name for name in wide.columns if name.endswith("_s") and name[0] == "t"]
    keys = [name for name in wide.columns if name not in sizes]
    long = wide.melt(keys, sizes, "tokens", "time_s").dropna(subset="time_s")
    tokens = long.tokens.str.removeprefix("t").str.removesuffix("_s").astype(int)
    long = long.assign(tokens=tokens, flag=long.flag.fillna(""), device=folder, group_limit=0)
    long.loc[(long.kind == "normal") & (long.nodes > GROUP_LIMIT), "group_limit"] = GROUP_LIMIT
    long.loc[long.kind == OTHER, "sms"] = OTHER_SMS
    # experts are tied to ranks in the form; a row without multiprocessors takes all it wants
    long["sms"] = long.sms.where(long.sms > 0, 1)
    return long.sort_values([*keys, "tokens"]).reset_index(drop=True)


def fit(measured: pd.DataFrame) -> Fitted:
    """Fit every mode and phase of one device (see `points`)."""
    folder = str(measured.device.iloc[0])
    chip = chip_of(folder)
    made, congested = {}, {}
    for mode, phase, part in _kernels(measured):
        named = fit_named(mode, part, chip)
        scored = part[_scored(mode, part)]
        sizes = {
            name: (float(part[name].min()), float(part[name].max())) for name in ("tokens", "hidden", "topk", "ep")
        }
        off = errors(predicted_s(mode, named, scored), scored.time_s.to_numpy(float))
        made[mode, phase] = DispatchFit(named=named, form=form_of(mode, named), in_sample=off, domain=sizes)
        for flag, rows in _flagged(measured, mode, phase):
            congested[flag, phase] = fit_nic(mode, named, rows)
    return Fitted(device=folder, by_kernel=made, congested=congested)


def left_out(measured: pd.DataFrame, fitted: Fitted) -> tuple[LeftOut, ...]:
    """Errors of rows that a fit without them had not seen.

    hidden: whole hidden sizes; tokens: every second token count; top_decade: tokens above a tenth of the most;
    nodes_<n>: in-sample by nodes; other_source: TensorRT-LLM's rows under the form of the others (bf16, nvfp4 payload);
    <flag>: flagged rows with the NIC rate read off them, <flag>_tokens: read off every second token count and scored on
    the others, <flag>_as_clear: with the rate of fewer nodes.
    """
    chip = chip_of(fitted.device)
    found = []
    for mode, phase, part in _kernels(measured):
        name, scored = f"{mode}.{phase}", _scored(mode, part)
        nodes, hidden, tokens = (part[c].to_numpy() for c in ("nodes", "hidden", "tokens"))

        def note(kind: str, off: Floats, name: str = name) -> None:
            if len(off):
                found.append(_left(kind, fitted.device, name, off))

        named = fitted.by_kernel[mode, phase].named
        note_in = _off(mode, named, part)
        for n in np.unique(nodes):
            note(f"in_sample_nodes_{n}", note_in[scored & (nodes == n)])
        alone = np.unique(hidden[nodes == 1])
        if len(alone) > 1:
            off = np.full(len(part), np.nan)
            for size in alone:
                out = (hidden == size) & (nodes == 1)
                off[out] = _without(mode, part, out, chip)[out]
            note("hidden", off[scored & (nodes == 1)])
        every = {n: i % 2 for i, n in enumerate(np.unique(tokens))}
        odd = np.array([every[n] for n in tokens]) == 1
        top = tokens > tokens.max() / 10.0
        for kind, out in (("tokens", odd), ("top_decade", top)):
            off = _without(mode, part, out, chip)
            for n in np.unique(nodes):
                note(f"{kind}_nodes_{n}", off[out & scored & (nodes == n)])
        if mode == "normal":
            other = measured[(measured.kind == OTHER) & (measured.phase == phase)]
            other = other[_scored(mode, other)]
            for payload, rows in other.groupby("payload"):
                note(f"other_source_{payload}", _off(mode, named, rows))
        for flag, rows in _flagged(measured, mode, phase):
            own = {**named, "across": {**named["across"], "nic_bytes_per_s": fitted.congested[flag, phase]}}
            note(flag, _off(mode, own, rows))
            note(f"{flag}_as_clear", _off(mode, named, rows))
            odd = np.array([every[n] for n in rows.tokens]) == 1
            half = {**named["across"], "nic_bytes_per_s": fit_nic(mode, named, rows[~odd])}
            note(f"{flag}_tokens", _off(mode, {**named, "across": half}, rows[odd]))
    return tuple(found)


def write(fitted: Fitted, path: Path, *, left: tuple[LeftOut, ...], date: str) -> None:
    """dispatch.toml of a device: a section per mode and phase with form, domain and errors."""
    lines = ["# Written by calibration.kernels.dispatch; see hwprofiles/forms/dispatch.py for what each number does."]
    for (mode, phase), found in fitted.by_kernel.items():
        head = f"{mode}.{phase}"
        known = set(MODES[mode].__dataclass_fields__) - {"across"}
        lines += ["", f"[{head}]"] + [f"{k} = {v:.6g}" for k, v in found.named.items() if k in known]
        if "across" in found.named:
            lines += [f"[{head}.across]"] + [f"{k} = {v:.6g}" for k, v in found.named["across"].items()]
            rates = {flag: rate for (flag, of), rate in fitted.congested.items() if mode == "normal" and of == phase}
            if rates:
                lines += [f"[{head}.flagged] # NIC rate that flagged rows show; the form does not use it"]
                lines += [f"{flag} = {rate:.6g}" for flag, rate in rates.items()]
        lines += [f"[{head}.domain]"] + [f"{k} = [{a:g}, {b:g}]" for k, (a, b) in found.domain.items()]
        lines += [f"[{head}.errors] # relative: cases, median, 90th percentile"]
        lines += [_line("in_sample", found.in_sample)]
        lines += [_line(entry.kind, entry) for entry in left if entry.dtype_or_kind == head]
    lines += ["", "[source]", 'kind = "fitted"']
    lines += [f'title = "Expert dispatch and combine fitted to measured kernels of {fitted.device}"']
    lines += [f'where = "calibration/kernels/dispatch.py over hwprofiles/measured/{fitted.device}/alltoall.csv"']
    lines += [f'date = "{date}"', 'licence = "Apache-2.0"']
    lines += [
        'note = "Idle machine, uniform routing. Seconds and bytes; errors from 64 tokens per rank (low latency: all)."'
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Fit every device anew and write its file; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m calibration.kernels.dispatch DATE\n")
        return 2
    root = Path(__file__).resolve().parents[2] / "hwprofiles" / "fitted" / "kernels"
    for folder in DEVICES:
        measured = points(folder)
        fitted = fit(measured)
        write(fitted, root / folder / FILE, left=left_out(measured, fitted), date=arguments[0])
    return 0


def chip_of(folder: str) -> Chip:
    """The device of a measured folder."""
    return Chip(
        multiprocessors=float(device(folder).num_sms),
        nvlink_bytes_per_s=factors(folder).scale_up_reference_bytes_per_s,
    )


def _kernels(measured: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    clear = measured[measured.flag == ""]
    for (mode, phase), part in clear.groupby(["kind", "phase"]):
        if mode in MODES:
            yield str(mode), str(phase), part.reset_index(drop=True)


def _flagged(measured: pd.DataFrame, mode: str, phase: str) -> Iterator[tuple[str, pd.DataFrame]]:
    rows = measured[(measured.kind == mode) & (measured.phase == phase) & (measured.flag != "")]
    for flag, part in rows[_scored(mode, rows)].groupby("flag"):
        yield str(flag), part


def _scored(mode: str, part: pd.DataFrame) -> Mask:
    many: Mask = (part.tokens >= (1 if mode == "low_latency" else SCORED_TOKENS)).to_numpy()
    return many


def _off(mode: str, named: Mapping[str, Any], rows: pd.DataFrame) -> Floats:
    off: Floats = predicted_s(mode, named, rows) / rows.time_s.to_numpy(float) - 1.0
    return off


def _without(mode: str, part: pd.DataFrame, out: Mask, chip: Chip) -> Floats:
    """Relative errors of all rows under a fit without the rows `out`."""
    return _off(mode, fit_named(mode, part[~out], chip), part)


def _left(kind: str, folder: str, name: str, off: Floats) -> LeftOut:
    size = np.abs(off)
    return LeftOut(
        kind=kind, device=folder, family=FAMILY, dtype_or_kind=name, cases=len(size), median=float(np.median(size)),
        p90=float(np.quantile(size, 0.9)),
    )  # fmt: skip


def _line(name: str, found: Errors | LeftOut) -> str:
    return f"{name} = {{ cases = {found.cases}, median = {found.median:.4f}, p90 = {found.p90:.4f} }}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
