"""Which layer of an own model holds what: [[layers]] runs with layer_cycles, or a block_pattern of letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
        self, *, moe: bool, mixer: bool, attention: bool, ffn: bool, window: int | None = None, chunk: int | None = None
    ) -> LayerSpec:
        """One layer; window and chunk None = the attention's own, 0 = none."""
        layer = self.base
        if not ffn:
            layer = replace(layer, ffn_dim=0, ffn_bias=False)
        elif moe and self.moe is not None:
            layer = replace(layer, moe=self.moe, ffn_dim=0, ffn_bias=False)
        else:
            self.any_dense = True
        if mixer or not attention:
            return replace(layer, attention=NO_ATTENTION, mixer=self.mixer if mixer else None)
        att = layer.attention
        if window is not None:
            att = replace(att, window=window or None)
        if chunk is not None:
            att = replace(att, chunk=chunk or None)
        return layer if att is layer.attention else replace(layer, attention=att)


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
        has_moe = sub.flag("moe", default=parts.moe is not None)
        mixer = sub.flag("mixer", default=False)
        attention, ffn = sub.flag("attention", default=True), sub.flag("ffn", default=True)
        window, chunk = (sub.size(key, low=0) if sub.has(key) else None for key in ("window", "chunk"))
        sub.used.update(("window", "chunk"))
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
            layer = parts.layer(moe=has_moe, mixer=mixer, attention=attention, ffn=ffn, window=window, chunk=chunk)
            out += [layer] * repeat
    return out
