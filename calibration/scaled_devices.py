"""How far off a step is on a device whose kernels are another's, scaled: every published run, on tables taken away.

The devices of the calibrated runs have kernel tables and fitted factors of their own. Here each is predicted as if it
had none: its kernels, clock and host are those of a neighbour, the next slower or faster calibrated device of its
vendor by 16-bit peak, scaled by the ratios of datasheet figures that `hwprofiles.scaling` applies to a device of the
catalogue with `scaled_from`. What is left between that and the measured step is what such a device must be expected to
be off by: nothing of it was fitted to the device. The bounds, per kind of model, lie in `hwprofiles/fitted/scaled.toml`
(`python -m calibration.scaled_devices`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from calibration.case import Case
from calibration.intervals import KINDS, conformal
from calibration.runs import read_cases
from calibration.validate import predict, with_measured
from hwprofiles import catalogue
from hwprofiles.specs import DeviceSpec
from sim.interval import fitted_intervals

RUNS = "training_runs.csv"
HEAD = """\
# Bounds of measured over predicted step time that hold 80 % of the published runs when the kernels of their device are
# another calibrated device's, scaled by datasheet ratios. Made by `python -m calibration.scaled_devices`.
"""
SOURCE = '''
[source]
kind = "fitted"
title = "Conformal quantiles of published runs predicted on scaled kernels of another device of the same vendor"
where = "calibration/scaled_devices.py over calibration/published/training_runs.csv"
date = "2026-11-22"
licence = "Apache-2.0"
note = """
A calibrated device takes the next slower and the next faster one as its source, where that has kernels of the run's
dtype. Each such pair counts the same.
"""
'''


@dataclass(frozen=True, kw_only=True)
class OnScaled:
    """One run on scaled kernels: log(measured / predicted step time). weight: that of its row among those of its case
    key. device, source: folders of kernel tables."""

    key: str
    kind: str
    device: str
    source: str
    residual: float
    weight: float


def sources_of(device: DeviceSpec) -> tuple[str, ...]:
    """The next slower and the next faster calibrated device of a vendor, by 16-bit peak."""
    known = [catalogue.device(name) for name in fitted_intervals()["devices"]]
    order = sorted((d for d in known if d.vendor == device.vendor), key=lambda d: d.peak_flop_per_s["bf16"])
    at = [d.measured for d in order].index(device.measured)
    return tuple(d.name for d in (*order[:at][-1:], *order[at + 1 :][:1]))


def on_scaled(case: Case, source: str) -> Case:
    """The run on the same cluster, its device without tables of its own."""
    device = replace(catalogue.device_of(case.cluster), measured="", scaled_from=source)
    return replace(case, cluster=replace(case.cluster, device_spec=device))


def residuals(cases: Sequence[Case]) -> Iterator[OnScaled]:
    """Every case on its sources; those whose dtype the source has no kernels of are left out."""
    rows = Counter(case.weight_key for case in cases)
    for case in cases:
        device = catalogue.device_of(case.cluster)
        for source in sources_of(device):
            row, _ = predict(on_scaled(case, source))
            error = with_measured(row, case).error
            if error is not None:
                yield OnScaled(
                    key=case.id, kind="moe" if case.model.is_moe else "dense", device=device.measured,
                    source=catalogue.device(source).measured, weight=1.0 / rows[case.weight_key],
                    residual=math.log1p(error) * (1.0 if case.measure == "tokens_per_s_gpu" else -1.0),
                )  # fmt: skip


def scored_cases(path: Path) -> list[Case]:
    """The cases whose step time counts in errors."""
    return [
        case for case in read_cases(path)
        if isinstance(case, Case) and case.scored and case.measured and case.measure in ("tokens_per_s_gpu", "step_s")
    ]  # fmt: skip


def bounds(found: Sequence[OnScaled]) -> dict[str, tuple[float, float, int]]:
    """(low, high, runs) of measured over predicted step time per kind of model; pairs of devices count alike."""
    out = {}
    for kind in KINDS:
        mine = [r for r in found if r.kind == kind]
        pairs: dict[tuple[str, str], float] = defaultdict(float)
        for r in mine:
            pairs[r.device, r.source] += r.weight
        weights = [r.weight / pairs[r.device, r.source] for r in mine]
        low, high = conformal([math.exp(r.residual) for r in mine], weights)
        out[kind] = low, high, len({r.key for r in mine})
    return out


def render(found: Mapping[str, tuple[float, float, int]]) -> str:
    """The text of scaled.toml."""
    text = HEAD
    for kind, (low, high, runs) in found.items():
        text += f"\n[step.{kind}]\nlow = {low:.4f}\nhigh = {high:.4f}\nruns = {runs}\n"
    return text + SOURCE


def main() -> None:
    """Predict all runs on scaled kernels (minutes) and write the bounds."""
    published = Path(str(resources.files("calibration") / "published"))
    target = Path(str(resources.files("hwprofiles"))) / "fitted" / "scaled.toml"
    found = list(residuals(scored_cases(published / RUNS)))
    target.write_text(render(bounds(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
