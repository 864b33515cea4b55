"""How errors of predictions go together: what one measured run says about another prediction.

The residual log(measured / predicted step time) of a run is taken as a sum of random effects, each Gaussian with mean
0: one of the model on the device, one of the same with the trainer release (a setup), one of the device with the
release, and noise between runs that agree in all that is known. The first two fade where two runs grow unlike in
sequence length, devices, precision, tokens of a micro-batch and layout:

    cov(i, j) = near(i, j) [model, device] (v_model + v_setup [release]) + v_release [device, release]
    near(i, j) = exp(-d_seq / l_seq - d_devices / l_devices - d_tokens / l_tokens - p <precision> - q <layout>)

with [x] = 1 where both runs share x, <x> = 1 where they do not, and differences d in octaves (a product of exponential
kernels: positive definite; Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, ch. 4). On a device
or with a trainer that no calibrated run shares, an effect of the device or trainer is added, in part common to all
models of a kind (MoE, dense). The posterior of a prediction given anchors is the conditional Gaussian (ibid., ch. 2).

The machines of the published runs were in order, so these variances know no slow machine. Where two anchors or more on
the target's device lie so far off together that an effect of the machine, common to all its runs, is e^`MACHINE_ODDS`
times likelier than none, it is added with the variance that explains them best (evidence maximisation, ibid., ch. 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.interval import Novelty, fitted_intervals
from sim.plan import Plan

Array = npt.NDArray[np.float64]
LAYOUT = ("tp", "pp", "cp", "ep", "recompute", "zero_stage")
# Two runs that agree are enough from four standard deviations of one on.
MACHINE_ODDS = 6.0
MACHINE_VARIANCES = np.geomspace(1e-3, 1.0, 61)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a run is, as far as errors go together. device: its name; layout: values of `LAYOUT`."""

    model: str
    is_moe: bool
    device: str
    release: str
    trainer: str
    precision: str
    seq_tokens: int
    devices: int
    micro_batch_tokens: int
    layout: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variances of the effects and how they fade; widths are `factor` times what the posterior says.

    v_*: of the log residual; l_*: octaves over which similarity falls by e; p_precision, q_layout: exponents of a
    difference. extra: per kind ("moe", "dense") the variance that a new `device` and a new `trainer` add, over the
    whole variance of a run that shares both, and the share of it that all models of the kind have in common
    (`device_common`, `trainer_common`); the rest belongs to the setup.
    """

    v_model: float
    v_setup: float
    v_release: float
    v_noise: float
    l_seq: float
    l_devices: float
    l_tokens: float
    p_precision: float
    q_layout: float
    factor: float
    extra: Mapping[str, Mapping[str, float]]

    @property
    def v_whole(self) -> float:
        """Variance of a run that shares device and trainer with the calibrated ones."""
        return self.v_model + self.v_setup + self.v_release + self.v_noise

    def total(self, run: Situation, new: Novelty) -> float:
        """Variance of a prediction before any anchor."""
        more = self.extra["moe" if run.is_moe else "dense"]
        return self.v_whole * (1.0 + more["device"] * new.device + more["trainer"] * new.trainer)

    def covariance(self, one: Situation, other: Situation, new: Novelty, target: Situation) -> float:
        """Covariance of the errors of two different runs. new: the novelty of the prediction asked for, `target`; only
        runs on its device (of its release) have the effect of a new device (trainer)."""
        device, release = one.device == other.device, one.release == other.release
        more, alike = self.extra["moe" if one.is_moe else "dense"], one.is_moe == other.is_moe
        out = self.v_release * (device and release)
        added = {
            "device": new.device and device and alike and one.device == target.device,
            "trainer": new.trainer and release and alike and one.release == target.release,
        }
        out += self.v_whole * sum(more[x] * more[f"{x}_common"] for x, shared in added.items() if shared)
        if device and one.model == other.model:
            own = self.v_whole * sum(more[x] * (1.0 - more[f"{x}_common"]) for x, shared in added.items() if shared)
            out += self.near(one, other) * (self.v_model + (self.v_setup + own) * release)
        return out

    def near(self, one: Situation, other: Situation) -> float:
        """Likeness of two runs, 1 where they agree."""
        return math.exp(-self.unlike(*differences(one, other)))

    def unlike(self, seq: Any, devices: Any, tokens: Any, precision: Any, layout: Any) -> Any:
        """Minus the logarithm of the likeness, of numbers or columns of differences."""
        fading = seq / self.l_seq + devices / self.l_devices + tokens / self.l_tokens
        return fading + precision * self.p_precision + layout * self.q_layout


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Mean and variance of a prediction's log residual; prior its variance before; weights of the anchors."""

    mean: float
    variance: float
    prior: float
    weights: tuple[float, ...]


def differences(one: Situation, other: Situation) -> tuple[float, float, float, int, int]:
    """Octaves between sequence lengths, device counts and micro-batches; 1 for another precision, another layout."""
    octaves = [
        abs(math.log2(getattr(one, name) / getattr(other, name)))
        for name in ("seq_tokens", "devices", "micro_batch_tokens")
    ]
    return octaves[0], octaves[1], octaves[2], int(one.precision != other.precision), int(one.layout != other.layout)


def situation(
    *, model: str, is_moe: bool, device: str, release: str, trainer: str, precision: str, seq_tokens: int,
    devices: int, plan: Plan,
) -> Situation:  # fmt: skip
    """The situation of a run with a plan."""
    return Situation(
        model=model, is_moe=is_moe, device=device, release=release, trainer=trainer, precision=precision,
        seq_tokens=seq_tokens, devices=devices, micro_batch_tokens=plan.micro_batch_seqs * seq_tokens,
        layout=tuple(getattr(plan, name) for name in LAYOUT),
    )  # fmt: skip


def posterior(
    spread: Spread, anchors: Sequence[Situation], residuals: Sequence[float], target: Situation, new: Novelty
) -> Posterior:  # fmt: skip
    """Posterior of the target's log residual given those of anchors (conditional Gaussian, closed form).

    One anchor: mean = c / V_a * residual, variance = V - c^2 / V_a, with V and V_a the variances of target and anchor
    and c their covariance. The variance never falls below the noise between equal runs.
    """
    prior = spread.total(target, new)
    if not anchors:
        return Posterior(mean=0.0, variance=prior, prior=prior, weights=())
    cross = np.array([spread.covariance(target, a, new, target) for a in anchors])
    own = np.array([[spread.covariance(a, b, new, target) for b in anchors] for a in anchors])
    np.fill_diagonal(own, [_variance(spread, a, target, new) for a in anchors])
    errors = np.asarray(residuals, float)
    here = np.array([float(a.device == target.device) for a in anchors])
    machine = machine_variance(own, here, errors)
    own, cross = own + machine * np.outer(here, here), cross + machine * here
    weights = np.linalg.solve(own, cross)
    variance = max(spread.v_noise, prior + machine - float(cross @ weights))
    return Posterior(
        mean=float(weights @ errors), variance=min(prior, variance), prior=prior,
        weights=tuple(float(w) for w in weights),
    )  # fmt: skip


def machine_variance(own: Array, here: Array, errors: Array) -> float:
    """Variance of an effect common to the anchors `here` (1 or 0) that explains their errors best; 0 where the odds
    against none stay below e^`MACHINE_ODDS`. own: covariance of the anchors without it."""
    if here.sum() < 2:  # one run alone may be odd for any reason: so the published ones that lie far off are
        return 0.0
    found = [_log_evidence(own + v * np.outer(here, here), errors) for v in MACHINE_VARIANCES]
    best = int(np.argmax(found))
    likelier = found[best] - _log_evidence(own, errors) > MACHINE_ODDS
    return float(MACHINE_VARIANCES[best]) if likelier else 0.0


def _log_evidence(covariance: Array, errors: Array) -> float:
    """Logarithm of a Gaussian's density, but for a constant."""
    _, log_det = np.linalg.slogdet(covariance)
    return float(-0.5 * (errors @ np.linalg.solve(covariance, errors) + log_det))


def _variance(spread: Spread, anchor: Situation, target: Situation, new: Novelty) -> float:
    """Variance of an anchor: it has the effects of a new device or trainer only where it shares the target's."""
    shared = Novelty(
        model=False, device=new.device and anchor.device == target.device, release=False,
        trainer=new.trainer and anchor.release == target.release,
    )  # fmt: skip
    return spread.total(anchor, shared)


def shipped_spread() -> Spread:
    """The variances of `hwprofiles/fitted/intervals.toml`."""
    return spread_from(fitted_intervals()["anchors"])


def spread_from(table: Mapping[str, Any]) -> Spread:
    """A spread from the keys of `spread_table`."""
    return Spread(**{name: table[name] for name in Spread.__dataclass_fields__})


def spread_table(spread: Spread) -> dict[str, Any]:
    """The fields as plain values."""
    return asdict(spread)
