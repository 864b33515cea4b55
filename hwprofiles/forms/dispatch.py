"""Time of expert dispatch and combine kernels (DeepEP, and two-sided NVLink of a rack) from what a rank sends.

Three kernels, each with its own parameters for dispatch and combine (`Parts`: start-up, then two links side by side):

- normal: a token goes once to every rank that holds any of its k experts, and between scale-up domains once per domain,
  to be forwarded there. The kernel copies with `sms` multiprocessors, of
  which some send while others receive:

      send    = tokens hits (bytes / send_bytes_per_s + copy_s) / sms
      receive = tokens (token_s + bytes / token_bytes_per_s + hits bytes / receive_bytes_per_s) / sms
      wire    = tokens hits (ranks - 1) / ranks bytes / nvlink_bytes_per_s
      start   = start_s + hits slot_s + bytes / single_bytes_per_s + fill_s (1 - exp(-tokens / fill_tokens))
      time    = start + (send^p + receive^p + wire^p)^(1/p)

  over d domains with copies per rank and per domain and, beside them, tokens hits_d (d - 1) / d bytes / nic rate;
- low_latency: one message per token and expert, nothing deduplicated. Experts share the multiprocessors in rounds, so
  that few experts leave most of them idle: E / ceil(E / multiprocessors) work;
- rack: one copy per rank over NVLink wherever the rank is; work per token and slot beside the wire.

`hits` is the expected number of distinct places of a token's k experts under uniform routing (`expected_hits`).
Uneven loads: copying and links follow the rank that receives most, `load` times the mean. Sizes may be numpy columns.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.folders import fitted_file
from hwprofiles.forms.hits import block_hits, expected_hits
from hwprofiles.interpolate import Floats

FILE = "dispatch.toml"
# Bytes per element as sent: fp8 and nvfp4 carry one scale per 128 (4 bytes) and per 16 (1 byte) elements.
PAYLOAD_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0 + 4 / 128, "nvfp4": 0.5 + 1 / 16}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """latency_s, then seconds the two links of a rank are busy when alone, side by side."""

    latency_s: Floats
    nvlink_s: Floats
    nic_s: Floats

    @property
    def total_s(self) -> Floats:
        """Duration with no other traffic."""
        total: Floats = self.latency_s + np.maximum(self.nvlink_s, self.nic_s)
        return total


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One dispatch or combine as a rank sees it; numbers or columns.

    tokens: of a rank, before the choice of experts; ranks: of the group, in `domains` scale-up domains; payload: key of
    `PAYLOAD_BYTES`; sms: multiprocessors the kernel may use; load: received by the most loaded rank over the mean;
    group_limit: expert groups a token may choose from (0: all) of `groups` (0: one per domain); even: the k experts of
    a token lie on different ranks as far as there are any. nvlink_scale: rate of the NVLink over that of the measured
    device; nic_bytes_per_s: achieved by one rank's NIC (None: as measured); node_spread: distinct domains of a token
    over those of uniform routing (below 1 where experts that tokens hold together share one). consecutive: a token's k
    experts lie side by side (`block_hits`), whatever groups there are.
    """

    tokens: Any
    hidden: Any
    top_k: Any
    experts: Any
    ranks: Any
    domains: Any = 1
    payload: str = "bf16"
    sms: Any = 20
    load: Any = 1.0
    group_limit: Any = 0
    groups: Any = 0
    even: bool = False
    nvlink_scale: float = 1.0
    nic_bytes_per_s: Any = None
    node_spread: Any = 1.0
    consecutive: bool = False

    @property
    def token_bytes(self) -> Any:
        """Bytes of one token as sent."""
        return np.asarray(self.hidden, dtype=np.float64) * PAYLOAD_BYTES[self.payload]

    @property
    def received(self) -> Any:
        """Tokens that set the time: those of the most loaded rank, over its share of copies."""
        return np.asarray(self.tokens, dtype=np.float64) * self.load

    @property
    def local(self) -> Any:
        """Ranks of a domain."""
        return np.asarray(self.ranks, dtype=np.float64) / self.domains

    @cached_property
    def domain_hits(self) -> Floats:
        """Distinct domains of a token."""
        hit: Floats = self._hits(self.domains) * self.node_spread
        return hit

    @cached_property
    def rank_hits(self) -> Floats:
        """Distinct ranks of a token."""
        if self.even:
            spread: Floats = np.minimum(np.asarray(self.ranks, dtype=np.float64), self.top_k)
            return spread
        return self._hits(self.ranks)

    def _hits(self, places: Any) -> Floats:
        if self.consecutive:
            return block_hits(self.top_k, places, self.experts)
        own = np.ndim(self.groups) > 0 or self.groups > 0
        groups = self.groups if own else self.domains
        return expected_hits(self.top_k, places, self.experts, limit=self.group_limit, groups=groups)


@dataclass(frozen=True, kw_only=True)
class NormalAcross:
    """The normal kernel over several domains: see `NormalForm`; hop_s per doubling of the domains."""

    start_s: float
    hop_s: float
    fill_s: float
    fill_tokens: float
    rank_bytes_per_s: float
    domain_bytes_per_s: float
    nic_bytes_per_s: float
    sharpness: float

    def latency_s(self, x: Exchange) -> Floats:
        """Start-up of `x` over several domains."""
        hops = np.log2(np.maximum(x.domains, 1.0))
        start: Floats = self.start_s + self.hop_s * hops - self.fill_s * np.expm1(-x.received / self.fill_tokens)
        return start

    def nic_s(self, x: Exchange) -> Floats:
        """Seconds that the NIC of a rank is busy with `x`, nothing else going on."""
        rate = self.nic_bytes_per_s if x.nic_bytes_per_s is None else x.nic_bytes_per_s
        busy: Floats = x.received * x.domain_hits * (x.domains - 1.0) / x.domains * x.token_bytes / rate
        return busy


@dataclass(frozen=True, kw_only=True)
class NormalForm:
    """Throughput kernel. copy_s, token_s and all rates but NVLink's: of one multiprocessor. `receive` ends a token:
    indices and the copy out of the buffers (dispatch), or the sum over its hits (combine). single_bytes_per_s:
    one token alone, through all stages in turn."""

    start_s: float
    slot_s: float
    single_bytes_per_s: float
    fill_s: float
    fill_tokens: float
    send_bytes_per_s: float
    copy_s: float
    token_s: float
    token_bytes_per_s: float
    receive_bytes_per_s: float
    nvlink_bytes_per_s: float
    sharpness: float
    across: NormalAcross | None = None

    def parts(self, x: Exchange) -> Parts:
        """Start-up and link seconds of `x`. Raises ValueError over several domains without parameters for them."""
        several = np.asarray(x.domains) > 1
        if not np.any(several):
            return self._inside(x)
        far = self._over(x)
        if np.all(several):
            return far
        inside = self._inside(x)
        pairs = ((inside.latency_s, far.latency_s), (inside.nvlink_s, far.nvlink_s), (inside.nic_s, far.nic_s))
        latency, nvlink, nic = (np.where(several, there, here) for here, there in pairs)
        return Parts(latency_s=latency, nvlink_s=nvlink, nic_s=nic)

    def _inside(self, x: Exchange) -> Parts:
        hits, size, tokens = x.rank_hits, x.token_bytes, x.received
        send = hits * (size / self.send_bytes_per_s + self.copy_s)
        receive = self.token_s + size / self.token_bytes_per_s + hits * size / self.receive_bytes_per_s
        copying = tokens / x.sms * norm(self.sharpness, send, receive)
        wire = tokens * hits * (x.ranks - 1.0) / x.ranks * size / (self.nvlink_bytes_per_s * x.nvlink_scale)
        busy = norm(self.sharpness, copying, wire)
        latency = self.start_s + hits * self.slot_s + size / self.single_bytes_per_s
        latency = latency - self.fill_s * np.expm1(-tokens / self.fill_tokens)
        return _parts(latency, busy, np.zeros(()))

    def _over(self, x: Exchange) -> Parts:
        far = self.across
        if far is None:
            raise ValueError("this form has no parameters for several domains")
        ranks, domains, size, tokens = x.rank_hits, x.domain_hits, x.token_bytes, x.received
        copying = tokens * size * (ranks / far.rank_bytes_per_s + domains / far.domain_bytes_per_s) / x.sms
        wire = tokens * ranks * (x.local - 1.0) / x.local * size / (self.nvlink_bytes_per_s * x.nvlink_scale)
        nvlink = norm(self.sharpness, copying, wire)
        return _parts(far.latency_s(x), *beside(far.sharpness, nvlink, far.nic_s(x)))


@dataclass(frozen=True, kw_only=True)
class LowLatencyAcross:
    """The low-latency kernel over several domains: seconds per doubling of them, per message, and the NIC rate."""

    hop_s: float
    message_s: float
    nic_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class LowLatencyForm:
    """One message per token and expert. sm_bytes_per_s, copy_s: of one multiprocessor; expert_s: per expert."""

    multiprocessors: float
    start_s: float
    expert_s: float
    sm_bytes_per_s: float
    copy_s: float
    nvlink_bytes_per_s: float
    sharpness: float
    across: LowLatencyAcross | None = None

    def parts(self, x: Exchange) -> Parts:
        """As `NormalForm.parts`; `x.sms` has no say: the kernel takes the multiprocessors its experts give it."""
        size, messages = x.token_bytes, x.received * x.top_k
        experts = np.asarray(x.experts, dtype=np.float64)
        busy_sms = experts / np.ceil(experts / self.multiprocessors)
        copying = messages * (size / self.sm_bytes_per_s + self.copy_s) / busy_sms
        wire = messages * (x.local - 1.0) / x.ranks * size / (self.nvlink_bytes_per_s * x.nvlink_scale)
        latency = self.start_s + experts * self.expert_s
        nvlink = norm(self.sharpness, copying, wire)
        several = np.asarray(x.domains) > 1
        if not np.any(several):
            return _parts(latency, nvlink, np.zeros(()))
        far = self.across
        if far is None:
            raise ValueError("this form has no parameters for several domains")
        rate = far.nic_bytes_per_s if x.nic_bytes_per_s is None else x.nic_bytes_per_s
        nic = messages * (x.ranks - x.local) / x.ranks * (size / rate + far.message_s)
        latency = latency + far.hop_s * np.log2(np.maximum(x.domains, 1.0))
        return _parts(latency, *beside(self.sharpness, nvlink, nic))


@dataclass(frozen=True, kw_only=True)
class RackForm:
    """Two-sided exchange inside one wide domain. token_s, slot_s: per token and per token and expert; the wire slows
    with the ranks as 1 + ranks / slow_ranks."""

    start_s: float
    rank_s: float
    token_s: float
    slot_s: float
    read_bytes_per_s: float
    nvlink_bytes_per_s: float
    slow_ranks: float
    sharpness: float

    def parts(self, x: Exchange) -> Parts:
        """As `NormalForm.parts`, one domain; ranks beyond it are the caller's."""
        hits, size, tokens = x.rank_hits, x.token_bytes, x.received
        wire = tokens * hits * (x.local - 1.0) / x.local * size / (self.nvlink_bytes_per_s * x.nvlink_scale)
        wire = wire * (1.0 + x.local / self.slow_ranks)
        copying = tokens * (x.top_k * self.slot_s + size / self.read_bytes_per_s)
        busy = tokens * self.token_s + norm(self.sharpness, copying, wire)
        return _parts(self.start_s + x.local * self.rank_s, busy, np.zeros(()))


DispatchForm = NormalForm | LowLatencyForm | RackForm
MODES: Mapping[str, type[NormalForm] | type[LowLatencyForm] | type[RackForm]] = {
    "normal": NormalForm, "low_latency": LowLatencyForm, "rack": RackForm,
}  # fmt: skip
ACROSS: Mapping[str, type[NormalAcross] | type[LowLatencyAcross]] = {
    "normal": NormalAcross, "low_latency": LowLatencyAcross,
}  # fmt: skip


def norm(sharpness: float, one: Any, other: Any) -> Floats:
    """(a^p + b^p)^(1/p): the larger of two overlapping times, more where they are alike."""
    top, low = np.maximum(one, other), np.minimum(one, other)
    joint: Floats = top * (1.0 + (low / np.maximum(top, 1e-300)) ** sharpness) ** (1.0 / sharpness)
    return joint


def beside(sharpness: float, nvlink: Any, nic: Any) -> tuple[Floats, Floats]:
    """Both links, slowed alike so that the later one ends when their norm does."""
    slower = norm(sharpness, nvlink, nic) / np.maximum(np.maximum(nvlink, nic), 1e-300)
    return nvlink * slower, nic * slower


def _parts(latency: Any, nvlink: Any, nic: Any) -> Parts:
    latency, nvlink, nic = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (latency, nvlink, nic)))
    return Parts(latency_s=latency, nvlink_s=nvlink, nic_s=nic)


def form_of(mode: str, numbers: Mapping[str, Any]) -> Any:
    """The form of `mode` with these parameters, those of several domains under "across"; other keys are ignored."""
    across = numbers.get("across")
    known = {field.name for field in fields(MODES[mode])} - {"across"}
    values: dict[str, Any] = {name: float(value) for name, value in numbers.items() if name in known}
    if across is not None:
        names = {field.name for field in fields(ACROSS[mode])}
        values["across"] = ACROSS[mode](**{name: float(value) for name, value in across.items() if name in names})
    return MODES[mode](**values)


@cache
def dispatch_forms(folder: str) -> Mapping[tuple[str, str], Any]:
    """Forms of a measured device folder by (mode, phase); empty where none were fitted. UserError: no source."""
    return {key: form_of(key[0], entry) for key, entry in _entries(folder).items()}


@cache
def dispatch_domains(folder: str) -> Mapping[tuple[str, str], Mapping[str, tuple[float, float]]]:
    """Fewest and most tokens, experts, ... that each form was fitted on. UserError: no source."""
    return {
        key: {name: (float(low), float(high)) for name, (low, high) in entry.get("domain", {}).items()}
        for key, entry in _entries(folder).items()
    }


def _entries(folder: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    path = fitted_file(folder, FILE)
    if not path.is_file():
        return {}
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if "source" not in data:
        raise UserError("no [source] table: every data file states where its figures come from", where=str(path))
    return {(mode, phase): entry for mode in MODES for phase, entry in data.get(mode, {}).items()}
