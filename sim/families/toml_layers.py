"""Which layer of an own model holds what: [[layers]] runs with layer_cycles, or a block_pattern of letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sim.families.reader import MAX_LAYERS, Reader
from sim.model import NO_ATTENTION, LayerSpec, MixerSpec, MoESpec

LETTERS = {"M": "the mixer", "*": "attention", "E": "experts", "-": "a dense FFN"}


@dataclass(kw_only=True)
class Parts:
    """What layers are put together from. any_dense: a layer asked for the dense FFN."""

    base: LayerSpec
    moe: MoESpec | None
    mixer: MixerSpec | None
    any_dense: bool = field(default=False)

    def layer(
        self, *, moe: bool, mixer: bool, attention: bool, ffn: bool, changes: Mapping[str, Any] | None = None,
        hash_routed: bool | None = None,
    ) -> LayerSpec:  # fmt: skip
        """One layer; changes: fields of its attention that differ from the attention's own; hash_routed None = as the
        experts say."""
        layer = self.base
        if not ffn:
            layer = replace(layer, ffn_dim=0, ffn_bias=False)
        elif moe and self.moe is not None:
            moe_spec = self.moe
            if hash_routed is not None:
                # what a table chooses needs no correction of scores
                bias = moe_spec.router_bias and not hash_routed
                moe_spec = replace(moe_spec, hash_routed=hash_routed, router_bias=bias)
            layer = replace(layer, moe=moe_spec, ffn_dim=0, ffn_bias=False)
        else:
            self.any_dense = True
        if mixer or not attention:
            return replace(layer, attention=NO_ATTENTION, mixer=self.mixer if mixer else None)
        return replace(layer, attention=replace(layer.attention, **changes)) if changes else layer


def read_layers(r: Reader, parts: Parts) -> tuple[LayerSpec, ...]:
    """The layers of the table; problems are noted in the reader."""
    runs = r.data.get("layers")
    r.used.add("layers")
    cycles = r.size("layer_cycles", high=MAX_LAYERS, default=1)
    pattern = r.text("block_pattern", default="") if r.has("block_pattern") else ""
    if pattern and runs is not None:
        r.problems.append("block_pattern and [[layers]] both say what the layers are: keep one")
    if pattern:
        out = _of_pattern(r, parts, pattern)
    elif runs is None:
        count = r.size("num_layers", high=MAX_LAYERS)
        no_attention = parts.base.attention.kind == "none"
        layer = parts.layer(moe=parts.moe is not None, mixer=no_attention, attention=not no_attention, ffn=True)
        return (layer,) * count
    elif not isinstance(runs, list) or not runs or not all(isinstance(x, Mapping) for x in runs):
        r.problems.append("layers must be a list of [[layers]] tables, at least one")
        return ()
    else:
        out = _of_runs(r, parts, runs)
    if len(out) * cycles > MAX_LAYERS:
        r.problems.append(f"more than {MAX_LAYERS} layers: lower repeat or layer_cycles")
        return ()
    layers = tuple(out) * cycles
    if r.has("num_layers") and r.size("num_layers", high=MAX_LAYERS) not in (0, len(layers)):
        what = "block_pattern makes" if pattern else "[[layers]] runs make"
        r.problems.append(f"num_layers = {r.data['num_layers']} but the {what} {len(layers)}: drop one")
    r.used.add("num_layers")
    return layers


def _of_pattern(r: Reader, parts: Parts, pattern: str) -> list[LayerSpec]:
    wrong = sorted(set(pattern) - set(LETTERS))
    if wrong:
        known = ", ".join(f"{letter} {what}" for letter, what in LETTERS.items())
        r.problems.append(f"block_pattern holds {''.join(wrong)[:20]!r}; letters: {known}")
    for letter, have, table in (("M", parts.mixer, "mixer"), ("E", parts.moe, "moe")):
        if letter in pattern and have is None:
            r.problems.append(f"block_pattern holds {letter}: it needs a [{table}] table")
    if "*" in pattern and parts.base.attention.kind == "none":
        r.problems.append("block_pattern holds *: it needs an [attention] table")
    return [
        parts.layer(moe=x == "E", mixer=x == "M", attention=x == "*", ffn=x in "E-") for x in pattern if x in LETTERS
    ]


def _of_runs(r: Reader, parts: Parts, runs: list[Mapping[str, object]]) -> list[LayerSpec]:
    out: list[LayerSpec] = []
    for number, run in enumerate(runs[:MAX_LAYERS], 1):
        sub = Reader(run, r.where)
        repeat = sub.size("repeat", high=MAX_LAYERS, default=1)
        inner = run.get("layers")
        if isinstance(inner, list) and inner and all(isinstance(x, Mapping) and "layers" not in x for x in inner):
            sub.used.add("layers")
            sub.unknown_keys()
            layers = _of_runs(sub, parts, inner)
            r.problems.extend(f"[[layers]] {number}: {p}" for p in sub.problems)
            if len(out) + repeat * len(layers) <= MAX_LAYERS:
                out += layers * repeat
            else:
                r.problems.append(f"more than {MAX_LAYERS} layers: lower repeat")
            continue
        has_moe = sub.flag("moe", default=parts.moe is not None)
        mixer = sub.flag("mixer", default=False)
        attention, ffn = sub.flag("attention", default=True), sub.flag("ffn", default=True)
        changes = _changes(sub)
        hash_routed = sub.flag("hash_routed", default=False) if sub.has("hash_routed") else None
        sub.used.add("hash_routed")
        if has_moe and parts.moe is None:
            sub.problems.append("moe = true needs a [moe] table")
        if mixer and parts.mixer is None:
            sub.problems.append("mixer = true needs a [mixer] table")
        if not (mixer or attention or ffn):
            sub.problems.append("attention = false and ffn = false leave nothing: give one half")
        if attention and not mixer and parts.base.attention.kind == "none":
            sub.problems.append("attention = true needs an [attention] table")
        sub.unknown_keys()
        r.problems.extend(f"[[layers]] {number}: {p}" for p in sub.problems)
        if len(out) + repeat <= MAX_LAYERS:
            layer = parts.layer(
                moe=has_moe, mixer=mixer, attention=attention, ffn=ffn, changes=changes, hash_routed=hash_routed
            )
            out += [layer] * repeat
    return out


def _changes(sub: Reader) -> dict[str, Any]:
    """Fields of the attention that a run states otherwise; 0 = none."""
    out: dict[str, Any] = {}
    for key in ("window", "chunk"):
        if sub.has(key):
            out[key] = sub.size(key, low=0) or None
    if sub.has("compress_rate"):
        out["compress_rate"] = sub.size("compress_rate", low=0)
    if sub.has("compress_overlap"):
        out["compress_overlap"] = sub.flag("compress_overlap", default=False)
    if not sub.flag("indexer", default=True):
        out |= {"index_topk": 0, "index_heads": 0, "index_dim": 0}
    sub.used.update(("window", "chunk", "compress_rate", "compress_overlap"))
    return out
