"""`moecast calibrate fit --runs`: the few whole-run parameters fitted to shipped runs, own runs or both, with priors.

Which parameters there are, their bounds and priors, is said in calibration/parameters.py; each one's effect on each run
is simulated on a short ladder (calibration/leftout.py), so that a fit and its spread need no more simulations.
Deterministic; nothing is written unless a folder is given.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from calibration.case import Case, Unusable
from calibration.leftout import Effects, Refit, effects
from calibration.parameters import bounds_of, parameter, shipped
from calibration.runs import read_cases
from calibration.validate import predict
from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from hwprofiles.folders import FACTORS, is_own

SHIPPED = "shipped"  # in place of a file: the runs behind the shipped values
# The other published files are left out of the fit: they stay a test.
FITTED_FILES = ("training_runs.csv",)
ONE_BY_ONE = 12  # fewer runs than this are not worth a second process
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One fitted parameter. prior: value and standard deviation of its logarithm; spread: lowest and highest value when
    one group of runs is left out."""

    name: str
    value: float
    shipped: float
    prior: tuple[float, float]
    bounds: tuple[float, float]
    spread: tuple[float, float]

    @property
    def at_bound(self) -> bool:
        """Whether a bound, not the runs, stopped the fit."""
        return min(abs(math.log(self.value / edge)) for edge in self.bounds) < 1e-9


@dataclass(frozen=True, kw_only=True)
class RunsFit:
    """What a fit found.

    left_out: what the groups of `Parameter.spread` are ("model" or "case"). before, after: mean absolute log error with
    the shipped and the fitted values. written: files changed.
    """

    parameters: Sequence[Parameter]
    runs: int
    unusable: Sequence[tuple[str, str]]
    left_out: str
    before: float
    after: float
    written: Sequence[Path] = ()


def fit_runs(names: Sequence[str], *, out: Path | None = None, progress: Progress | None = None) -> RunsFit:
    """Fit to files of runs ("shipped": those of the package) and, where `out` is given, write the values there.

    Priors: own runs alone pull away from the shipped values; with the shipped runs among them each parameter's own
    prior counts, since the shipped values are of those very runs. out: a profile's folder or one laid out as
    `hwprofiles`. Raises UserError with all unreadable files, where no row can be fitted to, or where `out` is neither.
    """
    target = None if out is None else _target(out)
    found, unusable = _effects(names, progress)
    if not found:
        lines = [f"row {ident}: {reason}" for ident, reason in unusable[:12]]
        raise UserError(["no row can be fitted to; mend a row below", *lines], where="--runs")
    own = SHIPPED not in names
    start = {name: value for folder in sorted({e.folder for e in found}) for name, value in shipped(folder).items()}
    prior = {}
    for name, value in start.items():
        known = parameter(name)
        prior[name] = (value if own else known.prior, known.spread)
    refit = Refit(found, prior)
    values = refit.fit(lambda _: True)
    by = "model" if len({e.groups["model"] for e in found}) > 1 else "case"
    others = refit.left_out(by) if len(found) > 1 else [values]
    parameters = [
        Parameter(
            name=name, value=value, shipped=start[name], prior=prior[name], bounds=bounds_of(name),
            spread=(min(v[name] for v in others), max(v[name] for v in others)),
        )
        for name, value in sorted(values.items())
    ]  # fmt: skip
    return RunsFit(
        parameters=parameters, runs=len(found), unusable=unusable, left_out=by, before=_error(refit, start),
        after=_error(refit, values), written=() if target is None else target(values),
    )  # fmt: skip


def _error(refit: Refit, values: Mapping[str, float]) -> float:
    return float(np.mean([abs(refit.error(i, values)) for i in range(len(refit.cases))]))


def _effects(names: Sequence[str], progress: Progress | None) -> tuple[list[Effects], list[tuple[str, str]]]:
    """Effects of one row per case, and (row, reason) of rows that cannot be fitted to."""
    folder = Path(str(resources.files("calibration"))) / "published"
    files = [p for n in names for p in ([folder / f for f in FITTED_FILES] if n == SHIPPED else [Path(n)])]
    problems: list[str] = []
    cases: list[Case | Unusable] = []
    for file in dict.fromkeys(files):
        try:
            cases += read_cases(file)
        except UserError as error:
            problems += [f"{error.where}: {said}" if error.where else said for said in error.problems]
    if problems:
        raise UserError(problems, where="--runs")
    found: dict[str, Effects] = {}
    unusable: list[tuple[str, str]] = []
    chosen: dict[str, Case] = {}
    for case in cases:
        if isinstance(case, Unusable):
            unusable.append((case.id, f"{case.status}: {case.reason}"))
        elif case.measure not in ("tokens_per_s_gpu", "step_s") or case.weight_key in chosen:
            continue
        elif case.measured is None or not case.scored:
            unusable.append((case.id, "no measured tokens/s or step time, or one with a doubt"))
        elif not (device := device_of(case.cluster)).measured:
            scaled = (
                f"kernels of {device.name} are scaled from {device.scaled_from}: there is no clock of its own to fit"
            )
            unusable.append((case.id, f"{scaled}; anchor predictions to such runs, or measure its kernels first"))
        else:
            chosen[case.weight_key] = case
    for done, (key, (effect, reason)) in enumerate(zip(chosen, _simulated(list(chosen.values())), strict=True)):
        if progress is not None:
            progress(done + 1, len(chosen), f"simulating {chosen[key].id}")
        if effect is None:
            unusable.append((chosen[key].id, reason))
        else:
            found[key] = effect
    return list(found.values()), unusable


def _simulated(cases: Sequence[Case]) -> Iterator[tuple[Effects | None, str]]:
    """Effects of each case in order, or why there are none; on all cores where it pays."""
    if len(cases) < ONE_BY_ONE:
        yield from map(_one, cases)
        return
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield from pool.map(_one, cases, chunksize=2)


def _one(case: Case) -> tuple[Effects | None, str]:
    row, report = predict(case)
    return (None, f"{row.status}: {row.reason}") if report is None else (effects(case, report.plan), "")


def _target(out: Path) -> Callable[[Mapping[str, float]], list[Path]]:
    """What writes values into a folder: a user's profile, or a folder laid out as `hwprofiles`."""
    if (out / FACTORS).is_file():
        return lambda values: _write_profile(out, values)
    if (out / "fitted" / "common.toml").is_file():
        return lambda values: write({n: v for n, v in values.items() if not is_own(n.partition(".")[2])}, out)
    raise UserError(
        f"{out} holds neither {FACTORS} (a profile of `moecast calibrate fit`) nor fitted/common.toml (laid out as "
        "hwprofiles); give one of these, or leave out --out",
        where="--out",
    )


def _write_profile(out: Path, values: Mapping[str, float]) -> list[Path]:
    """The host times, and the clock where runs used this very profile, into the profile's factors."""
    path = out / FACTORS
    text = path.read_text(encoding="utf-8")
    own = {name: value for name, value in values.items() if "." not in name}
    clock = values.get(f"clock.{out.resolve().as_posix()}")
    if clock is not None:
        own["clock"] = clock
    for name, value in sorted(own.items()):
        line = f"{name} = {value:.4g}"
        text, done = re.subn(rf"(?m)^{name} = [^\s#]+", line, text, count=1)
        text = text if done else f"{line}  # fitted to runs\n{text}"
    path.write_text(text, encoding="utf-8")
    return [path]


def write(values: Mapping[str, float], folder: Path | None = None) -> list[Path]:
    """Put fitted values into fitted/*.toml of `folder` (default: the shipped `hwprofiles`), all else left as it is."""
    fitted = (folder or Path(str(resources.files("hwprofiles")))) / "fitted"
    changed = []
    for name, value in values.items():
        key, _, device = name.partition(".")
        file = f"{device or 'common'}.toml"
        path = fitted / file
        text = re.sub(rf"(?m)^{key} = \S+", f"{key} = {value:.4g}", path.read_text(encoding="utf-8"), count=1)
        path.write_text(text, encoding="utf-8")
        if path not in changed:
            changed.append(path)
    return changed
