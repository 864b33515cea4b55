"""Time of the forward attention core from its sizes: what a tiled kernel does, with few fitted numbers.

A FlashAttention class kernel cuts each head's queries into tiles of 128 rows. With n tiles in a sequence, a
causal head multiplies n^2 / 2 tile pairs, and loads, normalises and stores n tiles. The tiles of all heads
share the multiprocessors; the last tile alone needs n products one after the other:

    share   = (heads (pair n^2 / 2 + tile n + head) + kv_heads kv_tile n) / multiprocessors
    longest = pair n + tile
    time    = floor + (share^sharpness + longest^sharpness)^(1 / sharpness)

A sharpness of 1 adds both (no tile starts early), a large one takes the longer (perfect filling). Kernels that
last longer than the power controller looks away run at a lower clock: time grows by up to `throttle`
around the duration `throttle_s`. Every term grows with every size, so the time does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.interpolate import Floats, Grid

TILE = 128  # queries per tile of the flash-attention kernels
PAIR_DIMS = 256.0  # dqk + dv of the head that `pair_s` is stated for

# What the tables of a kind are stated for: heads per kv head (0: keys and values are expanded per head) and dqk + dv.
TABLE_GROUP: Mapping[str, float] = {"gqa": 8.0, "mha": 1.0, "mla": 0.0}
TABLE_DIMS: Mapping[str, float] = {"gqa": PAIR_DIMS, "mha": PAIR_DIMS, "mla": 192.0 + 128.0}


@dataclass(frozen=True, kw_only=True)
class AttentionForm:
    """Parameters of one device and kind of core (seconds on one multiprocessor unless said).

    `pair_s`: both products of a tile of queries with a tile of keys, dqk + dv = 256. `tile_s`: start and end of a query
    tile. `head_s`: what a head costs at any length. `kv_tile_s`: reading a tile of keys and values once
    per kv head. `floor_s`: the shortest kernel, on the device.
    """

    multiprocessors: float
    floor_s: float
    pair_s: float
    tile_s: float
    head_s: float
    kv_tile_s: float
    sharpness: float
    throttle: float
    throttle_s: float

    def time_s(self, bh: Any, kv_bh: Any, seq: Any, dims: Any = PAIR_DIMS) -> Floats:
        """Seconds of a causal core: `bh` batch x heads, `kv_bh` batch x kv heads, `dims` dqk + dv."""
        # a part of a tile takes the time of a whole one
        n = np.maximum(np.ceil(np.asarray(seq, dtype=np.float64) / TILE), 1.0)
        pair = self.pair_s * (dims / PAIR_DIMS)
        own = bh * (n * (0.5 * pair * n + self.tile_s) + self.head_s)
        share = (own + kv_bh * (self.kv_tile_s * n)) / self.multiprocessors
        longest = pair * n + self.tile_s
        # the larger one factored out: no overflow whatever the sharpness
        top, low = np.maximum(share, longest), np.minimum(share, longest)
        time_s = self.floor_s + top * (1.0 + (low / top) ** self.sharpness) ** (1.0 / self.sharpness)
        late = (time_s / self.throttle_s) ** 2
        result: Floats = time_s * (1.0 + self.throttle * late / (1.0 + late))
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Seconds by (batch x heads, seq) of one kind of core: a measured table, continued by the form.

    Inside the table log(time) is interpolated, so a table point is reproduced. Outside, the time of
    the nearest table point grows or falls as the form does. `group` is the heads per kv head of the table
    (0: the keys and values of the core are expanded, no kv term), `dims` its dqk + dv.
    """

    grid: Grid
    form: AttentionForm
    group: float
    dims: float

    def time_s(self, bh: Any, seq: Any) -> Floats:
        """Seconds at batch x heads and seq; never falls when one of them grows."""
        log_bh, log_seq = np.broadcast_arrays(np.log(np.maximum(bh, 1e-9)), np.log(np.maximum(seq, 1e-9)))
        edge_bh, edge_seq = self.grid.clamp(log_bh, log_seq)
        time_s = np.asarray(self.grid.time_s(edge_bh, edge_seq))
        outside = (log_bh != edge_bh) | (log_seq != edge_seq)
        if outside.any():
            at, edge = (self._form_s(b[outside], s[outside]) for b, s in ((log_bh, log_seq), (edge_bh, edge_seq)))
            time_s[outside] *= at / edge
        return time_s

    def _form_s(self, log_bh: Floats, log_seq: Floats) -> Floats:
        bh, seq = np.exp(log_bh), np.round(np.exp(log_seq), 6)  # rounded: exp(log(128)) must stay one tile
        return self.form.time_s(bh, bh / self.group if self.group else 0.0, seq, self.dims)


def core_s(curves: Mapping[str, Curve], bh: Any, heads_per_kv: Any, seq: Any, dims: Any, *, latent: bool) -> Floats:
    """Seconds of causal cores with `heads_per_kv` heads per kv head and `dims` dqk + dv; `latent`: MLA's.

    The curve `mha` is of one head per kv head, `gqa` of four or more, which differ little; between them the logs
    of the times are interpolated. Other dims than the table's: the time goes as the form does, whose
    floor and tile ends stay.
    """
    curve = curves["mla" if latent else "gqa"]
    share = 1.0 if latent else np.clip(np.log2(np.maximum(heads_per_kv, 1.0)) / 2.0, 0.0, 1.0)
    time_s = curve.time_s(bh, seq)
    if np.any(share < 1.0):
        time_s = time_s**share * curves["mha"].time_s(bh, seq) ** (1.0 - share)
    if np.any(dims != curve.dims):
        kv_bh = 0.0 if latent else bh / np.maximum(heads_per_kv, 1.0)
        time_s = time_s * (curve.form.time_s(bh, kv_bh, seq, dims) / curve.form.time_s(bh, kv_bh, seq, curve.dims))
    return time_s
