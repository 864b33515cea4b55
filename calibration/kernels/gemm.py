"""Dense GEMM: the form of `hwprofiles.forms.gemm` fitted to measured times, and its errors where it was not fitted.

Truth is what was measured: the shipped tables with every departure of their cleaning taken back, or rows
of the harness. `left_out` refits form and residual without the points it then predicts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.kernels.base import Errors, LeftOut, errors
from calibration.kernels.kriging import krige
from hwprofiles import catalogue
from hwprofiles.forms.gemm import LENGTHS, GemmForm, GemmSurface
from hwprofiles.interpolate import Grid
from hwprofiles.specs import Source

Floats = NDArray[np.float64]
ELEMENT_BYTES: Mapping[str, float] = {
    "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_row": 1.0, "fp8_block": 1.0, "mxfp8": 1.0,
    "nvfp4": 0.5,
}  # fmt: skip
SCORED_ROWS = 256  # errors are stated for m of at least this; fewer rows count less in the fit, by the square
FOLDS = 5
NUGGET = 0.1  # libraries change kernels between neighbouring sizes: more than repeats differ by
SEED = 0
# Fitted numbers: (name, transform). Start values and bounds are in units of the data itself, see `_start`.
LOGS = (
    "start_s",
    "flop_per_s",
    "bytes_per_s",
    "ramp_k",
    "throttle",
    "throttle_s",
    "two_waves",
    "cast_s",
    "cache_elements",
)
SHARES = ("tile_efficiency", "small_efficiency", "tail")
# How tightly a number is held to its start value where the data say little (standard deviations of its log or logit).
HELD = {"tile_efficiency": 10.0, "small_efficiency": 10.0, "ramp_k": 10.0, "tail": 10.0, "throttle": 1.0,
        "throttle_s": 1.0, "two_waves": 0.3, "cache_elements": 5.0}  # fmt: skip
BOUNDS = {"throttle": (1e-4, 0.5), "throttle_s": (3e-4, 3e-2), "two_waves": (1.0, 4.0)}


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What is known of a device before anything is fitted; the fitted rate may not exceed the peak."""

    multiprocessors: float
    peak_flop_per_s: float


class Known(NamedTuple):
    """What is known of a dtype: the chip's peak for it, and whether its measured calls cast A first."""

    chip: Chip
    casts: bool


@dataclass(frozen=True, kw_only=True)
class GemmFit:
    """Form, table and errors of one dtype; `domain` are the measured ranges of m, n and k.

    passes: time of dgrad and wgrad over a forward product of the same extents, where they were measured.
    """

    form: GemmForm
    surface: GemmSurface
    in_sample: Errors
    domain: Mapping[str, tuple[float, float]]
    passes: Mapping[str, float]


def points(folder: str) -> pd.DataFrame:
    """Measured GEMM calls of a shipped device: dtype, m, n, k, time_s."""
    root = resources.files("hwprofiles") / "measured" / folder
    lines = list(csv.reader((root / "gemm.csv").read_text(encoding="utf-8").splitlines()))
    m = [int(name[1:-2]) for name in lines[0][3:]]
    rows = [(r[0], m[i], int(r[1]), int(r[2]), float(cell)) for r in lines[1:] for i, cell in enumerate(r[3:])]
    table = pd.DataFrame(rows, columns=["dtype", "m", "n", "k", "time_s"]).set_index(["dtype", "m", "n", "k"])
    departures = pd.read_csv((root / "gemm_departures.csv").open(encoding="utf-8")).set_index(["dtype", "m", "n", "k"])
    table.loc[departures.index, "time_s"] = departures["measured_s"]
    return table.reset_index()


def fit_form(part: pd.DataFrame, dtype: str, *, chip: Chip, casts: bool) -> GemmForm:
    """Least squares of log time with outliers damped, from several starts; deterministic."""
    m, n, k, time_s = (part[name].to_numpy(dtype=float) for name in ("m", "n", "k", "time_s"))
    start = _start(m, n, k, time_s, ELEMENT_BYTES[dtype], chip, casts)
    names = [name for name in (*LOGS, *SHARES) if casts or name not in ("cast_s", "cache_elements")]
    held = [name for name in names if name in HELD]
    bounds = np.array([_bounds(name, chip) for name in names]).T

    def form_of(z: Floats) -> GemmForm:
        return replace(start, **{name: _from(name, value) for name, value in zip(names, z, strict=True)})

    best: Any = None
    log_time = np.log(time_s)
    weight = np.minimum(1.0, (m / SCORED_ROWS) ** 2)
    for efficiency, tail in ((0.73, 0.12), (0.73, 0.88), (0.95, 0.12), (0.95, 0.88)):
        first = replace(start, tile_efficiency=efficiency, small_efficiency=efficiency, tail=tail)
        x0 = np.clip([_to(name, getattr(first, name)) for name in names], bounds[0] + 1e-6, bounds[1] - 1e-6)
        middle = {name: _to(name, getattr(start, name)) for name in held}

        def residual(z: Floats, middle: Mapping[str, float] = middle) -> Floats:
            value = dict(zip(names, z, strict=True))
            prior = [(value[name] - middle[name]) / HELD[name] for name in held]
            return np.concatenate([weight * (np.log(form_of(z).time_s(m, n, k)) - log_time), prior])

        found = least_squares(residual, x0, loss="soft_l1", f_scale=0.1, bounds=(bounds[0], bounds[1]))
        if best is None or found.cost < best.cost - 1e-9:
            best = found
    return form_of(best.x)


def surface(part: pd.DataFrame, form: GemmForm) -> GemmSurface:
    """Form and residual table through measured points: the cost model's own, on a grid that spans the points.

    On a full grid of measurements every point is met to within the nugget; scattered points are brought onto
    a grid of powers of two first, holes are filled from their neighbours.
    """
    sizes = part[["m", "n", "k"]].to_numpy(dtype=float)
    axes = [_axis(column) for column in sizes.T]
    at = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    left = np.log(part["time_s"].to_numpy() / form.time_s(*sizes.T))
    residual = krige(np.log(at), np.log(sizes), left, LENGTHS, NUGGET)
    log_time = np.log(form.time_s(*at.T)) + residual
    shape = tuple(len(axis) for axis in axes)
    return GemmSurface.of(form, Grid(log_axes=tuple(np.log(axis) for axis in axes), log_time=log_time.reshape(shape)))


def _axis(column: Floats) -> Floats:
    """The measured values where they are few, else powers of two that span them."""
    values = np.unique(column)
    if len(values) <= 16:
        return values
    low, high = np.log2(values[0]), np.log2(values[-1])
    return np.unique(np.round(2.0 ** np.linspace(low, high, int(np.ceil(high - low)) + 1)))


def points_of_rows(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """GEMM rows of the harness as points: dtype, pass_, m, n, k (extents of the product itself), time_s."""
    found = []
    for row in rows:
        if row["op"] != "gemm" or row["status"] != "ok":
            continue
        sizes = json.loads(row["sizes"])
        extents = {"forward": "mnk", "dgrad": "mkn", "wgrad": "nkm"}[row["pass"]]
        found.append((row["dtype"], row["pass"], *(sizes[name] for name in extents), float(row["median_s"])))
    return pd.DataFrame(found, columns=["dtype", "pass_", "m", "n", "k", "time_s"])


def fit(measured: pd.DataFrame, dtype: str, *, chip: Chip, casts: bool) -> GemmFit:
    """Fit one dtype of `points` or `points_of_rows`. Backward products give the ratios of their pass only."""
    part = measured[measured.dtype == dtype]
    forward = part[part.pass_ == "forward"] if "pass_" in part else part
    form = fit_form(forward, dtype, chip=chip, casts=casts)
    table = surface(forward, form)
    domain = {name: (float(forward[name].min()), float(forward[name].max())) for name in ("m", "n", "k")}
    passes = {}
    for name in ("dgrad", "wgrad"):
        back = part[part.pass_ == name] if "pass_" in part else part[:0]
        if len(back):
            alike, _ = table.time_s(*(back[size].to_numpy(dtype=float) for size in ("m", "n", "k")), cast=True)
            passes[name] = float(np.median(back.time_s.to_numpy() / alike))
    return GemmFit(form=form, surface=table, in_sample=score(table, forward), domain=domain, passes=passes)


def score(found: GemmSurface, part: pd.DataFrame) -> Errors:
    """Errors at the points of `part` with m of at least SCORED_ROWS (all of them where there is none)."""
    large = part[part.m >= SCORED_ROWS]
    part = part if large.empty else large
    time_s, _ = found.time_s(*(part[name].to_numpy(dtype=float) for name in ("m", "n", "k")), cast=True)
    return errors(time_s, part["time_s"].to_numpy())


def left_out(measured: pd.DataFrame, dtypes: Mapping[str, Known], *, device: str) -> tuple[LeftOut, ...]:
    """Errors with whole (n, k) pairs left out (in FOLDS parts), and with the top decade of m left out.

    Per dtype, and of all dtypes together (`all`).
    """
    found: dict[tuple[str, str], list[Floats]] = {}
    for dtype, (chip, casts) in dtypes.items():
        part = measured[measured.dtype == dtype].reset_index(drop=True)
        pairs = part.groupby(["n", "k"]).ngroup().to_numpy()
        fold = np.random.default_rng(SEED).permutation(pairs.max() + 1)[pairs] % FOLDS
        splits = {"pair": [fold == i for i in range(FOLDS)], "top_decade": [part.m.to_numpy() > part.m.max() / 10]}
        for kind, held in splits.items():
            both = _predicted(part, held, dtype, chip, casts)
            for name in (dtype, "all"):
                found.setdefault((kind, name), []).append(both)
    out = []
    for (kind, name), parts in found.items():
        predicted, truth = np.concatenate(parts, axis=1)
        if len(truth):
            e = errors(predicted, truth)
            out.append(LeftOut(kind=kind, device=device, family="gemm", dtype_or_kind=name, **vars(e)))
    return tuple(out)


def _predicted(part: pd.DataFrame, held: Sequence[NDArray[np.bool_]], dtype: str, chip: Chip, casts: bool) -> Floats:
    """[predicted, measured] seconds of the held-out points with m of at least SCORED_ROWS, over all splits."""
    times: list[Floats] = []
    for hidden in held:
        asked = part[hidden & (part.m >= SCORED_ROWS).to_numpy()]
        if hidden.all() or asked.empty:
            continue
        form = fit_form(part[~hidden], dtype, chip=chip, casts=casts)
        sizes = [asked[name].to_numpy(dtype=float) for name in ("m", "n", "k")]
        time_s, _ = surface(part[~hidden], form).time_s(*sizes, cast=True)
        times.append(np.stack([time_s, asked["time_s"].to_numpy()]))
    return np.concatenate(times, axis=1) if times else np.empty((2, 0))


def text(fits: Mapping[str, GemmFit], source: Source, left: Iterable[LeftOut] = ()) -> str:
    """The fitted numbers as `fitted/kernels/<device>/gemm.toml`."""
    lines = ["# Written by calibration.kernels.gemm; the form is hwprofiles/forms/gemm.py.", "", "[source]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(source).items()]
    for dtype, found in fits.items():
        lines += ["", f"[gemm.{dtype}.form]"]
        lines += [f"{f.name} = {getattr(found.form, f.name):.5g}" for f in fields(found.form)]
        lines += ["", f"[gemm.{dtype}.domain]"]
        lines += [f"{name} = [{low:g}, {high:g}]" for name, (low, high) in found.domain.items()]
        if found.passes:
            lines += ["", f"[gemm.{dtype}.passes] # time over a forward product of the same extents"]
            lines += [f"{name} = {ratio:.4g}" for name, ratio in found.passes.items()]
    scores = [("nothing", dtype, found.in_sample) for dtype, found in fits.items()]
    scores += [(e.kind, e.dtype_or_kind, Errors(cases=e.cases, median=e.median, p90=e.p90)) for e in left]
    for kind, dtype, e in scores:
        lines += ["", "[[errors]]", f'left_out = "{kind}"', f'kind = "{dtype}"']
        lines += [f"cases = {e.cases}", f"median = {e.median:.4f}", f"p90 = {e.p90:.4f}"]
    return "\n".join(lines) + "\n"


def shipped(folder: str) -> str:
    """gemm.toml of a shipped device, fitted and scored anew."""
    device, measured = catalogue.device(folder), points(folder)
    known = {
        dtype: Known(
            Chip(multiprocessors=device.num_sms, peak_flop_per_s=device.peak_flop_per_s[dtype]),
            ELEMENT_BYTES[dtype] < 2.0,
        )
        for dtype in measured.dtype.unique()
    }
    fits = {dtype: fit(measured, dtype, chip=chip, casts=casts) for dtype, (chip, casts) in known.items()}
    known.pop("mxfp8", None)  # put together from the other two: nothing of its own to score
    left = left_out(measured, known, device=folder)
    source = Source(
        kind="fitted",
        title="Form of the dense GEMM, fitted to measured kernels of this device",
        where=f"calibration/kernels/gemm.py over hwprofiles/measured/{folder}/gemm.csv and gemm_departures.csv",
        date="2026-11-22",
        licence="Apache-2.0",
        note=f"Errors: m of at least {SCORED_ROWS}. Low-precision calls contain the cast of A. "
        "Backward products are not measured: they are taken as forward ones of the same extents.",
    )
    return text(fits, source, left)


def _start(m: Floats, n: Floats, k: Floats, time_s: Floats, element_bytes: float, chip: Chip, casts: bool) -> GemmForm:
    """Where the search begins: the extremes seen in the data, and nothing lost."""
    moved = element_bytes * (m * k + k * n) + 2.0 * m * n
    bytes_per_s = float(np.quantile(moved / time_s, 0.99))
    return GemmForm(
        multiprocessors=chip.multiprocessors,
        element_bytes=element_bytes,
        result_bytes=max(2.0, element_bytes),
        start_s=0.9 * float(time_s.min()),
        flop_per_s=min(1.02 * float((2 * m * n * k / time_s).max()), 0.99 * chip.peak_flop_per_s),
        bytes_per_s=bytes_per_s,
        tile_efficiency=0.88,
        small_efficiency=0.88,
        ramp_k=150.0,
        tail=0.5,
        two_waves=1.0,
        throttle=0.1,
        throttle_s=3e-3,
        cast_s=4.0 / bytes_per_s if casts else 0.0,
        cache_elements=1e6,
    )


def _to(name: str, value: float) -> float:
    return float(np.log(value / (1.0 - value))) if name in SHARES else float(np.log(value))


def _from(name: str, value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-value))) if name in SHARES else float(np.exp(value))


def _bounds(name: str, chip: Chip) -> tuple[float, float]:
    if name == "flop_per_s":
        return -np.inf, _to(name, chip.peak_flop_per_s)
    low, high = BOUNDS.get(name, (0.0, 0.0))
    return (_to(name, low), _to(name, high)) if high else (-np.inf, np.inf)
