"""Collectives: the forms of `hwprofiles.forms.collectives` fitted to measured times, and their errors on whole sources.

    python -m calibration.kernels.network OUT COMM_DIR

Truth is one node of `measured/<device>/collectives.csv`, `measured/network/collectives.csv` and, where the raw folder
is given, the rows of argonne-lcf/alcf-nccl-tests, which state no licence and are not shipped. Without that folder there
is nothing of Slingshot and of more than ten nodes to fit or to score. `left_out` refits without a source and predicts
it; `errors` of the written file records the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.carry import SYSTEMS
from calibration.carry_network import POINT, alcf_rows
from calibration.kernels.base import Errors, Floats, errors
from calibration.kernels.network_fit import (
    MAX_CALLS,
    SCORED_BYTES,
    UNKNOWN,
    Forms,
    fit_domain,
    fit_fabric,
    line_rates,
    names,
    predicted_s,
    prepared,
    start,
)
from hwprofiles.specs import Source

TABLES = "aiconfigurator"  # the source of measured/<device>/collectives.csv
TABLE_OPS = {"alltoall": "all_to_all"}
FIRST_FITTED_BYTES = 2**18  # inside a domain; shorter calls come from the tables
RANGES = ((2, 8), (9, 128), (129, 4096))  # devices, for the table of errors


@dataclass(frozen=True, kw_only=True)
class Score:
    """Errors of one part of the scored rows. `left_out`: the source left out of the fit, "" = in sample.

    source: whose rows ("" = of every source). op: "" = all, `collectives` = all but p2p. gpus: fewest and most
    devices. read_off: the rate of the port of these rows was read off the largest message of their source.
    """

    left_out: str
    source: str
    op: str
    gpus: tuple[int, int]
    read_off: bool
    errors: Errors


def points(comm: Path | None = None, *, settings: bool = False) -> pd.DataFrame:
    """Measured points: source, set, device, fabric, op, num_gpus, nodes, bytes, algorithm, time_s, rate, fitted.

    `comm`: folder of comm_measurements.csv, for the rows that are not shipped: per point the median over the library's
    settings and versions, or each on its own with `settings`.
    """
    folder = resources.files("hwprofiles") / "measured"
    with (folder / "network" / "collectives.csv").open(encoding="utf-8") as file:
        parts = [pd.read_csv(file, keep_default_na=False)]
    parts += [_table(device) for device in SYSTEMS]
    if comm is not None:
        rows = alcf_rows(comm)
        parts.append(rows if settings else rows.assign(set="").groupby(POINT).time_s.median().reset_index())
    found = pd.concat(parts, ignore_index=True)
    found = found[(found.nodes > 1) | (found.bytes >= FIRST_FITTED_BYTES)].reset_index(drop=True)
    # Over two nodes vidur's ports depend on the placement; a message in a group of many gets fewer channels.
    odd = (found.nodes > 1) & ((found.source == "vidur") | ((found.op == "p2p") & (found.num_gpus > 2)))
    return found.assign(rate=line_rates(found), fitted=~odd)


def fit(frame: pd.DataFrame, calls: int = MAX_CALLS) -> Forms:
    """Forms of every device and fabric with points."""
    inside = frame[frame.nodes == 1]
    domains = {str(device): fit_domain(inside, str(device), calls) for device in sorted(set(inside.device))}
    fabrics = sorted(set(frame[frame.fitted].fabric) - {""} | {UNKNOWN})
    return Forms(domains=domains, fabrics={name: fit_fabric(frame, domains, name, calls) for name in fabrics})


def left_out(frame: pd.DataFrame, source: str, forms: Forms, calls: int = MAX_CALLS) -> pd.DataFrame:
    """Points of the sources whose name starts so, with `off`, the relative error of forms fitted without them.

    `forms` are those of all points: what the source has no part in is not fitted again. A device that nobody else
    measured is not predicted.
    """
    out = frame.source.str.startswith(source)
    rest, held = frame[~out], frame[out]
    inside = set(held[held.nodes == 1].device)
    lost = inside - set(rest[rest.nodes == 1].device)
    domains = dict(forms.domains) | {d: fit_domain(rest, d, calls) for d in sorted(inside - lost)}
    held = held[~held.device.isin(lost)]
    fabrics = {n: f for n, f in forms.fabrics.items() if n == UNKNOWN or (rest[rest.fitted].fabric == n).any()}
    touched = [n for n in fabrics if n in set(held.fabric) or inside]
    fabrics |= {name: fit_fabric(rest, domains, name, calls) for name in touched}
    return with_errors(held, Forms(domains=domains, fabrics=fabrics))


def with_errors(frame: pd.DataFrame, forms: Forms) -> pd.DataFrame:
    """Points of at least 1 MiB with `off`, the relative error of the forms."""
    scored = frame[frame.bytes >= SCORED_BYTES]
    return scored.assign(off=predicted_s(prepared(scored), forms) / scored.time_s.to_numpy(float) - 1.0)


def scores(scored: pd.DataFrame, label: str) -> list[Score]:
    """Errors of all rows, of the collectives, and by source, op and range of devices."""
    found = [_score(scored, label, "", ""), _score(scored[scored.op != "p2p"], label, "", "collectives")]
    for source, part in scored.groupby("source"):
        found += [_score(part, label, str(source), "")]
        for op, rows in part.groupby("op"):
            for low, high in RANGES:
                some = rows[rows.num_gpus.between(low, high)]
                if len(some):
                    found.append(_score(some, label, str(source), str(op)))
    return found


def write(path: Path, frame: pd.DataFrame, forms: Forms, found: Sequence[Score], source: Source) -> None:
    """Write `fitted/kernels/collectives.toml` under `path`."""
    lines = ["# Written by calibration.kernels.network; the forms are hwprofiles/forms/collectives.py.", ""]
    lines += ["[source]", *(f"{key} = {json.dumps(value)}" for key, value in asdict(source).items())]
    for device, domain in forms.domains.items():
        lines += ["", f"[domain.{device}]", *(f"{key} = {value:.6g}" for key, value in names(domain).items())]
    for name, fabric in forms.fabrics.items():
        shipped = names(fabric) | {"line": _line(frame, name)}
        rows = frame[(frame.fabric == name) & frame.fitted]
        lines += ["", f"[fabric.{name}]", *(f"{key} = {value:.6g}" for key, value in shipped.items())]
        lines += [f"nodes = [{rows.nodes.min()}, {rows.nodes.max()}] # measured"]
    lines += [""]
    # before the first table: a key of the file itself
    table = ["errors = [", *(f"    {{ {_entry(score)} }}," for score in found), "]", ""]
    lines[2:2] = table
    target = path / "fitted" / "kernels"
    target.mkdir(parents=True, exist_ok=True)
    (target / "collectives.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_shipped(path: Path, comm: Path) -> None:
    """Fit, score and write under `path` (the package folder of hwprofiles); `comm` as in `points`."""
    frame = points(comm)
    forms = fit(frame)
    found = scores(with_errors(frame[frame.fitted], forms), "")
    sources = sorted(set(frame.source))
    parts = {source: left_out(frame, source, forms) for source in sources}
    everything = pd.concat(parts.values())
    found += scores(everything, "each source")[:2]
    for source, part in parts.items():
        found += [score for score in scores(part, source) if score.source or score.op == "collectives"]
    single = points(comm, settings=True)
    for source in ("alcf-polaris", "alcf-sirius", "alcf"):
        part = left_out(single if source != "alcf" else frame, source, forms)
        label = f"{source}, each setting" if source != "alcf" else "alcf, whole publisher"
        found.append(_score(part, label, "", "collectives"))
    write(path, frame, forms, found, _source())


def _score(rows: pd.DataFrame, label: str, source: str, op: str) -> Score:
    gpus = (int(rows.num_gpus.min()), int(rows.num_gpus.max()))
    off: Floats = rows.off.to_numpy(float)
    found = errors(1.0 + off, np.ones(len(off)))
    return Score(left_out=label, source=source, op=op, gpus=gpus, read_off=bool((rows.nodes > 1).any()), errors=found)


def _entry(score: Score) -> str:
    e = score.errors
    words = {"left_out": score.left_out, "source": score.source, "op": score.op, "gpus": list(score.gpus)}
    numbers = f"cases = {e.cases}, median = {e.median:.4f}, p90 = {e.p90:.4f}"
    named = ", ".join(f"{key} = {json.dumps(value)}" for key, value in words.items())
    return f"{named}, rate_read_off = {str(score.read_off).lower()}, {numbers}"


def _line(frame: pd.DataFrame, fabric: str) -> float:
    """Share of the port's rate that rings reach, over the sources whose port is known; 1 where none of them is here."""
    stated: Mapping[str, float] = start()["line_bytes_per_s"].get(fabric, {})
    far = frame[frame.nodes > 1]
    shares = [float(far.rate[far.source == s].max()) / port for s, port in stated.items() if (far.source == s).any()]
    return float(np.exp(np.mean(np.log(shares)))) if shares else 1.0


@cache
def _table(device: str) -> pd.DataFrame:
    path = resources.files("hwprofiles") / "measured" / device / "collectives.csv"
    with path.open(encoding="utf-8") as file:
        wide = pd.read_csv(file)
    long = wide.melt(id_vars=["op", "num_gpus"], var_name="size", value_name="time_s")
    nbytes = long["size"].str.extract(r"^b(\d+)_s$")[0].astype(int)
    found = long.assign(
        source=TABLES, set="", device=device, fabric="", nodes=1, algorithm="", bytes=nbytes,
        op=long.op.replace(TABLE_OPS),
    )  # fmt: skip
    return found[[*POINT, "time_s"]]


def _source() -> Source:
    return Source(
        kind="fitted",
        title="Collectives on scale-up links and networks, fitted to measured NCCL times",
        where="calibration/kernels/network.py over hwprofiles/measured/<device>/collectives.csv, "
        "hwprofiles/measured/network and https://github.com/argonne-lcf/alcf-nccl-tests",
        date="2026-11-22",
        licence="Apache-2.0",
        note="Of argonne-lcf/alcf-nccl-tests (no licence stated) only what was derived is here: the fabrics and the "
        "errors. rate_read_off: rows across nodes take the rate of a port from the largest message of their source.",
    )


def main(arguments: Sequence[str]) -> int:
    """Fit and write; returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m calibration.kernels.network OUT COMM_DIR\n")
        return 2
    write_shipped(*map(Path, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
