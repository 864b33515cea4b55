"""Reads values out of a config table and collects every problem, so that all are reported at once.

First stop on the path from a file to a `ModelSpec`: families ask a `Reader` for keys (several spellings allowed), build
the spec, and `finish` raises one `UserError` that lists what is missing, malformed or contradictory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from hwprofiles.errors import UserError
from sim.model import AttentionSpec, ModelSpec, MoESpec

# Guards against nonsense, not physics: a config asking for more is a typing error or an attack on memory.
MAX_SIZE = 2**31
MAX_LAYERS = 10_000
MAX_SHOWN = 30  # problems listed at once: a screenful


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Reader:
    """Typed access to a mapping. A bad or missing value is noted and answered by 0, False or an empty tuple."""

    def __init__(self, data: Mapping[str, object], where: str) -> None:
        self.data = data
        self.where = where
        self.problems: list[str] = []
        self.assumed: list[str] = []
        self.used: set[str] = set()

    def _find(self, keys: tuple[str, ...]) -> tuple[str, object]:
        """First spelling present with a value; two spellings that differ are a contradiction."""
        self.used.update(keys)
        found = [(key, self.data[key]) for key in keys if self.data.get(key) is not None]
        if not found:
            return keys[0], None
        key, value = found[0]
        for other, second in found[1:]:
            if type(second) is not type(value) or second != value:
                self.problems.append(f"{key} = {_shown(value)} contradicts {other} = {_shown(second)}; keep one")
        return key, value

    def has(self, *keys: str) -> bool:
        """True when any of the spellings holds a value other than null."""
        return any(self.data.get(key) is not None for key in keys)

    def missing(self, keys: tuple[str, ...], hint: str = "") -> None:
        """Note a missing key with its accepted spellings."""
        also = f" (also read: {', '.join(keys[1:])})" if len(keys) > 1 else ""
        self.problems.append(f"missing key {keys[0]!r}{also}: {hint or 'add it to the file'}")

    def size(self, *keys: str, low: int = 1, high: int = MAX_SIZE, default: int | None = None, hint: str = "") -> int:
        """A whole number in [low, high]; required unless a default is given."""
        key, value = self._find(keys)
        if value is None:
            if default is not None:
                return default
            self.missing(keys, hint)
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            self.problems.append(f"{key} = {_shown(value)} must be a whole number (no quotes, no fraction)")
            return 0
        if not low <= value <= high:
            self.problems.append(f"{key} = {_shown(value)} must lie between {low} and {high}")
            return 0
        return value

    def flag(self, *keys: str, default: bool, assume: bool = False) -> bool:
        """True or false. With `assume` a default that had to be used is put on record."""
        key, value = self._find(keys)
        if value is None:
            if assume:
                self.assumed.append(f"{key} = {str(default).lower()}")
            return default
        if not isinstance(value, bool):
            self.problems.append(f"{key} = {_shown(value)} must be true or false")
            return default
        return value

    def text(self, *keys: str, default: str | None = None, one_of: tuple[str, ...] = ()) -> str:
        """A short string, optionally from a fixed set; required unless a default is given."""
        key, value = self._find(keys)
        if value is None:
            if default is None:
                self.missing(keys)
            return default or ""
        if not isinstance(value, str) or not value.strip() or len(value) > 400:
            self.problems.append(f"{key} = {_shown(value)} must be a text of 1 to 400 characters")
            return default or ""
        if one_of and value not in one_of:
            self.problems.append(f"{key} = {_shown(value)} must be one of {', '.join(one_of)}")
            return default or ""
        return value

    def sizes(self, *keys: str, high: int = MAX_SIZE) -> tuple[int, ...]:
        """An optional list of whole numbers from 0."""
        key, value = self._find(keys)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(x) is int and 0 <= x <= high for x in value):
            self.problems.append(f"{key} = {_shown(value)} must be a list of whole numbers from 0 to {high}")
            return ()
        return tuple(value)

    def texts(self, *keys: str) -> tuple[str, ...]:
        """An optional list of strings."""
        key, value = self._find(keys)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            self.problems.append(f"{key} = {_shown(value)} must be a list of strings")
            return ()
        return tuple(value)

    def table(self, key: str) -> Reader:
        """A sub-table whose problems are reported with this one's; empty when absent."""
        self.used.add(key)
        value = self.data.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.problems.append(f"{key} = {_shown(value)} must be a table")
            value = None
        sub = Reader(value or {}, f"{self.where} [{key}]")
        sub.problems, sub.assumed = _Prefixed(self.problems, f"[{key}] "), self.assumed
        return sub

    def unknown_keys(self) -> None:
        """Refuse keys nobody asked for (own schemas only: a silent typing error would change the model)."""
        for key in sorted(set(map(str, self.data)) - self.used):
            self.problems.append(f"unknown key {_shown(key)}; known here: {', '.join(sorted(self.used))}")

    def finish(self, model: ModelSpec) -> ModelSpec:
        """The model, or one UserError with everything found, contradictions of the model included."""
        self.problems.extend(contradictions(model))
        if self.problems:
            distinct = list(dict.fromkeys(self.problems))
            more = [f"and {len(distinct) - MAX_SHOWN} more problems"] if len(distinct) > MAX_SHOWN else []
            raise UserError(distinct[:MAX_SHOWN] + more, where=self.where)
        return model

    def fail(self, problem: str) -> NoReturn:
        """Stop at a problem that makes all further reading pointless."""
        raise UserError([*self.problems, problem], where=self.where)


class _Prefixed(list[str]):
    """A problem list of a sub-table: appends go to the parent with the table's name in front."""

    def __init__(self, parent: list[str], prefix: str) -> None:
        super().__init__()
        self._parent, self._prefix = parent, prefix

    def append(self, item: str) -> None:
        """Put the problem on the parent's list."""
        self._parent.append(self._prefix + item)


def contradictions(model: ModelSpec) -> list[str]:
    """Relations that must hold inside a model. A 0 stands for a value already reported, and is skipped."""
    out: list[str] = []
    for layer in model.layer_kinds()[0]:
        out += _attention_problems(layer.attention)
        if layer.mixer is not None:
            heads, keys = layer.mixer.heads, layer.mixer.key_heads
            if heads and keys and heads % keys:
                out.append(f"{heads} heads of the mixer are not a multiple of {keys} key heads")
        if layer.moe is not None:
            out += _moe_problems(layer.moe)
            if layer.moe.hash_routed and model.image is not None:
                out.append("hash_routed looks up tokens of a vocabulary, which a model with an image has not")
        residual = layer.moe is not None and layer.moe.residual_ffn_dim > 0
        if layer.streams > 1 and (layer.parallel or residual):
            out.append("residual_streams need the halves of a layer one after the other, without a residual FFN")
    if model.head is not None and model.mtp_layers:
        out.append("mtp_layers predict tokens of a vocabulary: they need its head")
    return list(dict.fromkeys(out))


def _attention_problems(att: AttentionSpec) -> list[str]:
    out = []
    if att.heads and att.kv_heads and att.heads % att.kv_heads:
        out.append(f"{att.heads} attention heads are not a multiple of {att.kv_heads} key-value heads")
    if att.kind == "shared_kv":
        if att.kv_heads > 1:
            out.append(f"kind shared_kv has one key-value head, not {att.kv_heads}: leave kv_heads out")
        if att.heads and att.out_groups and att.heads % att.out_groups:
            out.append(
                f"{att.heads} attention heads do not divide into {att.out_groups} groups of the output projection"
            )
        if att.index_topk and not att.compress_rate:
            out.append("an indexer of kind shared_kv picks compressed entries: give compress_rate")
    elif att.compress_rate or att.out_rank:
        out.append(f'compressed entries and a grouped output projection need kind "shared_kv", not "{att.kind}"')
    if att.compress_rate and not att.window:
        out.append("compressed entries stand for what lies behind a window: give one")
    if not att.causal and (att.index_topk or att.compress_rate):
        out.append("an indexer and compressed entries look back: they need causal = true")
    if att.kind == "mla" and att.qk_nope_dim and att.qk_rope_dim and att.head_dim != att.qk_nope_dim + att.qk_rope_dim:
        out.append(f"MLA head_dim {att.head_dim} must be qk_nope_dim {att.qk_nope_dim} + qk_rope_dim {att.qk_rope_dim}")
    return out


def _moe_problems(moe: MoESpec) -> list[str]:
    out = []
    if moe.num_experts and moe.top_k > moe.num_experts:
        out.append(f"top-k {moe.top_k} is more than the {moe.num_experts} experts there are")
    if moe.hash_routed and moe.expert_choice:
        out.append("hash_routed and expert_choice both say where tokens go: keep one")
    if moe.num_experts and moe.num_groups and moe.num_experts % moe.num_groups:
        out.append(f"{moe.num_experts} experts do not divide into {moe.num_groups} groups")
    if moe.num_groups and moe.top_k_groups > moe.num_groups:
        out.append(f"top-k groups {moe.top_k_groups} is more than the {moe.num_groups} groups there are")
    elif moe.num_groups:
        size = moe.num_experts // moe.num_groups
        if moe.top_k > moe.top_k_groups * size > 0:
            out.append(f"top-k {moe.top_k} does not fit in {moe.top_k_groups} groups of {size} experts")
    return out
