"""A plan: how one model is laid over the devices. A value; nothing here looks at hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from hwprofiles.specs import RECOMPUTE_MODULES as RECOMPUTE_MODULES


class Degrees(Protocol):
    """What `layer_ops` reads: integers in an event run, numpy columns in screening.

    The discrete fields (recompute, zero_stage, schedule) are the same for all rows of a block.
    """

    @property
    def tp(self) -> Any: ...
    @property
    def cp(self) -> Any: ...
    @property
    def dp(self) -> Any: ...
    @property
    def pp(self) -> Any: ...
    @property
    def vpp(self) -> Any: ...
    @property
    def ep(self) -> Any: ...
    @property
    def etp(self) -> Any: ...
    @property
    def edp(self) -> Any: ...
    @property
    def micro_batch_seqs(self) -> Any: ...
    @property
    def recompute(self) -> tuple[str, ...]: ...
    @property
    def zero_stage(self) -> int: ...
    @property
    def schedule(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One layout. Attention mesh tp x cp x dp x pp; expert mesh etp x ep x edp x pp (folded).

    recompute: ("full",) or a subset of RECOMPUTE_MODULES. zero_stage: 0 plain data parallel,
    1 optimizer sharded (distributed optimizer), 2 + gradients, 3 + parameters (FSDP).
    micro_batch_group: micro-batches of one virtual stage in a row, interleaved (`sim.build.schedule.group_size`); 0 =
    its choice. stages: layers per virtual stage in model order (length pp * vpp), embedding, loss and MTP
    excluded; None = as even as possible, ends lighter when `account_ends`.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    edp: int = 1
    micro_batch_seqs: int = 1
    schedule: str = "1f1b"
    recompute: tuple[str, ...] = ()
    zero_stage: int = 1
    fsdp_shard: int = 0
    micro_batch_group: int = 0
    stages: tuple[int, ...] | None = None
    account_ends: bool = False

    @property
    def num_devices(self) -> int:
        """Devices used: tp * cp * dp * pp."""
        return self.tp * self.cp * self.dp * self.pp

    def num_micro_batches(self, global_batch_seqs: int) -> int:
        """Micro-batches per step of one data-parallel rank."""
        return global_batch_seqs // (self.micro_batch_seqs * self.dp)

    def label(self) -> str:
        """Short name such as TP2 PP8 VPP4 EP32 DP16 MB1."""
        parts = [f"TP{self.tp}"]
        if self.cp > 1:
            parts.append(f"CP{self.cp}")
        parts.append(f"PP{self.pp}")
        if self.vpp > 1:
            parts.append(f"VPP{self.vpp}")
        if self.schedule not in ("1f1b", "interleaved", "gpipe"):
            parts.append(self.schedule)
        if self.ep > 1 or self.etp > 1:
            parts.append(f"EP{self.ep}")
            if self.etp > 1:
                parts.append(f"ETP{self.etp}")
        parts += [f"DP{self.dp}", f"MB{self.micro_batch_seqs}"]
        return " ".join(parts)
