"""Knobs that two-knob maps may turn, each with values around where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from dashboards.answers import Answer
from dashboards.state import Knobs
from dashboards.style import significant

MOST = 10  # values of one knob
AT_FIRST = 6  # of them chosen before the visitor chooses
_TIMES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
_LARGEST = 64  # degrees beyond it are typed, not offered


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a knob: what a case holds, and what a reader sees."""

    value: Any
    text: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A knob of a map. key: of a case; choices: in order; now: text of the choice that is set, "" where none is."""

    key: str
    words: str
    choices: tuple[Choice, ...]
    now: str


def turns(found: Answer) -> dict[str, Turn]:
    """Every knob a map may turn, by key, for the scenario of an answer."""
    knobs, scenario = found.knobs, found.scenario
    plan, work, cluster = scenario.plan, scenario.workload, scenario.cluster
    world = cluster.num_devices
    powers = tuple(2**i for i in range(world.bit_length()) if world % 2**i == 0 and 2**i <= _LARGEST)
    made = [
        _whole("tp", "tensor parallel", powers, plan.tp),
        _whole("pp", "pipeline stages", powers, plan.pp),
        _whole("ep", "expert parallel", powers, plan.ep),
        _whole("cp", "context parallel", powers, plan.cp),
        _whole("etp", "expert tensor parallel", powers[:4], plan.etp),
        _whole("vpp", "virtual stages", _divisors(len(scenario.model.layers) // max(1, plan.pp)), plan.vpp),
        _whole("micro_batch", "micro-batch", (1, 2, 4, 8), plan.micro_batch_seqs),
        _whole("zero", "ZeRO stage", (0, 1, 2, 3), plan.zero_stage),
        _whole("gpus", "GPUs", tuple(world * n // 4 for n in (1, 2, 4, 8, 16, 32) if world * n % 4 == 0), world),
        _whole("global_batch", "global batch", tuple(_scaled(work.global_batch_seqs)), work.global_batch_seqs),
        _whole("seq_len", "sequence length", tuple(_scaled(work.seq_tokens)), work.seq_tokens),
        _texts("recompute", ("none", "layernorm,moe_act", "core_attn", "full"), ",".join(plan.recompute) or "none"),
        _texts(
            "routing", ("balanced", "uniform", "zipf:0.3", "zipf:0.6", "zipf:1.0"), knobs.get("routing", "balanced")
        ),
        _texts("precision", _precisions(found), work.precision),
        *_rates(found),
    ]
    return {turn.key: turn for turn in made if len(turn.choices) > 1}


def _scaled(now: int) -> list[int]:
    return [now * n // 4 for n in (1, 2, 4, 8, 16) if now * n // 4 >= 1]


def _divisors(layers: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, max(1, layers) + 1) if layers % n == 0)[:MOST]


def _whole(key: str, words: str, values: tuple[int, ...], now: int) -> Turn:
    every = sorted({*values, now})
    return Turn(key=key, words=words, now=f"{now:,}", choices=tuple(Choice(value=str(v), text=f"{v:,}") for v in every))


def _texts(key: str, values: tuple[str, ...], now: str) -> Turn:
    """A knob whose values are words; an upload is not turned into another, so it is left out."""
    from dashboards.uploads import is_token

    every = values if is_token(now) else tuple(dict.fromkeys((*values, now)))
    return Turn(key=key, words=key, now=now, choices=tuple(Choice(value=v, text=v) for v in every))


def _precisions(found: Answer) -> tuple[str, ...]:
    from hwprofiles.catalogue import device_of
    from sim.workload import Precision

    peaks = device_of(found.scenario.cluster).peak_flop_per_s
    return tuple(name for name in get_args(Precision) if name in peaks)


def _rates(found: Answer) -> list[Turn]:
    """Rates and memory of the machine, as multiples of what they are."""
    from hwprofiles.catalogue import device_of

    cluster = found.scenario.cluster
    device = device_of(cluster)
    gb: Callable[[float], str] = lambda x: f"{significant(x / 1e9)} GB/s"  # noqa: E731
    rows: tuple[tuple[str, str, float, Callable[[float], str]], ...] = (
        ("cluster.scale_out.bytes_per_s", "scale-out bandwidth per GPU", cluster.scale_out.bytes_per_s, gb),
        ("cluster.scale_up.bytes_per_s", "scale-up bandwidth per GPU", cluster.scale_up.bytes_per_s, gb),
        ("device.mem_bytes_per_s", "memory bandwidth", device.mem_bytes_per_s, gb),
        ("device.mem_bytes", "memory per GPU", device.mem_bytes, lambda x: f"{x / 2**30:.0f} GiB"),
    )
    return [
        Turn(
            key=key,
            words=words,
            now=text(now),
            choices=tuple(Choice(value=now * t, text=text(now * t)) for t in _TIMES),
        )
        for key, words, now, text in rows
        if now > 0
    ]


def at_first(turn: Turn) -> list[str]:
    """Texts of the values chosen at first: those nearest to where the knob stands."""
    texts = [choice.text for choice in turn.choices]
    at = texts.index(turn.now) if turn.now in texts else 0
    first = max(0, min(at - AT_FIRST // 2, len(texts) - AT_FIRST))
    return texts[first : first + AT_FIRST]


def payload(knobs: Knobs, x: Turn, y: Turn, xs: list[str], ys: list[str]) -> Mapping[str, Any]:
    """The job of a map: the case without its own values of the two knobs, and the values to try."""
    values = [[c.value for c in turn.choices if c.text in texts] for turn, texts in ((x, xs), (y, ys))]
    case = {key: value for key, value in knobs.case().items() if key not in (x.key, y.key)}
    return {"case": case, "x": [x.key, values[0]], "y": [y.key, values[1]]}
