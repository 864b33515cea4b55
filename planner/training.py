"""What a plan costs over a whole training run: time, money and energy for N tokens, with failures and checkpoints.

The step comes from the simulator; checkpoints from the size of the state and the storage's rate; failures from
`planner.goodput`. What neither the cluster nor the user states is assumed (`assumed.toml`) and named as such.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from hwprofiles.catalogue import device_of
from hwprofiles.specs import ClusterSpec
from hwprofiles.units import quantity, unit_of
from planner.goodput import Run, long_run, system_mtbf_s
from sim.model import ModelSpec, layer_params, total_params
from sim.report import Estimate, Report
from sim.workload import Workload

# Bytes of state per parameter in a checkpoint: 16-bit weights, and in fp32 main weights and both moments of Adam.
STATE_BYTES = 2 + 4 + 4 + 4
WIDTH_80 = 1.2815515655446004  # standard deviations on each side that hold 80 % of a normal distribution
COMMUNICATION = ("tp", "cp", "ep", "etp", "dp", "pp", "link contention", "stragglers")
WAITING = ("bubble", "host", "step overhead")
SECONDS_PER_HOUR = 3600.0


@cache
def assumed() -> Mapping[str, float]:
    """Figures of `assumed.toml` in SI units."""
    text = (resources.files("planner") / "assumed.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return {key: quantity(value, unit_of(key.removesuffix("_per_node"))) for key, value in data.items()
            if key != "source"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a long run is asked for; None: as the cluster says, else assumed.

    tokens: to train. node_mtbf_s may be inf: no failures. checkpoint_s: what a checkpoint keeps training waiting
    (default: state over the rate of the storage). interval_s: work between checkpoints (default: Daly's optimum).
    """

    tokens: float
    node_mtbf_s: float | None = None
    restart_s: float | None = None
    storage_bytes_per_s: float | None = None
    checkpoint_s: float | None = None
    interval_s: float | None = None
    slow_share: float | None = None
    slow_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a run meets on one cluster: every figure decided. assumed: names of those that nobody stated."""

    mtbf_s: float
    restart_s: float
    checkpoint_bytes: float
    checkpoint_s: float
    interval_s: float | None
    slow_share: float
    slow_factor: float
    assumed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A whole run. time_s, usd, energy_j: with 80 % interval (step time and chance of failures; energy is modelled
    from device power alone). parts: seconds that sum to time_s.value. goodput: work at full speed over all time."""

    tokens: float
    steps: int
    devices: int
    time_s: Estimate
    usd: Estimate
    energy_j: Estimate
    energy_rests_on: str
    goodput: float
    parts: Mapping[str, float]
    failures: float
    mtbf_s: float
    interval_s: float
    checkpoint_s: float
    checkpoint_bytes: float
    assumed: tuple[str, ...]


def state_bytes(model: ModelSpec, workload: Workload) -> float:
    """Bytes of a checkpoint: weights, main weights and moments, once for the whole model."""
    params = total_params(model)
    if workload.with_mtp and model.mtp_layers:
        params += model.mtp_layers * (layer_params(model.layers[-1], model.hidden_dim).total + 2 * model.hidden_dim**2)
    return float(STATE_BYTES * params)


def conditions_of(terms: Terms, model: ModelSpec, cluster: ClusterSpec, workload: Workload) -> Conditions:
    """What the terms, the cluster file and the assumptions come to, in that order."""
    default, guessed = assumed(), list[str]()

    def decided(name: str, given: float | None, stated: float, fallback: float) -> float:
        if given is not None:
            return given
        if stated > 0.0:
            return stated
        guessed.append(name)
        return fallback

    said, nodes = cluster.reliability, cluster.num_nodes
    per_node = default["node_mtbf_s"] * default["node_devices"] / cluster.devices_per_node
    node_mtbf = decided("node_mtbf_s", terms.node_mtbf_s, said.node_mtbf_s, per_node)
    restart = decided("restart_s", terms.restart_s, said.restart_s, default["restart_s"])
    size = state_bytes(model, workload)
    rate = default["storage_bytes_per_s_per_node"] * cluster.num_devices / default["node_devices"]
    read_rate = decided("storage", terms.storage_bytes_per_s, cluster.storage.read_bytes_per_s, rate)
    checkpoint = terms.checkpoint_s
    if checkpoint is None:
        checkpoint = size / decided("storage", terms.storage_bytes_per_s, cluster.storage.write_bytes_per_s, rate)
    share = said.slow_share if terms.slow_share is None else terms.slow_share
    factor = said.slow_factor if terms.slow_factor is None else terms.slow_factor
    return Conditions(
        mtbf_s=system_mtbf_s(node_mtbf, nodes), restart_s=restart + size / read_rate, checkpoint_bytes=size,
        checkpoint_s=checkpoint, interval_s=terms.interval_s, slow_share=1.0 - (1.0 - share) ** nodes,
        slow_factor=factor, assumed=tuple(dict.fromkeys(guessed)),
    )  # fmt: skip


def training_of(report: Report, terms: Terms, model: ModelSpec, cluster: ClusterSpec, workload: Workload) -> Training:
    """Time, money and energy to train `terms.tokens` with the plan of a report.

    The interval joins that of the step time and, beside it, the spread that failures cause (Daly's model), both as
    logarithms, independent.
    """
    found = conditions_of(terms, model, cluster, workload)
    per_step = workload.global_batch_seqs * workload.seq_tokens
    steps = max(1, math.ceil(terms.tokens / per_step))
    step = report.step_s
    slow = 1.0 + found.slow_share * (found.slow_factor - 1.0)
    run = _run(steps * step.value * slow, found)
    time_s = _interval(run, step)
    device = device_of(cluster)
    at_work = steps * step.value * slow
    power = device.power_w * report.devices
    busy = power_share(report)
    rest = assumed()["idle_power_share"]
    energy = power * (busy * (run.work_s + run.rework_s) + rest * (run.checkpoint_s + run.restart_s))
    return Training(
        tokens=steps * per_step,
        steps=steps,
        devices=report.devices,
        time_s=time_s,
        usd=time_s.scaled(device.usd_per_s * report.devices),
        energy_j=time_s.scaled(energy / run.total_s if math.isfinite(run.total_s) else math.inf),
        energy_rests_on="modelled: device power and assumed shares of it; without hosts, network and cooling",
        goodput=steps * step.value / run.total_s,
        parts={
            "work": steps * step.value,
            "slow nodes": at_work - steps * step.value,
            "checkpoints": run.checkpoint_s,
            "lost work": run.rework_s,
            "restarts": run.restart_s,
        },
        failures=run.failures,
        mtbf_s=found.mtbf_s,
        interval_s=run.interval_s,
        checkpoint_s=found.checkpoint_s,
        checkpoint_bytes=found.checkpoint_bytes,
        assumed=found.assumed,
    )


def _run(work_s: float, found: Conditions) -> Run:
    return long_run(
        work_s, cost_s=found.checkpoint_s, mtbf_s=found.mtbf_s, restart_s=found.restart_s, interval_s=found.interval_s
    )


def _interval(run: Run, step: Estimate) -> Estimate:
    """The total with the step's relative bounds and the spread of failures beside it."""
    if not math.isfinite(run.total_s):
        return Estimate(value=math.inf, low=math.inf, high=math.inf)
    chance = WIDTH_80 * run.sd_s / run.total_s
    low = math.hypot(math.log(step.value / step.low), chance)
    high = math.hypot(math.log(step.high / step.value), chance)
    return Estimate(value=run.total_s, low=run.total_s * math.exp(-low), high=run.total_s * math.exp(high))


def power_share(report: Report) -> float:
    """Mean power of a device through a step over its limit: full while it computes, assumed shares while it
    communicates or waits. A model, not a measurement."""
    default = assumed()
    total = sum(report.breakdown.values())
    talking = sum(max(0.0, report.breakdown.get(name, 0.0)) for name in COMMUNICATION)
    waiting = sum(max(0.0, report.breakdown.get(name, 0.0)) for name in WAITING)
    computing = max(0.0, total - talking - waiting)
    spent = computing + default["communication_power_share"] * talking + default["idle_power_share"] * waiting
    return spent / (computing + talking + waiting)


def with_price(cluster: ClusterSpec, usd_per_s: float | Mapping[str, float] | None) -> ClusterSpec:
    """The cluster with another price of a device: one, or that of its name, else of its device's (in lower case)."""
    price = usd_per_s
    if isinstance(price, Mapping):
        price = price.get(cluster.name.lower(), price.get(cluster.device.lower()))
    if price is None:
        return cluster
    return replace(cluster, device_spec=replace(device_of(cluster), usd_per_s=price))


def training_json(found: Training) -> dict[str, Any]:
    """A run as JSON, SI units; what never ends is null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {name: clean(getattr(value, name)) for name in ("value", "low", "high")}
        if isinstance(value, Mapping):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return list(value) if isinstance(value, tuple) else value

    return {name: clean(getattr(found, name)) for name in Training.__dataclass_fields__}
