"""Token mixers without softmax: state-space layers, linear attention and short convolutions.

Letters: H heads of value width P, G key heads of key width N (each serves H / G value heads), K taps of a causal
convolution over time, C tokens of a chunk. A head's state is N x P. The chunked algorithms work on C tokens at a time:
products inside a chunk, and one state handed on from chunk to chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

Kind = Literal["mamba1", "mamba2", "gated_delta", "kda", "lightning", "short_conv"]


@dataclass(frozen=True, kw_only=True)
class MixerSpec:
    """One mixer.

    mamba1: selective scan (arXiv 2312.00752); H = 1, P = inner width, N = state, rank = width of the time-step
    projection, inner_norms = norms on time step, B and C. mamba2: SSD (arXiv 2405.21060). gated_delta: gated delta rule
    (arXiv 2412.06464). kda: the same with a decay per channel and low-rank gates of width `rank` (arXiv 2510.26692).
    lightning: linear attention with a fixed decay and an output gate (arXiv 2501.08313). short_conv: gated
    convolution of D channels (H = 1, P = D). conv_bias, proj_bias: biases of the convolution and the projections.
    """

    kind: Kind
    heads: int
    head_dim: int
    key_heads: int = 1
    key_dim: int = 0
    conv_kernel: int = 0
    chunk: int = 64
    rank: int = 0
    conv_bias: bool = False
    proj_bias: bool = False
    inner_norms: bool = False

    @property
    def inner_dim(self) -> int:
        """Width of the mixed values: H x P."""
        return self.heads * self.head_dim

    @property
    def keys_dim(self) -> int:
        """Width of all keys (and of all queries): G x N."""
        return self.key_heads * self.key_dim

    @property
    def conv_dim(self) -> int:
        """Channels the convolution runs over."""
        if not self.conv_kernel:
            return 0
        return self.inner_dim + (0 if self.kind in ("mamba1", "short_conv") else 2 * self.keys_dim)

    @property
    def in_dim(self) -> int:
        """Columns of the joint input projection that divides by heads."""
        inner, keys = self.inner_dim, self.keys_dim
        return {
            "mamba1": 2 * inner,  # values, gate
            "mamba2": 2 * inner + 2 * keys + self.heads,  # values, gate, B and C, time step
            "gated_delta": 2 * inner + 2 * keys + 2 * self.heads,  # q, k, v, gate, write strength, decay
            "kda": inner + 2 * keys + self.heads,  # q, k, v, write strength; gate and decay are low-rank
            "lightning": 2 * inner + 2 * keys,  # q, k, v, gate
            "short_conv": 3 * inner,  # values and two gates
        }[self.kind]


MIXERS: tuple[str, ...] = get_args(get_type_hints(MixerSpec)["kind"])


@dataclass(frozen=True, kw_only=True)
class MixerParams:
    """Parameters of a mixer: `split` divide by tp, `whole` are on every rank of a tensor-parallel group."""

    split: int
    whole: int


def mixer_params(mixer: MixerSpec, hidden_dim: int) -> MixerParams:
    """Parameter counts of one mixer, its own norms and constants included, the layer's norm not."""
    m, d, inner = mixer, hidden_dim, mixer.inner_dim
    split = d * m.in_dim + inner * d + m.conv_dim * (m.conv_kernel + (1 if m.conv_bias else 0))
    whole = 0
    if m.kind == "mamba1":
        split += inner * (m.rank + 2 * m.key_dim) + m.rank * inner + inner  # to step, B, C; step back up, with bias
        split += inner * m.key_dim + inner  # A, D
        whole += (m.rank + 2 * m.key_dim) if m.inner_norms else 0
    elif m.kind == "mamba2":
        split += 3 * m.heads + inner  # A, D, bias of the time step; gated norm
    elif m.kind == "gated_delta":
        split += 2 * m.heads  # A, bias of the decay
        whole += m.head_dim
    elif m.kind == "kda":
        split += m.rank * (inner + m.keys_dim) + m.heads + m.keys_dim  # gate and decay up; A, bias of the decay
        whole += 2 * d * m.rank + m.head_dim  # gate and decay down; norm
    elif m.kind == "lightning":
        split += inner  # norm
    if m.proj_bias:
        split += m.in_dim
        whole += d
    return MixerParams(split=split, whole=whole)
