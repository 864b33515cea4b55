"""The parameters that whole runs may decide: a clock and a host per measured device, and a few that hold everywhere.

Everything else comes from measured kernels and links. Each has a physical meaning, bounds and a prior: the value one
would take without any whole run, with its spread in the logarithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprofiles.factors import Factors, factors

CLOCK = "clock"
HOST = "host_time"
REFERENCE_HOST = "b200"  # its nodes' launching thread is the unit of `HOST`
# Devices with runs that wait for the host, in several trainers; on the others the runs ask for no other value than 1
# (A100 1.005, GB200 1.06 when fitted), which is what they have.
HOSTS = ("h100",)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One fitted parameter. key: its name in hwprofiles/fitted/common.toml (or the device's file: `PER_DEVICE`).

    low, high: physical bounds. prior: expected value; spread: of its logarithm. moe_only: no effect on dense models.
    """

    key: str
    what: str
    low: float
    high: float
    prior: float
    spread: float
    prior_source: str
    moe_only: bool = False


COMMON = (
    Parameter(
        key="host_launch_s", what="launching thread, per eager kernel", low=4e-6, high=40e-6, prior=15e-6, spread=0.7,
        prior_source="eager launches of torch take 5 to 40 us with their module code",
    ),
    Parameter(
        key="host_expert_s", what="launching thread, per call in the loop over local experts", low=3e-6, high=40e-6,
        prior=8e-6, spread=0.7, prior_source="0.3 to 0.4 ms per local expert and layer over some 50 calls",
        moe_only=True,
    ),
    Parameter(
        key="overlap_exposed", what="share of an all-to-all beside other compute that stays exposed", low=0.02,
        high=0.6, prior=0.3, spread=0.4, prior_source="0.35 to 0.5 across nodes, 0.2 to 0.25 inside NVLink",
        moe_only=True,
    ),
    Parameter(
        key="stragglers", what="growth of a step's work per doubling of nodes", low=0.0005, high=0.03, prior=0.005,
        spread=0.5, prior_source="0.3 to 0.7 % per doubling in strong-scaling series",
    ),
)  # fmt: skip
PER_DEVICE = (
    Parameter(
        key=CLOCK, what="sustained over burst clock of compute-bound kernels", low=0.60, high=1.0, prior=0.85,
        spread=0.1, prior_source="a sustained clock cannot exceed the burst clock the kernel tables were taken at",
    ),
    Parameter(
        key=HOST, what=f"launching thread of the device's nodes, time over that of {REFERENCE_HOST} nodes", low=0.7,
        high=1.6, prior=1.0, spread=0.15,
        prior_source="boost clocks of the processors usual in these nodes lie between 3.4 and 4.0 GHz",
    ),
)  # fmt: skip
BY_KEY = {p.key: p for p in (*COMMON, *PER_DEVICE)}
NAMES = tuple(p.key for p in COMMON)


def parameter(name: str) -> Parameter:
    """The parameter behind a name: a key of `COMMON`, or one of `PER_DEVICE` with ".<device folder>"."""
    return BY_KEY[name.partition(".")[0]]


def of_device(folder: str) -> tuple[str, ...]:
    """Names of the parameters that belong to one measured device."""
    keys = (CLOCK, HOST) if folder in HOSTS else (CLOCK,)
    return tuple(f"{key}.{folder}" for key in keys)


def bounds_of(name: str) -> tuple[float, float]:
    """Bounds a parameter is kept in."""
    found = parameter(name)
    return found.low, found.high


def value_of(name: str, base: Factors) -> float:
    """What a set of factors has for a parameter."""
    return float(getattr(base, parameter(name).key))


def shipped(folder: str) -> dict[str, float]:
    """The parameters of a measured device as shipped."""
    f = factors(folder)
    return {name: value_of(name, f) for name in (*of_device(folder), *NAMES)}


def apply_values(base: Factors, folder: str, values: Mapping[str, float]) -> Factors:
    """Factors of a device with parameter values put in."""
    names = (*of_device(folder), *NAMES)
    changes: dict[str, Any] = {parameter(name).key: values[name] for name in names if name in values}
    return replace(base, **changes)


def priors(folders: Iterable[str]) -> dict[str, tuple[float, float]]:
    """(value, standard deviation of its logarithm) of every parameter, by name."""
    names = (*(name for folder in folders for name in of_device(folder)), *NAMES)
    return {name: (parameter(name).prior, parameter(name).spread) for name in names}
