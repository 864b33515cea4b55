"""Deduplicating expert dispatch (DeepEP, HybridEP): rates and latencies from their own measurements.

A token crosses the NIC once per remote scale-up domain that holds any of its k experts and is
forwarded there over NVLink, once per rank. Achieved rates and small-message times come from
`hwprofiles/measured/<device>/alltoall_summary.csv` (bytes counted the same way).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwprofiles.measured import KernelTables, tables

# Kernels without a table of their own on a device take those of this one.
REFERENCE = "h100"
LARGE_BYTES = 2.0**28  # a message long enough for the plateau of the rate


def expected_hits(top_k: int, places: Any, limit: int = 0) -> Any:
    """Distinct places of `places` that a token's k experts fall in: n (1 - (1 - 1/n)^k), experts uniform.

    `limit`: routing restricted to so many groups hits at most that many places.

    >>> round(float(expected_hits(8, 8)), 3)
    5.251
    """
    n = np.maximum(np.asarray(places, float), 1.0)
    hit = n * (1.0 - (1.0 - 1.0 / n) ** top_k)
    return np.minimum(hit, limit) if limit else hit


class DispatchRates:
    """Achieved NVLink bytes/s inside a domain and small-message seconds by number of domains."""

    def __init__(self, kernel_tables: KernelTables) -> None:
        self.tables = kernel_tables
        own = kernel_tables.alltoall_summary
        data = own if own else tables(REFERENCE).alltoall_summary
        self.provenance = "measured" if own else f"borrowed from {REFERENCE}"
        self._sizes, self._rates = self._nvlink(data)
        self._domains, self._latency = self._small(tables(REFERENCE).alltoall_summary)

    @staticmethod
    def _nvlink(data: Mapping[str, Any]) -> tuple[Any, Any]:
        """(group sizes, bytes/s): rack-scale kernels where they were measured, else one node's DeepEP."""
        kinds = np.asarray(data["kind"])
        kind = "nvlink" if np.any(kinds == "nvlink") else "deepep_normal"
        mask = (kinds == kind) & (np.asarray(data["link"]) == "nvlink")
        sizes = np.asarray(data["ep"], float)[mask]
        rates = np.asarray(data["median_bytes_per_s"], float)[mask]
        unique = np.unique(sizes)
        return unique, np.array([rates[sizes == s].mean() for s in unique])

    @staticmethod
    def _small(data: Mapping[str, Any]) -> tuple[Any, Any]:
        """(domains, seconds) of a dispatch or combine of a few tokens."""
        mask = np.asarray(data["kind"]) == "deepep_normal"
        nodes = np.asarray(data["nodes"], float)[mask]
        seconds = np.asarray(data["small_time_s"], float)[mask]
        unique = np.unique(nodes)
        return unique, np.array([seconds[nodes == n].mean() for n in unique])

    def nvlink_bytes_per_s(self, ranks: Any, *, hybrid: bool) -> Any:
        """Achieved rate of a group of `ranks` inside one domain.

        HybridEP has no published kernel table: it is taken to move bytes at least as fast as NCCL's
        all-to-all does on the same links (assumed), DeepEP at its own measured rate.
        """
        n = np.maximum(np.asarray(ranks, float), 2.0)
        own = np.interp(np.log2(n), np.log2(self._sizes), self._rates)
        if not hybrid:
            return own
        seconds, _ = self.tables.collective_s("alltoall", n, LARGE_BYTES)
        return np.maximum(own, LARGE_BYTES * (n - 1.0) / n / np.asarray(seconds))

    def latency_s(self, domains: Any) -> Any:
        """Small-message time; grows with the logarithm of the domains beyond the measured ones."""
        x = np.log2(np.maximum(np.asarray(domains, float), 1.0))
        at = np.log2(self._domains)
        slope = (self._latency[-1] - self._latency[-2]) / (at[-1] - at[-2])
        return np.interp(x, at, self._latency) + np.maximum(x - at[-1], 0.0) * slope
