"""Rules of layers with a mixer without softmax: their heads and key groups under tensor and context parallelism."""

from __future__ import annotations

import numpy as np

from planner.rules.base import Context, Mask, Rule
from planner.space import split_heads
from sim.columns import Columns
from sim.model import MixerSpec
from sim.plan import Plan

VERSION = "megatron-core 0.19.2"
SSM = "megatron-core 0.19.2 megatron/core/ssm/mamba_mixer.py, megatron/core/transformer/transformer_config.py"


def _splits(x: Context) -> tuple[int, ...]:
    """What tensor and context parallelism divide in the mixers of the model."""
    return tuple(sorted({split_heads(layer) for layer in x.model.layers if layer.mixer is not None}))


def _heads(c: Columns, x: Context) -> Mask | bool:
    splits = _splits(x)
    if not splits:
        return True
    out: Mask = np.all([heads % (c.tp * c.cp) == 0 for heads in splits], axis=0)
    return out


def _grouped(x: Context) -> tuple[MixerSpec, ...]:
    """The mixers whose key groups Megatron-LM divides."""
    found = (layer.mixer for layer in x.model.layers if layer.mixer is not None)
    return tuple(dict.fromkeys(m for m in found if m.kind in ("mamba2", "gated_delta")))


def _groups(c: Columns, x: Context) -> Mask | bool:
    mixers = _grouped(x)
    if not mixers:
        return True
    out: Mask = np.all([_divides(c, mixer) for mixer in mixers], axis=0)
    return out


def _divides(c: Columns, mixer: MixerSpec) -> Mask:
    groups = mixer.key_heads
    if mixer.kind == "gated_delta":
        whole: Mask = groups % (c.tp * c.cp) == 0
        return whole
    local = (groups // c.tp).clip(min=1)  # fewer groups than cp are repeated
    fits: Mask = (groups % c.tp == 0) & ((local % c.cp == 0) | (c.cp % local == 0))
    return fits


def _say_groups(p: Plan, x: Context) -> str:
    said = ", ".join(f"{m.key_heads} key groups of {m.kind}" for m in _grouped(x))
    return f"{said} with tp {p.tp} and cp {p.cp}"


MIXER_HEADS = Rule(
    id="mixer-heads-over-cp",
    target="layout",
    version=VERSION,
    text="heads or channels of mixers without softmax divide over tp x cp, which exchanges them for tokens",
    where="--tp, --cp",
    remedy="lower cp or tp to divisors of the head count",
    source="layout; megatron/core/ssm/mamba_context_parallel.py",
    ok=_heads,
    say=lambda p, x: f"{', '.join(map(str, _splits(x)))} heads of mixers do not divide over tp {p.tp} x cp {p.cp}",
)
MIXER_GROUPS = Rule(
    id="megatron-mixer-groups",
    target="megatron-lm",
    version="0.19.2",
    text="key groups of Mamba 2 divide over tp and fit cp, key heads of gated delta nets divide over tp x cp",
    where="--tp, --cp",
    remedy="lower tp or cp to divisors of the key groups",
    source=SSM,
    ok=_groups,
    say=_say_groups,
)
