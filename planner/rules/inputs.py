"""Rules of what some models ask of a layout: groups of a grouped output projection, and the sequence of an image."""

from __future__ import annotations

from math import gcd

from planner.rules.base import Context, Mask, Rule
from sim.columns import Columns

VERSION = "megatron-core 0.19.2"


def _out_groups(x: Context) -> int:
    """Greatest common divisor of the groups of the model's grouped output projections; 0 where it has none."""
    return gcd(0, *(y.attention.out_groups for y in x.model.layers if y.attention.kind == "shared_kv"))


def _groups(c: Columns, x: Context) -> Mask:
    out: Mask = _out_groups(x) % c.tp == 0
    return out


def _image(c: Columns, x: Context) -> bool:
    return x.model.image is None or x.workload.seq_tokens == x.model.image.tokens


OUTPUT_GROUPS = Rule(
    id="output-groups-over-tp",
    target="layout",
    version=VERSION,
    text="groups of a grouped output projection divide over tp",
    where="--tp",
    remedy="choose tp among the divisors of the groups",
    source="layout (a group's product stays on one rank)",
    ok=_groups,
    say=lambda p, x: f"{_out_groups(x)} groups of the output projection do not divide over tp {p.tp}",
)
IMAGE_TOKENS = Rule(
    id="image-tokens",
    target="layout",
    version=VERSION,
    text="the sequence of a model with an image is that image's tokens",
    where="--seq-len",
    remedy="leave the sequence length out, or change the image of the model file",
    source="layout",
    ok=_image,
    say=lambda p, x: (
        f"sequence {x.workload.seq_tokens}, but {x.model.name} makes "
        f"{x.model.image.tokens if x.model.image else 0} tokens of an image"
    ),
)
