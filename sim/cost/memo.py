"""Costs that remember what they were asked: the same shapes come back in every layer and plan.

A GEMM of one layer kind returns in its recompute, in the next recompute setting and in the next event run. Asking
the table again costs a search and an interpolation; here it costs a look-up by the bytes of the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from hwprofiles.measured import KernelTables, Provenance

MAX_ENTRIES = 20_000  # answers kept; then all are forgotten, so that memory stays within tens of MB
MAX_SIZE = 1024  # longer columns are not kept: they do not come back


@dataclass(frozen=True, kw_only=True, eq=False)
class RememberedTables(KernelTables):
    """`KernelTables` with the same answers, each worked out once."""

    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def _ask(self, what: tuple[Any, ...], sizes: tuple[Any, ...], answer: Callable[[], Any]) -> Any:
        arrays = [np.asarray(x) for x in sizes]
        if max(a.size for a in arrays) > MAX_SIZE:
            return answer()
        key = (*what, *((a.dtype.char, a.shape, a.tobytes()) for a in arrays))
        if key not in self._known:
            if len(self._known) >= MAX_ENTRIES:
                self._known.clear()
            self._known[key] = answer()
        return self._known[key]

    def gemm_s(self, m: Any, n: Any, k: Any, dtype: str, *, cast: bool = False) -> tuple[Any, Provenance]:
        """See `KernelTables.gemm_s`."""
        ask = super().gemm_s
        found: tuple[Any, Provenance] = self._ask(
            ("gemm", dtype, cast), (m, n, k), lambda: ask(m, n, k, dtype, cast=cast)
        )
        return found

    def attention_s(
        self, batch: Any, seq: Any, heads: Any, kv_heads: Any, dqk: Any, dv: Any, flop: Any = None, *,
        products_only: bool = False,
    ) -> Any:  # fmt: skip
        """See `KernelTables.attention_s`."""
        ask, sizes = super().attention_s, (batch, seq, heads, kv_heads, dqk, dv)
        known = sizes if flop is None else (*sizes, flop)
        what = ("attention", products_only)
        return self._ask(what, known, lambda: ask(*sizes, flop, products_only=products_only))

    def collective_s(self, op: str, num_gpus: Any, bytes_: Any) -> tuple[Any, Provenance]:
        """See `KernelTables.collective_s`."""
        ask = super().collective_s
        found: tuple[Any, Provenance] = self._ask((op,), (num_gpus, bytes_), lambda: ask(op, num_gpus, bytes_))
        return found


@cache
def remembered(found: KernelTables) -> RememberedTables:
    """The same tables with a memory, shared by all cost models of the process; `found` is known by identity."""
    return RememberedTables(**vars(found))
