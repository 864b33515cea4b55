"""How fast a cluster is built and answers: 16,384 devices on rails, with paths, groups of columns and a host map.

Run: python -m benchmarks.bench_topology. `maxrss` counts the whole process, libraries included.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import figures
from hwprofiles.catalogue import cluster
from hwprofiles.cluster_graph import graph
from hwprofiles.hostmap import host_map
from hwprofiles.topology import bisection_bytes_per_s, highest_link, path
from sim.mesh import RankMap, fabric_slowdown, group
from sim.plan import Plan

DEVICES = 16_384
ROWS = 100_000


class Block:
    """Columns of one layout in many rows, as screening sees them."""

    tp = dp = pp = ep = etp = cp = edp = np.ones(ROWS, dtype=np.int64)

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.tp, self.pp = 2 ** draw.integers(0, 4, ROWS), 2 ** draw.integers(0, 5, ROWS)
        self.dp = DEVICES // (self.tp * self.pp)
        self.ep = 2 ** draw.integers(0, 7, ROWS)
        self.edp = DEVICES // (self.pp * self.ep)


def measure(out: figures.Figures) -> None:
    """The figures."""

    def timed(what: str, call: Callable[[], Any]) -> Any:
        """Run once."""
        begin = time.process_time()
        made = call()
        out.add(what, time.process_time() - begin, "s")
        return made

    made = timed(f"read and check {DEVICES:,} devices on rails", lambda: cluster("dgx-h100-superpod", gpus=DEVICES))
    net = timed("graph", lambda: graph(made))
    out.add("its vertices", net.number_of_nodes(), note=f"{net.number_of_edges()} edges")
    timed("bisection", lambda: bisection_bytes_per_s(made))
    draw = np.random.default_rng(0)
    pairs = draw.integers(0, DEVICES, (2, DEVICES))
    timed(f"{DEVICES:,} paths, one by one", lambda: [path(made, int(a), int(b)) for a, b in pairs.T])
    timed(
        "all pairs of 2,048 devices, highest link",
        lambda: highest_link(made, np.arange(2048)[:, None], np.arange(2048)),
    )
    columns: Any = Block(0)
    grp = timed(f"expert groups of {ROWS:,} candidates", lambda: group(columns, "ep", made))
    timed("their slowdown", lambda: fabric_slowdown(made, grp, "spread"))
    ranks = RankMap(hosts=host_map(draw.permutation(DEVICES).tolist()))
    plan = Plan(tp=8, dp=128, pp=16, ep=64, edp=16)
    timed("one group under a random host map", lambda: group(plan, "ep", made, ranks))
    timed("the same group again", lambda: group(plan, "ep", made, ranks))
    timed(f"expert groups of {ROWS:,} candidates under it", lambda: group(columns, "ep", made, ranks))
    out.add("peak resident memory", 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")


if __name__ == "__main__":
    figures.run(measure, __doc__)
